"""What decoding remembers: every layer's keys and values, and which slots of them are valid.

Slots are `[image | prefix padded to T | new tokens]`. Padding stays in the middle, masked; every
row writes the same slot, so one slice update serves the batch; positions count valid slots.
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from paligemma_jax.models.common import precision


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """A pytree. C is `cache_len`, the number of slots.

    Attributes:
      keys: one per layer, [B, K, C, H] without those of B and K that are 1. Kv heads come before
        slots, so that attention reads a head's keys as one block; separate arrays per layer, so
        that a loop can update them in place. The compiler leaves sides of 1 out of products: with
        them it would update one copy for the product and another one for the loop.
      values: likewise.
      valid: bool[B, C], the slots that a query may see.
      position: int32[B], position of each row's next token.
      slot: int32[], where the next token goes; the same for all rows.
      sharding: where [B, K, C, H] lies; None: all is on one device.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    valid: jax.Array
    position: jax.Array
    slot: jax.Array
    sharding: jax.sharding.NamedSharding | None = dataclasses.field(metadata={"static": True})


def fill(
    keys: Iterable[jax.Array],
    values: Iterable[jax.Array],
    valid: jax.Array,
    *,
    cache_len: int,
    dtype: DTypeLike,
    sharding: jax.sharding.NamedSharding | None,
) -> Cache:
    """Makes a cache of each layer's keys and values [B, K, S, H] of a prompt, valid bool[B, S]."""
    S = valid.shape[1]
    if cache_len < S:
        raise ValueError(
            f"cache_len={cache_len} is too short for {S} image and prompt slots; "
            "it must hold these and the new tokens"
        )

    def grow(x: jax.Array) -> jax.Array:
        x = jnp.pad(precision.narrow(x, dtype), ((0, 0), (0, 0), (0, cache_len - S), (0, 0)))
        return _drop_ones(_put(x, sharding))

    return Cache(
        keys=tuple(grow(k) for k in keys),
        values=tuple(grow(v) for v in values),
        valid=jnp.pad(valid, ((0, 0), (0, cache_len - S))),
        position=jnp.sum(valid, axis=1, dtype=jnp.int32),
        slot=jnp.asarray(S, jnp.int32),
        sharding=sharding,
    )


def write(cache: Cache, layer: int, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a layer's keys and values [B, K, C, H] with [B, K, 1, H] put at the next slot."""

    def put(buffer: jax.Array, new: jax.Array) -> jax.Array:
        start = *(0 for _ in buffer.shape[:-2]), cache.slot, 0
        written = precision.narrow(_drop_ones(new), buffer.dtype)
        buffer = jax.lax.dynamic_update_slice(buffer, written, start)
        buffer = buffer.reshape(*new.shape[:2], *buffer.shape[-2:])
        return _put(buffer, cache.sharding)

    return put(cache.keys[layer], k), put(cache.values[layer], v)


def advance(cache: Cache, keys_values: Iterable[tuple[jax.Array, jax.Array]]) -> Cache:
    """Returns the cache one slot further, with what `write` gave for each layer."""
    keys, values = (tuple(map(_drop_ones, buffers)) for buffers in zip(*keys_values, strict=True))
    return dataclasses.replace(
        cache,
        keys=keys,
        values=values,
        valid=open_slot(cache),
        position=cache.position + 1,
        slot=cache.slot + 1,
    )


def open_slot(cache: Cache) -> jax.Array:
    """Returns `valid` bool[B, C] with the next slot visible: a new token sees itself."""
    seen = jnp.ones_like(cache.valid[:, :1])
    return jax.lax.dynamic_update_slice(cache.valid, seen, (0, cache.slot))


def select_rows(cache: Cache, rows: jax.Array) -> Cache:
    """Returns the cache of the given rows, int32[B']: repeats, drops and reorders them."""

    B, C = cache.valid.shape

    def take(buffers: Iterable[jax.Array]) -> tuple[jax.Array, ...]:
        full = [x.reshape(B, -1, C, x.shape[-1]) for x in buffers]
        taken = (_put(jnp.take(x, rows, axis=0), cache.sharding) for x in full)
        return tuple(map(_drop_ones, taken))

    return dataclasses.replace(
        cache,
        keys=take(cache.keys),
        values=take(cache.values),
        valid=jnp.take(cache.valid, rows, axis=0),
        position=jnp.take(cache.position, rows, axis=0),
    )


def _put(x: jax.Array, sharding: jax.sharding.NamedSharding | None) -> jax.Array:
    """Returns [B, K, C, H], in a compiled program, where it is to lie."""
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


def _drop_ones(x: jax.Array) -> jax.Array:
    """Returns [B, K, S, H] without those of B and K that are 1."""
    return x.reshape(*(side for side in x.shape[:2] if side > 1), *x.shape[2:])
