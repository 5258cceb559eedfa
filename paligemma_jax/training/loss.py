"""The loss of next-token prediction, computed at supervised positions only.

A row's supervised positions are few (a suffix of 20 tokens in a text of 128), and a logit vector is
long (257,152), so logits are made for a few positions at a time: each row's supervised positions
are moved to its front, `chunk` positions of every row are taken at once, a chunk without any is
skipped, and the backward pass makes each chunk's logits again instead of keeping them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Params = Mapping[str, jax.Array]
Batch = Mapping[str, jax.Array]
# (params, inputs, rng or None) -> hidden states [B, T, D] of the text
ApplyFn = Callable[[Params, Batch, Any], jax.Array]
# (params, hidden [B, C, D]) -> float32[B, C, V]
LogitsFn = Callable[[Params, jax.Array], jax.Array]

SHIFTED = ("text", "mask_ar", "mask_input")
CHUNK = 16


def example_losses(
    params: Params,
    batch: Batch,
    *,
    apply_fn: ApplyFn,
    logits_fn: LogitsFn,
    rng: jax.Array | None = None,
    label_smoothing: float = 0.0,
    chunk: int = CHUNK,
) -> jax.Array:
    """Returns float32[B]: each example's mean loss over its supervised tokens, 0 without any.

    The model reads `text[:, :-1]` and predicts `text[:, 1:]`. For a prefix [bos a sep] and a suffix
    [x eos] in a text of T + 1 = 7:

        text        bos  a   sep  x   eos  pad  pad
        mask_loss    0   0    0   1    1    0    0
        input       bos  a   sep  x   eos  pad
        target       a  sep   x  eos  pad  pad
        counts       0   0    1   1    0    0

    Args:
      params: all parameters.
      batch: text int32[B, T + 1], and of the same shape mask_loss, mask_ar, mask_input; the rest
        (images) is handed to `apply_fn` as it is.
      apply_fn: makes hidden states [B, T, D].
      logits_fn: makes logits float32[B, C, V] of hidden states [B, C, D].
      rng: for `apply_fn`; None: no dropout.
      label_smoothing: probability spread evenly over all tokens but the right one.
      chunk: positions per row whose logits exist at the same time.
    """
    inputs = {name: value for name, value in batch.items() if name != "mask_loss"}
    inputs |= {name: batch[name][:, :-1] for name in SHIFTED}
    return token_losses(
        params,
        apply_fn(params, inputs, rng),
        batch["text"][:, 1:],
        batch["mask_loss"][:, 1:],
        logits_fn=logits_fn,
        label_smoothing=label_smoothing,
        chunk=chunk,
    )


def token_losses(
    params: Params,
    hidden: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    logits_fn: LogitsFn,
    label_smoothing: float = 0.0,
    chunk: int = CHUNK,
) -> jax.Array:
    """Returns float32[B]: the mean of each row's token losses where `mask` is set, 0 without any.

    Args: hidden [B, T, D], targets int32[B, T], mask [B, T]; the others as in `example_losses`.
    """
    chunks = _chunk_supervised(hidden, targets, mask, chunk)

    # Without the checkpoint the scan would keep the logits of every chunk for the backward pass.
    @jax.checkpoint
    def add_chunk(total: jax.Array, piece: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        hidden, targets, mask = piece

        def sums() -> jax.Array:
            losses = _cross_entropy(logits_fn(params, hidden), targets, label_smoothing)
            return jnp.sum(losses * mask, axis=-1)

        return total + jax.lax.cond(jnp.any(mask > 0), sums, lambda: jnp.zeros_like(total)), None

    total, _ = jax.lax.scan(add_chunk, jnp.zeros(mask.shape[0], jnp.float32), chunks)
    return total / jnp.maximum(jnp.sum(mask, axis=-1), 1)


def _chunk_supervised(
    hidden: jax.Array, targets: jax.Array, mask: jax.Array, chunk: int
) -> tuple[jax.Array, ...]:
    """Returns hidden, targets, mask as [n, B, C, ...], each row's supervised positions first.

    Positions move within their row only, so rows that live on different devices stay there.
    """
    B, T = mask.shape
    order = jnp.argsort(mask <= 0, axis=1, stable=True)
    padding = -T % chunk

    def rearrange(x: jax.Array) -> jax.Array:
        index = order.reshape(*order.shape, *[1] * (x.ndim - 2))
        x = jnp.take_along_axis(x, index, axis=1)
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, -1, chunk, *x.shape[2:]), 1, 0)

    return rearrange(hidden), rearrange(targets), rearrange(mask.astype(jnp.float32))


def _cross_entropy(logits: jax.Array, targets: jax.Array, label_smoothing: float) -> jax.Array:
    """Returns float32[...] of logits [..., V] and int targets [...].

    With smoothing eps the target has probability 1 - eps and every other token eps / (V - 1), as in
    big_vision. No array of V columns is made beside the logits: with s = sum of the log
    probabilities, the loss is -(1 - eps) * logp[target] - eps / (V - 1) * (s - logp[target]).
    """
    logits = logits.astype(jnp.float32)
    V = logits.shape[-1]
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - normalizer
    if not label_smoothing:
        return -target
    others = jnp.sum(logits, axis=-1) - V * normalizer - target
    return -(1.0 - label_smoothing) * target - label_smoothing / (V - 1) * others
