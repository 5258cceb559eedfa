"""float16 operands: sums are wide, nothing becomes infinite, gradients are those of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.models.common import attention, projections, quantize
from paligemma_jax.models.paligemma import paligemma, variants


def test_narrow_cuts_at_the_largest_number_and_leaves_other_types_alone():
    x = np.array([1e6, -1e6, 2.5], np.float32)
    np.testing.assert_array_equal(projections.narrow(x, "float16"), [65504, -65504, 2.5])
    np.testing.assert_array_equal(projections.narrow(x, "float32"), x)
    assert np.asarray(projections.narrow(x, "bfloat16"))[0] > 9e5


def test_products_are_summed_in_float32():
    x = np.full((1, 1, 4096), 8.0, np.float16)
    w = np.full((4096, 1), 8.0, np.float32)
    (((found,),),) = projections.project({"w": w}, "BTD,DF->BTF", x)
    assert found == 4096 * 64 and found.dtype == jnp.float32  # beyond float16's end


@pytest.mark.parametrize("eqn", ["BTD,NDH->BTNH", "BTNH,NHD->BTD", "BTD,2DF->2BTF", "BTD,VD->BTV"])
@pytest.mark.parametrize("num_tokens", [1, 4])
def test_gradients_are_those_of_float32_and_weights_get_theirs_in_their_own_type(eqn, num_tokens):
    sizes = dict(B=2, T=num_tokens, D=16, N=3, H=8, F=8, V=9) | {"2": 2}
    rng = np.random.default_rng(0)
    operands = eqn.split("->")[0].split(",")
    x, w = (rng.normal(size=[sizes[i] for i in each]).astype(np.float32) for each in operands)

    def total(x, w, dtype):
        y = projections.project({"w": w}, eqn, projections.narrow(x, dtype))
        return jnp.sum(jnp.sin(y.astype(jnp.float32)))

    exact = jax.grad(total, (0, 1))(x, w, "float32")
    found = jax.grad(total, (0, 1))(x, w, "float16")
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=0, atol=0.01 * np.abs(other).max())


@pytest.mark.parametrize("kind", quantize.KINDS)
def test_quantized_weights_act_in_float16_as_in_float32(monkeypatch, kind):
    monkeypatch.setattr(projections, "PIECE_BYTES", 2**12)  # in pieces of some rows
    rng = np.random.default_rng(0)
    w = quantize.quantize(rng.normal(size=(48, 64)).astype(np.float32), kind, unit=(48, 64))
    x = rng.normal(size=(2, 3, 64)).astype(np.float32)

    def total(x, dtype):
        y = projections.project({"w": w}, "BTD,VD->BTV", projections.narrow(x, dtype))
        return jnp.sum(jnp.sin(y.astype(jnp.float32)))

    exact, found = (jax.grad(total)(x, dtype) for dtype in ("float32", "float16"))
    np.testing.assert_allclose(found, exact, rtol=0, atol=0.01 * np.abs(exact).max())


def test_gradients_beyond_float16_are_cut():
    x, w = jnp.ones((1, 2, 3), jnp.float16), jnp.ones((3, 2))
    dx, dw = jax.grad(
        lambda x, w: 1e9 * jnp.sum(projections.project({"w": w}, "BTD,DF->BTF", x)), (0, 1)
    )(x, w)
    assert np.isfinite(dx).all() and np.isfinite(dw).all() and dx.dtype == jnp.float16


def grow(params, **factors) -> dict[str, np.ndarray]:
    """Returns weights with those multiplied whose names end so."""
    found = {}
    for name, w in params.items():
        factor = next((f for end, f in factors.items() if name.endswith(end)), 1.0)
        found[name] = w * np.float32(factor)
    return found


def test_a_residual_stream_beyond_float16_is_carried(params, inputs, run_logits, model):
    large = grow(params, input_embedding=3e4)
    residual = large["llm/embedder/input_embedding"] * model.llm.width**0.5
    assert np.abs(residual).max() > projections.LARGEST
    valid = inputs.mask_input == 1
    exact = run_logits(large, inputs, model=model)[valid]
    half = paligemma.Compute("float16", remat="none")
    found = run_logits(large, inputs, model=model, compute=half)[valid]
    assert np.isfinite(found).all()
    assert (found.argmax(-1) == exact.argmax(-1)).mean() > 0.95


def test_operands_beyond_float16_stay_finite(params, inputs, run_logits, model):
    half = paligemma.Compute("float16", remat="none")
    for factors in (dict(gating_einsum=3e2), dict(kernel=1e2), dict(scale=1e6)):
        found = run_logits(grow(params, **factors), inputs, model=model, compute=half)
        assert np.isfinite(found).all(), factors


def test_keys_and_values_beyond_float16_stay_finite_in_its_cache():
    large = jnp.full((2, 1, 1, 4), 1e6)
    past = attention.fill_cache(
        [large], [large], jnp.ones((2, 1), bool), cache_len=2, dtype="float16", sharding=None
    )
    for buffer in attention.write_cache(past, 0, -large, -large):
        np.testing.assert_array_equal(
            buffer[:, 0, :, 0], [[projections.LARGEST, -projections.LARGEST]] * 2
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["pg1", "pg2"])
def test_greedy_tokens_are_those_of_float32_where_it_is_sure(
    load_reference, inputs, run_logits, case, dtype
):
    weights_of, _, _ = load_reference(f"forward_{case}")
    llm = {"pg1": "tiny", "pg2": "tiny2"}[case]
    vocab_size = len(weights_of["llm/embedder/input_embedding"])
    model = variants.make("tiny/14", llm, res=56, vocab_size=vocab_size, final_logits_softcap=0.0)
    exact = run_logits(weights_of, inputs, model=model)
    found = run_logits(
        weights_of, inputs, model=model, compute=paligemma.Compute(dtype, remat="none")
    )
    valid = inputs.mask_input == 1
    top = np.sort(exact[valid], axis=-1)
    is_sure = top[:, -1] - top[:, -2] > 0.1
    agree = found[valid].argmax(-1) == exact[valid].argmax(-1)
    assert is_sure.sum() >= 20 and agree[is_sure].mean() >= 0.95
