"""Where arrays lie while a model runs on several devices: fully sharded data parallel.

A compiler that is told where weights and batch lie, and nothing of what is between, spreads the
weights' split into the activations, and then moves activations in every layer. So activations are
held to their rows at the border of every layer, and a weight that is split over the same devices
comes together where a layer uses it, in the type that it is used in, once for the layer's forward
and once for its backward pass; its gradient goes back in parts.

Without a layout, on a device alone, nothing here does anything.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from paligemma_jax.models.common import projections
from paligemma_jax.params import names, sharding

Layout = sharding.Layout

# Last parts of the names of weights that are cast to the type of the activation that they meet.
CAST = ("w", "kernel", "gating_einsum", "linear", "input_embedding")


def keep_rows(layout: Layout | None, x: jax.Array) -> jax.Array:
    """Returns activations [B, ...] split along B alone, and so is their gradient."""
    return x if layout is None else jax.lax.with_sharding_constraint(x, layout.rows)


def spread_rows(layout: Layout | None, x: jax.Array) -> jax.Array:
    """Returns activations [B, ...] with all rows on every device; their gradient by rows again."""
    # Held to their rows first: else all that they are cut out of would be brought.
    return x if layout is None else _move(keep_rows(layout, x), layout.everywhere, layout.rows)


def keep_vocabulary(layout: Layout | None, table: str, logits: jax.Array) -> jax.Array:
    """Returns logits [B, T, V] split along V, as the table of this name is."""
    if layout is None:
        return logits
    return jax.lax.with_sharding_constraint(logits, layout.last_as_first_of(table))


def num_rows(layout: Layout | None) -> int:
    """Returns into how many parts a batch is split: B over it is what one device holds."""
    return 1 if layout is None else layout.num_rows


def gather(layout: Layout | None, name: str, w: Any, dtype: DTypeLike) -> Any:
    """Returns a weight as one use of it needs it: whole, cast to `dtype` if the use casts it."""
    stored = None if layout is None else layout.where_stored(name)
    if layout is None or stored is None:
        return w
    return _bring(w, stored, layout.where_used(name), name, dtype)


def gather_layer(
    layout: Layout | None, prefix: str, params: Mapping[str, Any], dtype: DTypeLike
) -> dict[str, Any]:
    """Returns one layer's nested parameters as `gather` does, of the arrays stacked at `prefix`."""
    if layout is None:
        return dict(params)
    flat = names.flatten(params)
    for name, w in flat.items():
        stored = layout.where_stored(prefix + name)
        if stored is not None:
            # The first dimension is that of the layers: its split ends where a layer is taken.
            rest, used = stored.spec[1:], layout.where_used(prefix + name).spec[1:]
            here, there = (NamedSharding(layout.mesh, PartitionSpec(*x)) for x in (rest, used))
            flat[name] = _bring(w, here, there, name, dtype)
    return names.unflatten(flat)


def _bring(w: Any, stored: NamedSharding, used: NamedSharding, name: str, dtype: DTypeLike) -> Any:
    if not isinstance(w, jax.Array):  # quantized: all that it is made of, to be decoded where used
        whole = NamedSharding(used.mesh, PartitionSpec())
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, whole), w)
    if name.rpartition("/")[2] in CAST and not projections.is_half(dtype):
        w = w.astype(dtype)
    return _move(w, used, stored)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _move(x: jax.Array, there: NamedSharding, back: NamedSharding) -> jax.Array:
    """Returns `x` placed `there`; its gradient comes `back`, summed on the way."""
    del back
    return jax.lax.with_sharding_constraint(x, there)


def _move_forward(x: jax.Array, there: NamedSharding, back: NamedSharding):
    return _move(x, there, back), None


def _move_backward(there: NamedSharding, back: NamedSharding, _: None, dx: jax.Array):
    del there
    return (jax.lax.with_sharding_constraint(dx, back),)


_move.defvjp(_move_forward, _move_backward)
