"""Beam search, with big_vision's rules.

Each step asks of every live candidate what it would score if it ended now, and keeps the best
ended answer seen so far; then the `beam_size` likeliest continuations that are not eos live on.
Scores are sums of log-probabilities, not divided by the length: log-probabilities are never
positive, so a row is decided once its best live candidate scores below its best ended answer.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from paligemma_jax.decoding import constraint as constraints
from paligemma_jax.decoding import generate


def search(
    prefill: generate.Prefill,
    decode_step: generate.DecodeStep,
    select_rows: generate.SelectRows,
    params: generate.Params,
    batch: Mapping[str, Any],
    *,
    beam_size: int,
    max_new_tokens: int,
    eos: int,
    constraint: constraints.Constraint | None = None,
) -> generate.Generation:
    """Returns the best ended answer to every prompt; see `generate.generate` for the arguments.

    An answer always ends in eos: at the last position it is forced, at eos's own log-probability.
    What a constraint does not allow is never chosen, log-probabilities stay as they are. Where it
    allows fewer continuations than there are beams, the other beams are dead (-inf). Under one that
    never lets an answer end there is none: its length is 0.

    Raises:
      ValueError: fewer than `beam_size` tokens to choose from, or a batch without `_mask` or
        `index`.
    """
    generate.check_positive(max_new_tokens=max_new_tokens, beam_size=beam_size)
    index, is_real = generate.row_identity(batch)
    logits, cache = prefill(params, batch)
    if beam_size > (choices := logits.shape[-1] - 1):
        raise ValueError(f"beam_size={beam_size}, but only {choices} tokens can be chosen")
    is_eos = jnp.arange(logits.shape[-1]) == eos

    def advance(beams: "_Beams", logits: jax.Array, cache: generate.Cache):
        logp = jax.nn.log_softmax(logits, axis=-1).reshape(*beams.tokens.shape[:2], -1)
        room = max_new_tokens - beams.step
        logp = constraints.keep_allowed(constraint, beams.place, logp, room=room)
        beams = _end_now(beams, logp[..., eos], eos=eos)
        beams, rows = _live_on(beams, jnp.where(is_eos, -jnp.inf, logp), beam_size=beam_size)
        beams = beams._replace(place=constraints.advance(constraint, beams.place, beams.last))
        return beams, select_rows(cache, rows)

    def is_undecided(state):
        beams, _ = state
        return (beams.step < max_new_tokens) & jnp.any(is_real & ~_is_decided(beams))

    def extend(state):
        beams, cache = state
        logits, cache = decode_step(params, cache, beams.last.reshape(-1))
        return advance(beams, logits, cache)

    place = constraints.start(constraint, index[:, None])
    state = advance(_empty_beams(len(index), max_new_tokens, place), logits, cache)
    beams, _ = jax.lax.while_loop(is_undecided, extend, state)
    return generate.Generation(
        tokens=beams.best_tokens,
        logp=beams.best_logp,
        length=beams.best_length,
        index=index,
        is_real=is_real,
    )


class _Beams(NamedTuple):
    """K live candidates per row (one before the first step), and the best ended answer."""

    step: jax.Array  # int32[], tokens written to each live candidate
    tokens: jax.Array  # int32[B, K, N], no eos among them
    logp: jax.Array  # float32[B, K, N]
    last: jax.Array  # int32[B, K], to be fed next
    best_tokens: jax.Array  # int32[B, N]
    best_logp: jax.Array  # float32[B, N]
    best_length: jax.Array  # int32[B], 0 = none ended yet
    place: constraints.State | None  # int32[B, K] each


def _empty_beams(count: int, max_new_tokens: int, place: constraints.State | None) -> _Beams:
    tokens = jnp.full((count, 1, max_new_tokens), generate.PAD, jnp.int32)
    logp = jnp.zeros((count, 1, max_new_tokens), jnp.float32)
    return _Beams(
        step=jnp.int32(0),
        tokens=tokens,
        logp=logp,
        last=tokens[:, :, 0],
        best_tokens=tokens[:, 0],
        best_logp=logp[:, 0],
        best_length=jnp.zeros(count, jnp.int32),
        place=place,
    )


def _is_decided(beams: _Beams) -> jax.Array:
    """Returns bool[B]: no live candidate can become better than the best ended answer."""
    best_live = jnp.max(jnp.sum(beams.logp, axis=-1), axis=-1)
    is_beaten = (beams.best_length > 0) & (best_live < jnp.sum(beams.best_logp, axis=-1))
    return is_beaten | (best_live == -jnp.inf)


def _end_now(beams: _Beams, eos_logp: jax.Array, *, eos: int) -> _Beams:
    """Updates the best ended answer with what every live candidate is if it ends here.

    eos_logp: float32[B, K], -inf where an answer may not end. Of equal scores the older answer,
    then the first candidate wins.
    """
    ended_logp = _write(beams.logp, eos_logp, beams.step)
    ended_tokens = _write(beams.tokens, jnp.full(eos_logp.shape, eos, jnp.int32), beams.step)
    scores = jnp.sum(ended_logp, axis=-1)
    winner = jnp.argmax(scores, axis=-1)
    score = jnp.max(scores, axis=-1)
    is_first = (beams.best_length == 0) & (score != -jnp.inf)
    is_better = is_first | (score > jnp.sum(beams.best_logp, axis=-1))
    pick = jnp.arange(len(winner)), winner
    return beams._replace(
        best_tokens=jnp.where(is_better[:, None], ended_tokens[pick], beams.best_tokens),
        best_logp=jnp.where(is_better[:, None], ended_logp[pick], beams.best_logp),
        best_length=jnp.where(is_better, beams.step + 1, beams.best_length),
    )


def _live_on(beams: _Beams, logp: jax.Array, *, beam_size: int):
    """Returns the `beam_size` best continuations, and int32[B * beam_size]: their rows before.

    logp: float32[B, K, V], -inf for what may not come.
    """
    count, width, _ = logp.shape
    # The best continuations overall are among the best `beam_size` of each candidate.
    choice_logp, choice = jax.lax.top_k(logp, beam_size)
    scores = jnp.sum(beams.logp, axis=-1)[..., None] + choice_logp
    _, flat = jax.lax.top_k(scores.reshape(count, -1), beam_size)
    parent = flat // beam_size
    chosen = jnp.take_along_axis(choice.reshape(count, -1), flat, axis=-1)
    chosen_logp = jnp.take_along_axis(choice_logp.reshape(count, -1), flat, axis=-1)
    row = jnp.arange(count)[:, None]
    extended = beams._replace(
        step=beams.step + 1,
        tokens=_write(beams.tokens[row, parent], chosen, beams.step),
        logp=_write(beams.logp[row, parent], chosen_logp, beams.step),
        last=chosen,
        place=jax.tree.map(lambda x: x[row, parent], beams.place),
    )
    return extended, (row * width + parent).reshape(-1)


def _write(array: jax.Array, values: jax.Array, step: jax.Array) -> jax.Array:
    """Returns [B, K, N] `array` with [B, K] `values` at position `step`."""
    return jax.lax.dynamic_update_slice(array, values[..., None], (0, 0, step))
