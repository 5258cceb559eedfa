"""Attention itself, shared by both towers, and the masks that decide who sees whom."""

import jax
import jax.numpy as jnp

# Finite, so that a row without any visible key stays free of NaN; as in the Gemma release.
MASKED = -2.3819763e38


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, softcap: float = 0.0
) -> jax.Array:
    """Softmax attention with grouped heads; logits and softmax in float32.

    Args:
      q: [B, T, N, H], already scaled.
      k: [B, K, S, H]. Query heads share the K heads in groups of G = N / K, in order. Heads come
        before slots, so that each head's keys are one block: a cache is read as it is stored.
      v: [B, K, S, H].
      mask: bool[B, T, S], True where a query may see a key; None if all may.
      softcap: c in c * tanh(logits / c), before the mask; 0 is off.

    Returns:
      [B, T, N, H] in the dtype of `q`.
    """
    B, T, N, H = q.shape
    K = k.shape[1]
    q = q.reshape(B, T, K, N // K, H)
    logits = jnp.einsum("BTKGH,BKSH->BKGTS", q, k, preferred_element_type=jnp.float32)
    if softcap:
        logits = jnp.tanh(logits / softcap) * softcap
    if mask is not None:
        logits = jnp.where(mask[:, None, None], logits, MASKED)
    probs = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    out = jnp.einsum("BKGTS,BKSH->BKGTH", probs, v)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


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
