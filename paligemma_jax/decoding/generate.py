"""Answers from a model: prefill, then token after token, all inside one compiled program.

The model comes in as three functions, so that anything with a cache can be decoded:

    prefill(params, batch)              -> (float32[B, V] logits after the prompt, cache)
    decode_step(params, cache, token)   -> (float32[B, V] logits after int32[B] token, cache)
    select_rows(cache, rows)            -> the cache of int32[b] rows of the batch

`generate` samples; `beam_search` does beam search; both hold answers to a `constraint` if one is
given. Jit the call once and keep it: nothing in here talks to the host. The cache must have room
for max_new_tokens - 1 tokens after the prompt.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from paligemma_jax.decoding import constraint as constraints

PAD = 0

Cache = Any
Params = Any
Prefill = Callable[[Params, Mapping[str, Any]], tuple[jax.Array, Cache]]
DecodeStep = Callable[[Params, Cache, jax.Array], tuple[jax.Array, Cache]]
SelectRows = Callable[[Cache, jax.Array], Cache]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generation:
    """What a batch of prompts was answered with. A row's eos belongs to its answer.

    tokens: int32[B, N], PAD after the row's eos.
    logp: float32[B, N], log-probability of each token under the model itself (no temperature, no
      constraint), 0 after the row's eos. A row's sum is its score.
    length: int32[B], tokens up to and with eos; N where no eos came.
    index: int32[B], the batch's `index`: which row of the data set this is.
    is_real: bool[B], the batch's `_mask`: False for a row that only fills the batch.
    """

    tokens: jax.Array
    logp: jax.Array
    length: jax.Array
    index: jax.Array
    is_real: jax.Array


def generate(
    prefill: Prefill,
    decode_step: DecodeStep,
    select_rows: SelectRows,
    params: Params,
    batch: Mapping[str, Any],
    *,
    max_new_tokens: int,
    eos: int,
    sampler: str = "greedy",
    temperature: float = 1.0,
    top_p: float = 1.0,
    rng: jax.Array | None = None,
    best_of: int = 1,
    constraint: constraints.Constraint | None = None,
) -> Generation:
    """Samples an answer to every prompt; stops as soon as each real row holds its eos.

    Args:
      batch: what `prefill` reads, and `_mask` bool[B] (False = row that only fills the batch) and
        `index` int32[B] (row of the data set).
      sampler: a key of SAMPLERS.
      temperature: divides the logits (temperature and nucleus).
      top_p: nucleus draws from the smallest set of tokens that has this probability.
      rng: key, for the samplers that draw. A draw depends on (rng, index, candidate, step) only:
        not on the other rows of the batch.
      best_of: candidates per prompt; the one with the highest sum of log-probabilities is kept.
      constraint: what may be chosen; of a grammar, one that fits max_new_tokens for every row (see
        `constraint.shortest_answers`). Log-probabilities stay those of the full vocabulary, so that
        a forbidden token (pix2seq's noise class) still lowers the confidence of the others.

    Raises:
      ValueError: settings that contradict each other, or a batch without `_mask` or `index`.
    """
    check_sampling(sampler, temperature=temperature, top_p=top_p)
    if sampler != "greedy" and rng is None:
        raise ValueError(f"sampler '{sampler}' draws at random: pass rng=jax.random.key(seed)")
    check_positive(max_new_tokens=max_new_tokens, best_of=best_of)
    index, is_real = row_identity(batch)
    logits, cache = prefill(params, batch)
    if best_of > 1:
        rows = jnp.repeat(jnp.arange(len(index)), best_of)
        logits, cache = logits[rows], select_rows(cache, rows)
    append = functools.partial(
        _append,
        sample=functools.partial(SAMPLERS[sampler], temperature=temperature, top_p=top_p),
        rngs=None if rng is None else _row_keys(rng, index, best_of),
        constraint=constraint,
        eos=eos,
    )

    def is_unfinished(state):
        answers, _ = state
        is_needed = jnp.repeat(is_real, best_of) & ~answers.ended
        return (answers.step < max_new_tokens) & jnp.any(is_needed)

    def extend(state):
        answers, cache = state
        logits, cache = decode_step(params, cache, answers.last)
        return append(answers, logits), cache

    place = constraints.start(constraint, jnp.repeat(index, best_of))
    answers = append(_empty_answers(len(logits), max_new_tokens, place), logits)
    answers, _ = jax.lax.while_loop(is_unfinished, extend, (answers, cache))
    best = _best_rows(answers.logp, best_of)
    answer = answers.tokens[best], answers.logp[best], answers.length[best]
    return Generation(*answer, index=index, is_real=is_real)


def sample_greedy(logits, rngs, *, temperature, top_p):
    """Returns the likeliest token of each row, the first one of equals."""
    del rngs, temperature, top_p  # Refused by check_sampling.
    return jnp.argmax(logits, axis=-1)


def sample_temperature(logits, rngs, *, temperature, top_p):
    """Draws each row's token from softmax(logits / temperature)."""
    del top_p  # Refused by check_sampling.
    return jax.vmap(jax.random.categorical)(rngs, logits / temperature)


def sample_nucleus(logits, rngs, *, temperature, top_p):
    """Draws from the smallest set of likeliest tokens with mass >= top_p (arXiv:1904.09751)."""
    logits = logits / temperature
    ids = jnp.argsort(logits, axis=-1, descending=True)
    ranked = jnp.take_along_axis(logits, ids, axis=-1)
    probs = jax.nn.softmax(ranked, axis=-1)
    # A token belongs to the set if those before it do not reach top_p yet: the first always does.
    mass_before = jnp.pad(jnp.cumsum(probs, axis=-1)[:, :-1], ((0, 0), (1, 0)))
    is_kept = mass_before < top_p
    rank = jax.vmap(jax.random.categorical)(rngs, jnp.where(is_kept, ranked, -jnp.inf))
    return jnp.take_along_axis(ids, rank[:, None], axis=-1)[:, 0]


# (float32[B, V] logits, key[B] or None, *, temperature, top_p) -> int32[B] tokens.
SAMPLERS = {
    "greedy": sample_greedy,
    "temperature": sample_temperature,
    "nucleus": sample_nucleus,
}


def row_identity(batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Returns the batch's (index int32[B], _mask bool[B])."""
    if missing := {"index", "_mask"} - set(batch):
        raise ValueError(
            f"batch to decode: keys {sorted(missing)} missing; found {sorted(batch)}. Give every "
            f"row its number as 'index' and True as '_mask' (False: it only fills the batch)"
        )
    return jnp.asarray(batch["index"], jnp.int32), jnp.asarray(batch["_mask"], bool)


def token_logp(logits: jax.Array, token: jax.Array) -> jax.Array:
    """Returns float32[B], the log-probability of int32[B] token under float32[B, V] logits."""
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


class _Answers(NamedTuple):
    """The answers so far; C = B * best_of candidates."""

    step: jax.Array  # int32[], tokens written
    tokens: jax.Array  # int32[C, N]
    logp: jax.Array  # float32[C, N]
    length: jax.Array  # int32[C]
    ended: jax.Array  # bool[C], holds eos
    last: jax.Array  # int32[C], to be fed next
    place: constraints.State | None  # int32[C] each


def _empty_answers(count: int, max_new_tokens: int, place: constraints.State | None) -> _Answers:
    return _Answers(
        step=jnp.int32(0),
        tokens=jnp.full((count, max_new_tokens), PAD, jnp.int32),
        logp=jnp.zeros((count, max_new_tokens), jnp.float32),
        length=jnp.zeros(count, jnp.int32),
        ended=jnp.zeros(count, bool),
        last=jnp.full(count, PAD, jnp.int32),
        place=place,
    )


def _append(answers: _Answers, logits: jax.Array, *, sample, rngs, constraint, eos) -> _Answers:
    """Chooses the next token of every candidate, given float32[C, V] logits."""
    step_rngs = None
    if rngs is not None:
        step_rngs = jax.vmap(jax.random.fold_in, (0, None))(rngs, answers.step)
    room = answers.tokens.shape[1] - answers.step
    choices = constraints.keep_allowed(constraint, answers.place, logits, room=room)
    token = sample(choices, step_rngs).astype(jnp.int32)
    place = constraints.advance(constraint, answers.place, token)
    logp = jnp.where(answers.ended, 0.0, token_logp(logits, token))
    token = jnp.where(answers.ended, PAD, token)
    at = (0, answers.step)
    return _Answers(
        step=answers.step + 1,
        tokens=jax.lax.dynamic_update_slice(answers.tokens, token[:, None], at),
        logp=jax.lax.dynamic_update_slice(answers.logp, logp[:, None], at),
        length=answers.length + ~answers.ended,
        ended=answers.ended | (token == eos),
        last=token,
        place=place,
    )


def _best_rows(logp: jax.Array, best_of: int) -> jax.Array:
    """Returns int32[B], the best-scoring row among each prompt's `best_of` neighbours."""
    scores = jnp.sum(logp, axis=-1).reshape(-1, best_of)
    return jnp.arange(len(scores)) * best_of + jnp.argmax(scores, axis=-1)


def _row_keys(rng: jax.Array, index: jax.Array, best_of: int) -> jax.Array:
    """Returns key[B * best_of]: a function of each row's index and its candidate's number."""
    row = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.repeat(index, best_of))
    candidate = jnp.tile(jnp.arange(best_of), len(index))
    return jax.vmap(jax.random.fold_in)(row, candidate)


def check_positive(**counts: int) -> None:
    """Raises a ValueError that names the counts which are below 1."""
    if wrong := {name: count for name, count in counts.items() if count < 1}:
        raise ValueError(f"must be at least 1: {wrong}")


def check_sampling(sampler: str, *, temperature: float, top_p: float) -> None:
    """Raises a ValueError for settings that contradict each other."""
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler '{sampler}' is none of {sorted(SAMPLERS)}")
    if sampler == "greedy" and temperature != 1.0:
        raise ValueError(f"temperature={temperature} has no effect on sampler 'greedy'")
    if sampler != "nucleus" and top_p != 1.0:
        raise ValueError(f"top_p={top_p} has an effect on sampler 'nucleus' only, not '{sampler}'")
    if not temperature > 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"need temperature > 0 and 0 < top_p <= 1; got {temperature}, {top_p}. "
            f"Without randomness: sampler 'greedy'"
        )


# Beam search, with big_vision's rules.
#
# Each step asks of every live candidate what it would score if it ended now, and keeps the best
# ended answer seen so far; then the `beam_size` likeliest continuations that are not eos live on.
# Scores are sums of log-probabilities, not divided by the length: log-probabilities are never
# positive, so a row is decided once its best live candidate scores below its best ended answer.


def beam_search(
    prefill: Prefill,
    decode_step: DecodeStep,
    select_rows: SelectRows,
    params: Params,
    batch: Mapping[str, Any],
    *,
    beam_size: int,
    max_new_tokens: int,
    eos: int,
    constraint: constraints.Constraint | None = None,
) -> Generation:
    """Returns the best ended answer to every prompt; see `generate` for the arguments.

    An answer always ends in eos: at the last position it is forced, at eos's own log-probability.
    What a constraint does not allow is never chosen, log-probabilities stay as they are. Where it
    allows fewer continuations than there are beams, the other beams are dead (-inf). Under one that
    never lets an answer end there is none: its length is 0.

    Raises:
      ValueError: fewer than `beam_size` tokens to choose from, or a batch without `_mask` or
        `index`.
    """
    check_positive(max_new_tokens=max_new_tokens, beam_size=beam_size)
    index, is_real = row_identity(batch)
    logits, cache = prefill(params, batch)
    if beam_size > (choices := logits.shape[-1] - 1):
        raise ValueError(f"beam_size={beam_size}, but only {choices} tokens can be chosen")
    is_eos = jnp.arange(logits.shape[-1]) == eos

    def advance(beams: "_Beams", logits: jax.Array, cache: Cache):
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
    return Generation(
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
    tokens = jnp.full((count, 1, max_new_tokens), PAD, jnp.int32)
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
