"""The loss of next-token prediction, computed at supervised positions only.

A row's supervised positions are few (a suffix of 20 tokens in a text of 128), and a logit vector is
long (257,152), so logits are made for a few positions at a time: each row's supervised positions
are moved to its front, `chunk` positions of every row are taken at once, as many times as the row
with most of them needs, and the backward pass makes each chunk's logits again instead of keeping
them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Params = Mapping[str, jax.Array]
Batch = Mapping[str, jax.Array]
# (params, inputs, rng or None) -> hidden states [B, T, D] of the text
ApplyFn = Callable[[Params, Batch, Any], jax.Array]
# (params, hidden [B, C, D]) -> float32[B, C, V]
LogitsFn = Callable[[Params, jax.Array], jax.Array]
# (hidden [B, C, D], targets int32[B, C], mask float32[B, C], *weights) -> float32[B]
ChunkLosses = Callable[..., jax.Array]
# hidden, targets and mask of whole rows
Pieces = tuple[jax.Array, jax.Array, jax.Array]

SHIFTED = ("text", "mask_ar", "mask_input")
CHUNK = 16
# In a batch, float32[B]: what an example's loss counts, 1 on average.
WEIGHT = "loss_weight"
EXAMPLES, TOKENS = "examples", "tokens"


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
    inputs = {name: x for name, x in batch.items() if name not in ("mask_loss", WEIGHT)}
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


def weigh(batch: Batch, mean_over: str) -> Batch:
    """Returns a batch whose `mean` is over examples, or over all supervised tokens of the batch."""
    if mean_over == EXAMPLES:
        return batch
    counts = jnp.sum(batch["mask_loss"][:, 1:] > 0, axis=1).astype(jnp.float32)
    return {**batch, WEIGHT: counts / jnp.maximum(jnp.mean(counts), 1e-9)}


def mean(losses: jax.Array, batch: Batch) -> jax.Array:
    """Returns the mean of `example_losses` as the batch weighs them: float32[]."""
    return jnp.mean(losses * batch[WEIGHT] if WEIGHT in batch else losses)


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
    pieces = _pack_supervised(hidden, targets, mask, chunk)

    def chunk_losses(hidden: jax.Array, targets: jax.Array, mask: jax.Array, *read: jax.Array):
        losses = _cross_entropy(chunk_logits(hidden, *read), targets, label_smoothing)
        return jnp.sum(losses * mask, axis=-1)

    # Of all parameters, `read` are those that logits are made of.
    example = jax.ShapeDtypeStruct((len(mask), chunk, *hidden.shape[2:]), hidden.dtype)
    chunk_logits, read = jax.closure_convert(functools.partial(logits_fn, params), example)
    total: Any = _sum_over_chunks(chunk_losses, chunk, pieces, tuple(read))
    return total / jnp.maximum(jnp.sum(mask, axis=-1), 1)


def _pack_supervised(
    hidden: jax.Array, targets: jax.Array, mask: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns hidden, targets and float mask, each row's supervised positions first.

    They are padded to whole chunks. Positions move within their row only, so rows that live on
    different devices stay there.
    """
    order = jnp.argsort(mask <= 0, axis=1, stable=True)
    padding = -mask.shape[1] % chunk

    def rearrange(x: jax.Array) -> jax.Array:
        index = order.reshape(*order.shape, *[1] * (x.ndim - 2))
        x = jnp.take_along_axis(x, index, axis=1)
        return jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))

    return rearrange(hidden), rearrange(targets), rearrange(mask.astype(jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_over_chunks(
    chunk_losses: ChunkLosses, chunk: int, pieces: Pieces, read: Sequence[jax.Array]
) -> jax.Array:
    """Returns float32[B], the sum of `chunk_losses` over the chunks with any supervised position.

    Their number is known when the step runs: nothing is computed for the others. Derivatives are
    written out because those of a scan with a branch would keep a copy of the vocabulary's weights,
    and those of a loop of unknown length do not exist. Each chunk's logits are made again.
    """

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + chunk_losses(*_cut(pieces, i, chunk), *read)

    count = _count_chunks(pieces[2], chunk)
    return jax.lax.fori_loop(0, count, add, jnp.zeros(len(pieces[2]), jnp.float32))


def _sum_forward(
    chunk_losses: ChunkLosses, chunk: int, pieces: Sequence[Any], read: Sequence[Any]
) -> tuple[Any, Any]:
    """Also returns what the backward pass needs: pieces, and read weights with a place each.

    Weights without gradient are among `fixed`, so that no memory is spent on their derivatives.
    Arguments are `jax.custom_derivatives.CustomVJPPrimal`.
    """
    trained = {str(i): leaf.value for i, leaf in enumerate(read) if leaf.perturbed}
    fixed = {str(i): leaf.value for i, leaf in enumerate(read) if not leaf.perturbed}
    values = tuple(leaf.value for leaf in pieces)
    total = _sum_over_chunks(chunk_losses, chunk, values, tuple(leaf.value for leaf in read))
    return total, (values, trained, fixed)


def _sum_backward(
    chunk_losses: ChunkLosses, chunk: int, kept: Any, gradient: jax.Array
) -> tuple[tuple[jax.Array, None, None], tuple[jax.Array | None, ...]]:
    """Returns the gradients of hidden states and of the trained among the read weights."""
    pieces, trained, fixed = kept

    def add(i: jax.Array, sums: tuple[jax.Array, dict[str, jax.Array]]):
        hidden, targets, mask = _cut(pieces, i, chunk)

        def losses(hidden: jax.Array, trained: dict[str, jax.Array]) -> jax.Array:
            weights = trained | fixed
            read = [weights[str(n)] for n in range(len(weights))]
            return chunk_losses(hidden, targets, mask, *read)

        d_hidden, d_trained = jax.vjp(losses, hidden, trained)[1](gradient)
        whole = jax.lax.dynamic_update_slice_in_dim(sums[0], d_hidden, i * chunk, axis=1)
        return whole, jax.tree.map(jnp.add, sums[1], d_trained)

    zeros = jnp.zeros_like(pieces[0]), jax.tree.map(jnp.zeros_like, trained)
    count = _count_chunks(pieces[2], chunk)
    d_hidden, d_trained = jax.lax.fori_loop(0, count, add, zeros)
    d_read = tuple(d_trained.get(str(n)) for n in range(len(trained) + len(fixed)))
    return (d_hidden, None, None), d_read


_sum_over_chunks.defvjp(_sum_forward, _sum_backward, symbolic_zeros=True)


def _cut(pieces: Pieces, i: jax.Array, chunk: int) -> Pieces:
    hidden, targets, mask = pieces

    def cut(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1)

    return cut(hidden), cut(targets), cut(mask)


def _count_chunks(mask: jax.Array, chunk: int) -> jax.Array:
    """Returns how many chunks hold a supervised position, given that each row begins with its."""
    longest = jnp.max(jnp.sum(mask > 0, axis=1))
    return (longest + chunk - 1) // chunk


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
