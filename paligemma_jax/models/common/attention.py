"""Attention itself, shared by both towers; masks that decide who sees whom; positions."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from paligemma_jax.models.common import precision

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

    Returns:
      [B, T, N, H] in the dtype of `q`.
    """
    B, T, N, _ = q.shape
    if kernel == "cudnn" and T > 1:
        if softcap:
            raise ValueError(f"cuDNN's attention has no soft-cap, found {softcap}: use kernel xla")
        return attend_fused(q, k, v, mask, implementation="cudnn")
    wanted = -(-B * N * T * k.shape[2] // BLOCK_VALUES)
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
    logits = precision.product("BTKGH,BKSH->BKGTS", q, k, jnp.float32)
    if softcap:
        logits = jnp.tanh(logits / softcap) * softcap
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, MASKED)
    probs = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    out = precision.product("BKGTS,BKSH->BKGTH", probs, v, q.dtype).astype(q.dtype)
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
