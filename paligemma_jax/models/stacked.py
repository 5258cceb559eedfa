"""The language model's blocks as one array for all layers, or as one per layer."""

import re
from collections.abc import Mapping

import jax

LAYERS = "llm/layers/"
_UNSTACKED = re.compile(r"llm/layers/\d+/")


def unstack(params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the language model's blocks with one array per layer, for decoding.

    `llm/layers/attn/q_einsum/w` [L, ...] becomes `llm/layers/0/attn/q_einsum/w` and so on; other
    parameters are left out. `prefill` scans over the stacked form where it is given, `decode_step`
    prefers this one. Both together hold the blocks in memory twice; either alone is enough.
    """
    return {
        f"{LAYERS}{layer}/{name.removeprefix(LAYERS)}": jax.tree.map(lambda x, i=layer: x[i], w)
        for name, w in params.items()
        if name.startswith(LAYERS)
        for layer in range(w.shape[0])
    }


def is_unstacked(name: str) -> bool:
    """Whether a parameter is of one layer."""
    return _UNSTACKED.match(name) is not None
