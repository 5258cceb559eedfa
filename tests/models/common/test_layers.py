"""What the backward pass keeps of a layer."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.models.common import layers
from paligemma_jax.models.paligemma import gemma, variants

LLM = variants.GEMMAS["tiny"]
B, T = 2, 8
QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def gradients(remat: str):
    """Returns the compiled gradients of a stack of blocks, and their parameters."""
    tower = gemma.Tower(LLM, vocab_size=32, remat=remat)
    x = jax.random.normal(jax.random.key(0), (B, T, LLM.width))
    seen = jnp.zeros((B, T), jnp.int32), jnp.ones((B, T, T), bool)
    params = nn.unbox(tower.init(jax.random.key(1), x, *seen))

    def total(params):
        return jnp.sum(tower.apply(params, x, *seen) ** 2)

    return jax.jit(jax.grad(total)).lower(params).compile(), params


@pytest.fixture(scope="module")
def compiled():
    return functools.cache(gradients)


@pytest.mark.parametrize("remat", [name for name in layers.REMAT if name != "none"])
def test_what_is_kept_changes_no_gradient(compiled, remat):
    (kept, params), (none, _) = compiled(remat), compiled("none")
    for actual, expected in zip(*map(jax.tree.leaves, (kept(params), none(params))), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=1e-5)


def test_keeping_narrow_products_lies_between_keeping_nothing_and_all_products(compiled):
    policies = ("nothing_saveable", layers.NARROW, "dots_with_no_batch_dims_saveable")
    programs = [compiled(remat)[0] for remat in policies]
    work = [program.cost_analysis()["flops"] for program in programs]
    assert work[0] > work[1] > work[2]
    memory = [program.memory_analysis().temp_size_in_bytes for program in programs]
    assert memory[1] < memory[2]


def residuals(remat: str, depth: int) -> tuple[list[tuple[int, ...]], list[jax.Array]]:
    """Returns shapes of what a backward pass reads, and gradients, of blocks with dropout."""
    tower = gemma.Tower(dataclasses.replace(LLM, depth=depth), 32, remat=remat, dropout=0.3)
    x = jax.random.normal(jax.random.key(0), (B, T, LLM.width))
    seen = jnp.zeros((B, T), jnp.int32), jnp.ones((B, T, T), bool)
    keys = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    params = tower.init(keys, x, *seen)

    def total(params):
        return jnp.sum(x * tower.apply(params, x, *seen, rngs={"dropout": jax.random.key(3)}))

    kept = jax.eval_shape(lambda params: jax.vjp(total, params)[1], params)
    grads = jax.jit(jax.grad(total), compiler_options=QUICK_COMPILE)(params)
    return [leaf.shape for leaf in jax.tree.leaves(kept)], jax.tree.leaves(grads)


@pytest.mark.parametrize(
    ("depth", "segments"),
    [(4, 2), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((3, 1), (5, 5)))],
)
def test_segments_keep_their_inputs_alone_and_change_no_gradient(depth, segments):
    stream = (B, T, LLM.width)
    (before, expected), (shapes, grads) = (
        residuals(remat, depth) for remat in ("nothing_saveable", layers.SEGMENTS)
    )
    assert (depth, *stream) in before
    assert (segments, *stream) in shapes
    assert segments == depth or (depth, *stream) not in shapes
    for actual, wanted in zip(grads, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


def test_only_an_mlps_inner_product_is_made_again():
    def count(eqn: str, *w_shape: int) -> int:
        class One(nn.Module):
            @nn.compact
            def __call__(self, x):
                return layers.Einsum(w_shape, nn.initializers.ones_init(), name="one")(eqn, x)

        x = jnp.ones((B, T, 8))
        return str(jax.make_jaxpr(lambda: One().init_with_output(jax.random.key(0), x))()).count(
            layers.NARROW
        )

    assert count("BTD,NDH->BTNH", 2, 8, 4) == 1
    assert count("BTD,2DF->2BTF", 2, 8, 32) == 0
