"""Attention itself, shared by both towers; who sees whom; positions; and decoding's cache."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from paligemma_jax.models.common import projections

# Finite, so that a row without any visible key stays free of NaN; as in the Gemma release.
MASKED = -2.3819763e38

# At most so many logits exist at a time (256 MiB), but of so many queries at least.
BLOCK_VALUES, BLOCK_QUERIES = 2**26, 128

# What computes attention: the functions below, or the fused kernel of NVIDIA's cuDNN.
KERNELS = ("xla", "cudnn")


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    *,
    softcap: float = 0.0,
    kernel: str = "xla",
    split: int = 1,
) -> jax.Array:
    """Softmax attention with grouped heads; logits and softmax in float32.

    Where there are many logits, as at 896 px, those of some queries exist at a time; the backward
    pass makes them again. A query's result is the same either way.

    Args:
      q: [B, T, N, H], already scaled.
      k: [B, K, S, H]. Query heads share the K heads in groups of G = N / K, in order. Heads come
        before slots, so that each head's keys are one block: a cache is read as it is stored.
      v: [B, K, S, H].
      mask: bool[B, T, S], True where a query may see a key; None if all may.
      softcap: c in c * tanh(logits / c), before the mask; 0 is off.
      kernel: one of KERNELS. "cudnn" knows no soft-cap; of a single query, as in decoding, it is
        not used.
      split: into how many parts B is split over devices: what counts is what one of them holds.

    Returns:
      [B, T, N, H] in the dtype of `q`.
    """
    B, T, N, _ = q.shape
    if kernel == "cudnn" and T > 1:
        if softcap:
            raise ValueError(f"cuDNN's attention has no soft-cap, found {softcap}: use kernel xla")
        return attend_fused(q, k, v, mask, implementation="cudnn")
    wanted = -(-B * N * T * k.shape[2] // (BLOCK_VALUES * split))
    count = max(1, min(wanted, T // BLOCK_QUERIES))
    some = functools.partial(_attend_some, softcap=softcap)
    if count == 1:
        return some(q, k, v, mask)
    blocks = [_cut_queries(x, count) for x in (q, *([] if mask is None else [mask]))]
    checkpointed = jax.checkpoint(some, prevent_cse=False)

    def attend_block(block: list[jax.Array]) -> jax.Array:
        return checkpointed(block[0], k, v, block[1] if mask is not None else None)

    out = jnp.moveaxis(jax.lax.map(attend_block, blocks), 0, 1)
    return out.reshape(B, -1, *q.shape[2:])[:, :T]


def attend_fused(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None,
    *,
    implementation: Literal["xla", "cudnn"],
) -> jax.Array:
    """As `attend` without soft-cap, by `jax.nn.dot_product_attention`."""
    return jax.nn.dot_product_attention(
        q,
        k.swapaxes(1, 2),
        v.swapaxes(1, 2),
        mask=None if mask is None else mask[:, None],
        scale=1.0,
        implementation=implementation,
    )


def _attend_some(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, *, softcap: float
) -> jax.Array:
    """As `attend`, with the logits of all queries at once."""
    B, T, N, H = q.shape
    K = k.shape[1]
    q = q.reshape(B, T, K, N // K, H)
    logits = projections.multiply("BTKGH,BKSH->BKGTS", q, k, jnp.float32)
    if softcap:
        logits = jnp.tanh(logits / softcap) * softcap
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, MASKED)
    probs = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    out = projections.multiply("BKGTS,BKSH->BKGTH", probs, v, q.dtype).astype(q.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def _cut_queries(x: jax.Array, count: int) -> jax.Array:
    """[B, T, ...] -> [count, B, T / count, ...], padded with zeros at the end."""
    padded = jnp.pad(x, [(0, 0), (0, -x.shape[1] % count)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(padded.reshape(len(x), count, -1, *x.shape[2:]), 1, 0)


def make_mask(valid: jax.Array, mask_ar: jax.Array) -> jax.Array:
    """Returns who may see whom, bool[B, T, T]: a query sees its own block and all earlier ones.

    A position with `mask_ar` 1 opens a new block; one with 0 belongs to the block before it. Three
    image tokens, a prompt of two, an answer of two and one of padding:

        mask_ar  0 0 0  0 0  1 1  1
        valid    1 1 1  1 1  1 1  0
        block    0 0 0  0 0  1 2  3

    Image and prompt see each other; an answer token sees all of them, earlier answer tokens and
    itself; nobody sees padding.

    Args:
      valid: bool[B, T], False for padding and for unused image slots.
      mask_ar: int or bool[B, T].
    """
    block = jnp.cumsum(mask_ar.astype(jnp.int32), axis=1)
    return (block[:, None, :] <= block[:, :, None]) & valid[:, None, :] & valid[:, :, None]


def count_positions(valid: jax.Array) -> jax.Array:
    """Returns each slot's position int32[B, T]: the number of valid slots before it.

    Padding and unused images take no position. An invalid slot gets its predecessor's position,
    which nobody sees.
    """
    return jnp.cumsum(valid.astype(jnp.int32), axis=1) - 1


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary position embedding (arXiv:2104.09864), halves layout: [..., H] -> the same.

    `positions` broadcasts against the other axes. Angles are float32: bfloat16 cannot tell
    neighbouring positions apart beyond 256.
    """
    H = x.shape[-1]
    wavelength = 10_000.0 ** (jnp.arange(0, H, 2, dtype=jnp.float32) / H)
    radians = positions[..., None].astype(jnp.float32) / wavelength
    sin, cos = jnp.sin(radians), jnp.cos(radians)
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


# What decoding remembers: every layer's keys and values, and which slots of them are valid.
#
# Slots are `[image | prefix padded to T | new tokens]`. Padding stays in the middle, masked; every
# row writes the same slot, so one slice update serves the batch; positions count valid slots.


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


def fill_cache(
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
        x = jnp.pad(projections.narrow(x, dtype), ((0, 0), (0, 0), (0, cache_len - S), (0, 0)))
        return _drop_ones(_put(x, sharding))

    return Cache(
        keys=tuple(grow(k) for k in keys),
        values=tuple(grow(v) for v in values),
        valid=jnp.pad(valid, ((0, 0), (0, cache_len - S))),
        position=jnp.sum(valid, axis=1, dtype=jnp.int32),
        slot=jnp.asarray(S, jnp.int32),
        sharding=sharding,
    )


def write_cache(
    cache: Cache, layer: int, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns a layer's keys and values [B, K, C, H] with [B, K, 1, H] put at the next slot."""

    def put(buffer: jax.Array, new: jax.Array) -> jax.Array:
        start = *(0 for _ in buffer.shape[:-2]), cache.slot, 0
        written = projections.narrow(_drop_ones(new), buffer.dtype)
        buffer = jax.lax.dynamic_update_slice(buffer, written, start)
        buffer = buffer.reshape(*new.shape[:2], *buffer.shape[-2:])
        return _put(buffer, cache.sharding)

    return put(cache.keys[layer], k), put(cache.values[layer], v)


def advance_cache(cache: Cache, keys_values: Iterable[tuple[jax.Array, jax.Array]]) -> Cache:
    """Returns the cache one slot further, with what `write_cache` gave for each layer."""
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
