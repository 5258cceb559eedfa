import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.models.common import layers
from paligemma_jax.models.paligemma import gemma, variants


@pytest.fixture(scope="module")
def run_tower(params):
    """(remat, positions) -> (hidden, gradient of its sum) of the tiny language model."""
    tree = {"embedder": {"input_embedding": params["llm/embedder/input_embedding"]}}
    for name, w in params.items():
        if name.startswith("llm/layers/") or name.startswith("llm/final_norm/"):
            node = tree
            *folders, leaf = name.split("/")[1:]
            for folder in folders:
                node = node.setdefault(folder, {})
            node[leaf] = w
    x = np.random.default_rng(0).normal(size=(2, 7, 64)).astype(np.float32)
    mask = np.tril(np.ones((7, 7), bool))[None].repeat(2, axis=0)

    @functools.partial(jax.jit, static_argnames="remat")
    def run(positions, remat):
        tower = gemma.Tower(variants.GEMMAS["tiny"], vocab_size=1400, remat=remat)

        def total(tree):
            hidden = tower.apply({"params": tree}, x, positions, mask)
            return hidden.sum(), hidden

        gradient, hidden = jax.grad(total, has_aux=True)(tree)
        return hidden, gradient

    return run


def test_remat_does_not_change_gradients(run_tower):
    positions = np.tile(np.arange(7), (2, 1))
    _, kept = run_tower(positions, "none")
    _, again = run_tower(positions, "nothing_saveable")
    for one, other in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * np.abs(one).max())


def test_only_distances_between_positions_matter(run_tower):
    positions = np.tile(np.arange(7), (2, 1))
    hidden, _ = run_tower(positions, "none")
    shifted, _ = run_tower(positions + np.array([[5], [300]]), "none")
    spread, _ = run_tower(positions * 2, "none")
    np.testing.assert_allclose(shifted, hidden, rtol=0, atol=1e-4)
    assert np.abs(spread - hidden).max() > 0.01


def test_norms_are_computed_in_float32():
    """In float16 the square of 300 overflows."""
    x = np.full((1, 1, 4), 300, np.float16)
    for norm, expected in [(layers.RMSNorm(), 1), (layers.LayerNorm(), 0)]:
        y, _ = norm.init_with_output(jax.random.key(0), x)
        assert y.dtype == np.float16
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("post_norms", [False, True])
def test_mlp_in_pieces_gives_the_values_and_gradients_of_the_whole(monkeypatch, post_norms):
    llm = dataclasses.replace(variants.GEMMAS["tiny"], post_norms=post_norms)
    B, T = 2, 7
    x = jax.random.normal(jax.random.key(0), (B, T, llm.width))
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    mask = jnp.ones((B, T, T), bool)
    params = gemma.Block(llm).init(jax.random.key(1), x, positions, mask)

    def value_and_grads(in_pieces):
        block = gemma.Block(llm, in_pieces=in_pieces)

        def total(params, x):
            y, _ = block.apply(params, x, positions, mask)
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(params, x)

    monkeypatch.setattr(gemma, "MLP_VALUES", B * llm.mlp_dim * 2)
    monkeypatch.setattr(gemma, "MLP_TOKENS", 2)
    assert gemma._count_pieces(x.shape, llm.mlp_dim) == 3  # of 7 tokens: the last is padded
    found, wanted = value_and_grads(in_pieces=True), value_and_grads(in_pieces=False)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)


def test_short_texts_go_through_the_mlp_whole():
    assert gemma._count_pieces((8, 1, 64), 16_384) == 1
    assert gemma._count_pieces((8, 383, 2048), 16_384) > 1
