"""Who sees whom, where, and how much memory that takes."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.models.common import attention
from paligemma_jax.models.paligemma import paligemma, variants


def rows(mask):
    return ["".join("x" if seen else "." for seen in row) for row in np.asarray(mask)]


def test_prompt_is_seen_by_all_and_an_answer_only_by_what_follows():
    """Two image tokens, a prompt of two, an answer of two, one of padding."""
    valid = np.array([[1, 1, 1, 1, 1, 1, 0]], bool)
    mask_ar = np.array([[0, 0, 0, 0, 1, 1, 1]])
    assert rows(attention.make_mask(valid, mask_ar)[0]) == [
        "xxxx...",
        "xxxx...",
        "xxxx...",
        "xxxx...",
        "xxxxx..",
        "xxxxxx.",
        ".......",
    ]


def test_positions_count_valid_slots_only():
    valid = np.array([[1, 1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 0, 0]], bool)
    expected = [[0, 1, 1, 1, 2, 3, 3], [-1, -1, 0, 1, 2, 2, 2]]
    np.testing.assert_array_equal(attention.count_positions(valid), expected)


def test_grouped_heads_equal_repeated_keys():
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 5, 6, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 2, 7, 8)).astype(np.float32)
    mask = rng.random((2, 5, 7)) < 0.7
    mask[:, :, 0] = True
    found = attention.attend(q, k, v, mask, softcap=2.0)
    k, v = np.repeat(k, 3, axis=1), np.repeat(v, 3, axis=1)
    logits = 2 * np.tanh(np.einsum("BTNH,BNSH->BNTS", q, k) / 2)
    probs = np.exp(logits) * mask[:, None]
    probs /= probs.sum(-1, keepdims=True)
    expected = np.einsum("BNTS,BNSH->BTNH", probs, v)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_masked", [True, False])
@pytest.mark.parametrize("num_queries", [8, 10])  # into equal blocks, and not
def test_queries_taken_in_blocks_get_the_same_result_and_gradients(
    monkeypatch, is_masked, num_queries
):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, num_queries, 4, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 2, 7, 8)).astype(np.float32)
    mask = rng.random((2, num_queries, 7)) < 0.6 if is_masked else None

    def run():
        def total(q, k, v):
            out = attention.attend(q, k, v, mask, softcap=3.0)
            return jnp.sum(jnp.sin(out)), out

        # A fresh function: a compiled one would not see the change of BLOCK_VALUES.
        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True)), (q, k, v)

    whole, arguments = run()
    assert "while" not in whole.lower(*arguments).as_text()
    monkeypatch.setattr(attention, "BLOCK_VALUES", 2 * 4 * 7 * 3)
    monkeypatch.setattr(attention, "BLOCK_QUERIES", 2)
    blocked, _ = run()
    assert "while" in blocked.lower(*arguments).as_text()
    grads, out = whole(*arguments)
    found_grads, found = blocked(*arguments)
    np.testing.assert_allclose(found, out, rtol=1e-6, atol=1e-6)
    for one, other in zip(found_grads, grads, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


def test_blocks_bound_the_memory_of_many_queries(monkeypatch):
    """4,096 patches of one image, as at 896 px, with 2 heads: all logits are 128 MiB."""
    x = jax.ShapeDtypeStruct((1, 4096, 2, 8), jnp.float32)
    kv = jax.ShapeDtypeStruct((1, 2, 4096, 8), jnp.float32)

    def temporary_bytes():
        def total(q, k, v):
            return attention.attend(q, k, v, None).sum()

        compiled = jax.jit(jax.grad(total, (0, 1, 2))).lower(x, kv, kv).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = temporary_bytes()
    monkeypatch.setattr(attention, "BLOCK_VALUES", 2**22)
    assert whole > 2**27 and temporary_bytes() < whole / 4


def test_a_query_that_sees_nothing_yields_numbers_and_no_nan_gradient():
    q, k, v = (jnp.ones((1, 2, 2, 4)),) * 3
    mask = np.zeros((1, 2, 2), bool)

    def total(q):
        return attention.attend(q, k, v, mask, softcap=5.0).sum()

    value, gradient = jax.value_and_grad(total)(q)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_softmax_is_computed_in_float32():
    """Logits of 100,000 overflow float16, and bfloat16 would not tell 1000 from 1001."""
    q = jnp.full((1, 1, 1, 4), 160, jnp.float16)
    k = jnp.stack([jnp.full(4, 160, jnp.float16), jnp.full(4, -160, jnp.float16)])[None, None]
    v = jnp.array([1, 3], jnp.float16)[None, None, :, None] * jnp.ones(4, jnp.float16)
    found = attention.attend(q, k, v, None)
    assert found.dtype == jnp.float16
    np.testing.assert_array_equal(found, jnp.ones((1, 1, 1, 4)))


def test_rotation_keeps_lengths_and_turns_the_first_pair_by_one_radian_per_position():
    x = np.zeros((1, 3, 8), np.float32)
    x[..., 0] = 2.0
    turned = np.asarray(attention.rotate(x, np.arange(3)[None]))
    np.testing.assert_allclose(turned[0, :, 0], 2 * np.cos(np.arange(3)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(turned[0, :, 4], 2 * np.sin(np.arange(3)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), 2, rtol=0, atol=1e-6)


def make_inputs(*, dtype, num_heads=6, num_kv_heads=2):
    """Queries, keys, values; and the mask of prompts with unused images, answers and padding."""
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 12, num_heads, 8)) * 8**-0.5
    k, v = rng.normal(size=(2, 2, num_kv_heads, 12, 8))
    valid = np.ones((2, 12), bool)
    valid[0, 9:] = valid[1, :4] = False
    mask_ar = np.broadcast_to(np.arange(12) >= 7, (2, 12))
    mask = attention.make_mask(jnp.asarray(valid), jnp.asarray(mask_ar))
    return *(jnp.asarray(x, dtype) for x in (q, k, v)), mask


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 6])
def test_attention_of_jax_equals_ours_in_values_and_gradients(masked, num_kv_heads):
    *qkv, mask = make_inputs(dtype="float32", num_kv_heads=num_kv_heads)
    mask = mask if masked else None
    weights = np.random.default_rng(1).normal(size=qkv[0].shape).astype(np.float32)

    def ours(*qkv):
        return (attention.attend(*qkv, mask) * weights).sum()

    def theirs(*qkv):
        return (attention.attend_fused(*qkv, mask, implementation="xla") * weights).sum()

    both = [jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*qkv) for f in (ours, theirs)]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), *both)


@pytest.fixture
def with_cudnn(monkeypatch):
    """Lets programs for a Hopper GPU with cuDNN be made on a machine without them."""
    module = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(module, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(module, "check_compute_capability", lambda _: True)


def lower_for_cuda(function, *args):
    return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def test_cudnn_attends_in_a_program_for_cuda_forwards_and_backwards(with_cudnn):
    *qkv, mask = make_inputs(dtype="bfloat16")

    def attend(mask, *qkv):
        return attention.attend(*qkv, mask, kernel="cudnn").astype(jnp.float32).sum()

    grad = jax.grad(attend, (1, 2, 3))
    assert lower_for_cuda(attend, None, *qkv).count("@__cudnn$fmhaSoftmax(") == 1
    assert lower_for_cuda(attend, mask, *qkv).count("@__cudnn$fmhaScaleBiasSoftmax(") == 1
    assert lower_for_cuda(grad, None, *qkv).count("@__cudnn$fmhaSoftmaxBackward(") == 1
    assert lower_for_cuda(grad, mask, *qkv).count("@__cudnn$fmhaScaleBiasSoftmaxBackward(") == 1
    q, k, v = qkv
    assert "cudnn" not in lower_for_cuda(attend, mask[:, :1], q[:, :1], k, v)  # a decoded token


def test_each_tower_attends_by_the_kernel_that_it_was_given(with_cudnn):
    vit = variants.Vit(width=16, depth=2, mlp_dim=16, num_heads=2, patch_size=7)
    sizes = dict(width=16, depth=2, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8)
    model = variants.PaliGemma(img=vit, llm=variants.Gemma(**sizes), res=14, vocab_size=64)
    text = jnp.ones((1, 4), jnp.int32)
    inputs = jnp.zeros((1, 1, 14, 14, 3), jnp.uint8), text[:, :1], text, text, text

    def lower(**kernels):
        compute = paligemma.Compute(dtype="bfloat16", **kernels)
        apply = functools.partial(paligemma.apply, model=model, compute=compute)
        return lower_for_cuda(apply, paligemma.shapes(model), *inputs)

    img, llm = "@__cudnn$fmhaSoftmax(", "@__cudnn$fmhaScaleBiasSoftmax("
    for kernels, expected in (
        ({}, (0, 0)),
        ({"img_attention": "cudnn"}, (1, 0)),
        ({"attention": "cudnn"}, (0, 1)),
    ):
        text_of = lower(**kernels)
        assert (text_of.count(img), text_of.count(llm)) == expected


def test_an_unknown_kernel_is_an_error():
    with pytest.raises(ValueError, match="attention 'cuda' is not one of"):
        paligemma.Compute(img_attention="cuda")


def test_a_soft_cap_is_no_task_for_cudnn():
    *qkv, mask = make_inputs(dtype="bfloat16")
    with pytest.raises(ValueError, match=r"no soft-cap, found 50\.0"):
        attention.attend(*qkv, mask, softcap=50.0, kernel="cudnn")
