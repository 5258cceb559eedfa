"""Who sees whom, where, and how much memory that takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.models import attention


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
