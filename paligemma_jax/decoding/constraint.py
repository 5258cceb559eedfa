"""What may be said next: automata as small tables on the device, followed by every row of a batch.

Token ids that no state tells apart form a class: all `<loc>` tokens but the first and the last, all
pieces that are letters of a JSON text. So the table is [states, classes], not [states, vocabulary].
Beside it stands how many tokens each state is away from the end of an answer. A token that would
lead further from the end than there is room may not come: an answer is never cut off.

    detect a ; b, 5 tokens left:  <loc><loc><loc><loc> -> label -> eos        fits 6, not 5

Characters of a JSON text with a maxLength are counted beside the state, so that the table is not
larger for a text of 1000 characters than for one of 10.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.decoding import automaton, grammars

NOWHERE, END = 0, 1  # states; those of automata follow
MAX_ENTRIES = 2**27  # of a table: half a GB
NEVER = 2**30  # tokens to the end of an answer from where there is none

Tables = jax.Array | np.ndarray
Grammar = automaton.Automaton | grammars.Spelt


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """What a counted part adds to a constraint: how many items it may have, and how many it has.

    Attributes:
      limits: int32[S], the items that the part which is open in a state may have; 0: none is open.
      added: int16[S, C], the items that a token adds to it.
      opened: int16[S, C], the items of the part that is open after a token; -1: the same part.
      spare: int32[J, S], the items that there must be room for to be done in `left` + 0, 1, ..
        tokens; the last one, to be done at all. J is 0 where `left` tokens always do.
    """

    limits: Tables
    added: Tables
    opened: Tables
    spare: Tables


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Constraint:
    """The automata of one or more grammars. S states, C classes, R rows of a data set.

    Attributes:
      classes: int32[V], the class of each token id.
      moves: int32[S, C], the state that a token leads to.
      left: int32[S], the least number of tokens, eos included, that ends an answer from here.
      rising: bool[S], the state wants an id above that of the token two before; None: no state
        does.
      starts: int32[R], the first state for each row of the data set; int32[1]: the same for all.
      counts: of counted parts; None: there is none.
    """

    classes: Tables
    moves: Tables
    left: Tables
    rising: Tables | None
    starts: Tables
    counts: Counts | None = None


class State(NamedTuple):
    """Where answers are, int32[...] each: a state, the last two tokens, items counted."""

    node: jax.Array
    last: jax.Array
    before: jax.Array
    items: jax.Array


def start(constraint: Constraint | None, index: jax.Array) -> State | None:
    """Returns where the rows int32[...] of a data set begin; None where all is free."""
    if constraint is None:
        return None
    starts = jnp.asarray(constraint.starts)
    node = starts[jnp.clip(index, 0, len(starts) - 1)]
    none = jnp.full_like(node, -1)
    return State(node, last=none, before=none, items=jnp.zeros_like(node))


def keep_allowed(
    constraint: Constraint | None, state: State | None, scores: jax.Array, *, room: jax.Array | int
) -> jax.Array:
    """Returns float[..., V] scores, -inf for what may not come.

    May come what the grammar says and what lets the answer end within `room` tokens; where it has
    ended already, everything.
    """
    if constraint is None or state is None:
        return scores
    targets = jnp.asarray(constraint.moves)[state.node]
    left = jnp.asarray(constraint.left)[targets]
    if constraint.counts is not None:
        left += _tokens_more(constraint.counts, state, targets)
    fits = left < room
    classes = jnp.asarray(constraint.classes)
    may_come = jnp.take(fits, classes, axis=-1, mode="clip")
    if constraint.rising is not None:
        floor = jnp.where(jnp.asarray(constraint.rising)[state.node], state.before, -1)
        may_come &= jnp.arange(len(classes)) > floor[..., None]
    return jnp.where(may_come, scores, -jnp.inf)


def advance(constraint: Constraint | None, state: State | None, token: jax.Array) -> State | None:
    """Returns where answers are after int32[...] token."""
    if constraint is None or state is None:
        return None
    at = state.node, jnp.asarray(constraint.classes)[token]
    items = state.items
    if constraint.counts is not None:
        items = _count(constraint.counts, at, state.items)
    return State(jnp.asarray(constraint.moves)[at], token, state.last, items)


def _count(counts: Counts, at: tuple[jax.Array, ...], items: jax.Array) -> jax.Array:
    """Returns the items that are counted after tokens, given `at` in the tables and those before.

    At most what the part may have: further no answer leads, whatever its token.
    """
    opened = jnp.asarray(counts.opened)[at].astype(jnp.int32)
    return jnp.where(opened < 0, items + jnp.asarray(counts.added)[at], opened)


def _tokens_more(counts: Counts, state: State, targets: jax.Array) -> jax.Array:
    """Returns how much further than `left` says the end is, int32[..., C], after each class."""
    items, limits = state.items[..., None], jnp.asarray(counts.limits)
    is_over = items + jnp.asarray(counts.added)[state.node] > limits[state.node][..., None]
    more = jnp.where(is_over, NEVER // 2, 0)
    rest = limits[targets] - _count(counts, (state.node,), items)
    for number, spare in enumerate(counts.spare):
        is_last = number == len(counts.spare) - 1
        lacks = rest < jnp.asarray(spare)[targets]
        more = jnp.maximum(more, jnp.where(lacks, NEVER // 2 if is_last else number + 1, 0))
    return more


def forbid(ids: Iterable[int], *, vocab_size: int) -> Constraint:
    """Returns the constraint that some ids never come, whose answers need not end.

    Raises:
      ValueError: an id outside the vocabulary.
    """
    rows = np.array(list(ids), np.int64)
    if len(wrong := rows[(rows < 0) | (rows >= vocab_size)]):
        raise ValueError(
            f"forbidden ids {wrong[:5].tolist()}: the vocabulary is 0..{vocab_size - 1}"
        )
    classes = np.isin(np.arange(vocab_size), rows).astype(np.int32)
    free = 2
    moves = np.array([[NOWHERE, NOWHERE], [END, END], [free, NOWHERE]], np.int32)
    left = np.array([NEVER, 0, 0], np.int32)
    return Constraint(classes, moves, left, None, np.array([free], np.int32))


def compile_grammars(
    languages: Sequence[Grammar],
    *,
    grammar_of_row: Sequence[int] = (0,),
    eos: int,
    vocab_size: int,
) -> Constraint:
    """Returns the tables of languages of token ids.

    Args:
      languages: without eos: it comes where they accept.
      grammar_of_row: which one each row of a data set follows; a single number serves all rows.
      eos: id that ends an answer.
      vocab_size: V, of the logits.
    """
    offsets = np.cumsum([2] + [len(_states(grammar).moves) for grammar in languages])
    spelt = [
        (int(offset), grammar)
        for offset, grammar in zip(offsets[:-1], languages, strict=True)
        if isinstance(grammar, grammars.Spelt)
    ]
    moves = [
        pair
        for offset, grammar in zip(offsets[:-1], languages, strict=True)
        for pair in _moves_of_ids(grammar, offset, eos)
    ]
    classes, num_classes = _classify(moves, [grammar.classes for _, grammar in spelt], vocab_size)
    num_states = _round_up(offsets[-1])
    if (size := num_states * num_classes) > MAX_ENTRIES:
        raise ValueError(
            f"{len(languages)} grammars need a table of {size:.1e} numbers, and {MAX_ENTRIES:.1e} "
            f"is the limit: let rows share one grammar, as a list of all labels"
        )
    table = np.full((num_states, _round_up(num_classes)), NOWHERE, np.int32)
    table[END] = END
    rising, limits = _mark_states(languages, offsets, num_states)
    for offset, grammar in spelt:
        _fill_in(table, grammar, offset, classes, grammar.moves.target + offset)
    for state, (ids, targets) in enumerate(moves, start=2):
        table[state, classes[ids]] = targets
    left, spare = _tokens_to_end(_distinct_moves(moves, spelt), limits)
    return Constraint(
        classes=classes,
        moves=table,
        left=left,
        rising=rising if rising.any() else None,
        starts=offsets[np.asarray(grammar_of_row)].astype(np.int32),
        counts=_count_tables(spelt, classes, limits, spare, table.shape) if limits.any() else None,
    )


def shortest_answers(constraint: Constraint) -> np.ndarray:
    """Returns int32[R], the least number of tokens, eos included, of an answer to each row."""
    return np.asarray(constraint.left)[np.asarray(constraint.starts)]


def _states(grammar: Grammar) -> automaton.Automaton:
    """Returns the automaton whose states are those of the grammar."""
    return grammar.over_bytes if isinstance(grammar, grammars.Spelt) else grammar


def _mark_states(
    languages: Sequence[Grammar], offsets: np.ndarray, num_states: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns bool[S] of `Constraint.rising` and int32[S] of `Counts.limits`."""
    rising, limits = np.zeros(num_states, bool), np.zeros(num_states, np.int32)
    for offset, grammar in zip(offsets[:-1], map(_states, languages), strict=True):
        rising[[offset + state for state in grammar.rising]] = True
        limits[[offset + state for state in grammar.limits]] = list(grammar.limits.values())
    return rising, limits


def _moves_of_ids(
    grammar: Grammar, offset: int, eos: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (ids, the states they lead to) for each state; of a spelt language only those of eos.

    Raises:
      ValueError: counted parts in an automaton that is not spelt.
    """
    is_spelt = isinstance(grammar, grammars.Spelt)
    over = _states(grammar)
    if over.limits and not is_spelt:
        raise ValueError(
            "a grammar with counted parts: make one of its pieces, with grammars.spell"
        )
    none = np.zeros(0, np.int64)
    for state, (ids, targets) in enumerate(over.moves):
        ids, targets = (none, none) if is_spelt else (ids.astype(np.int64), targets + offset)
        if state in over.accepting:
            ids, targets = np.append(ids, eos), np.append(targets, END)
        yield ids, targets.astype(np.int64)


def _classify(
    moves: Sequence[tuple[np.ndarray, np.ndarray]],
    spelt_classes: Sequence[np.ndarray],
    vocab_size: int,
) -> tuple[np.ndarray, int]:
    """Returns int32[V], the same number for ids that lead to the same state from every state."""
    classes = np.zeros(vocab_size, np.int64)
    for finer in spelt_classes:
        kept = np.zeros(vocab_size, np.int64)
        kept[: len(finer)] = finer
        _, classes = np.unique(classes * (kept.max() + 1) + kept, return_inverse=True)
    count = classes.max(initial=0) + 1
    for ids, targets in moves:
        if len(ids):
            stride = targets.max() + 1
            _, split = np.unique(classes[ids] * stride + targets, return_inverse=True)
            classes[ids] = count + split
            count += split.max() + 1
    used, classes = np.unique(classes, return_inverse=True)
    return classes.astype(np.int32), len(used)


def _fill_in(
    table: np.ndarray, grammar: grammars.Spelt, offset: int, classes: np.ndarray, values: np.ndarray
) -> None:
    """Writes a value for each move of a spelt language into its rows of a table [S, C]."""
    own = np.full(
        (len(_states(grammar).moves), grammar.classes.max(initial=0) + 1), table[offset, 0]
    )
    own[grammar.moves.source, grammar.moves.symbol] = values
    used, first = np.unique(classes, return_index=True)
    column = np.where(first < len(grammar.classes), first, 0)
    own_class = np.where(first < len(grammar.classes), grammar.classes[column], 0)
    table[offset : offset + len(own), used] = own[:, own_class]


def _count_tables(
    spelt: Sequence[tuple[int, grammars.Spelt]],
    classes: np.ndarray,
    limits: np.ndarray,
    spare: np.ndarray,
    shape: tuple[int, int],
) -> Counts:
    added, opened = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
    for offset, grammar in spelt:
        _fill_in(added, grammar, offset, classes, grammar.moves.added)
        _fill_in(opened, grammar, offset, classes, grammar.moves.opened)
    return Counts(limits, added, opened, spare)


def _distinct_moves(
    moves: Sequence[tuple[np.ndarray, np.ndarray]],
    spelt: Sequence[tuple[int, grammars.Spelt]],
) -> tuple[np.ndarray, ...]:
    """Returns (source, target, added, opened) int64[n] of all moves, each once, by source."""
    parts = []
    for state, (_, targets) in enumerate(moves, start=2):
        if len(targets):
            reached = np.unique(targets)
            none = np.zeros_like(reached)
            parts.append((none + state, reached, none, none))
    for offset, grammar in spelt:
        own = grammar.moves
        parts.append((own.source + offset, own.target + offset, own.added, own.opened))
    source, target, added, opened = map(np.concatenate, zip(*parts, strict=True))
    sizes = (int(source.max(initial=0)) + 1, int(target.max(initial=0)) + 1)
    sizes += (int(added.max(initial=0)) + 1, int(opened.max(initial=0)) + 2)
    packed = np.unique(np.ravel_multi_index((source, target, added, opened + 1), sizes))
    source, target, added, opened = np.unravel_index(packed, sizes)
    return source, target, added, opened - 1


def _tokens_to_end(
    moves: tuple[np.ndarray, ...], limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns int32[S], the least number of tokens from each state to END, and `Counts.spare`.

    Step by step: how much room a counted part must have for an answer to end within k tokens is
    what the best next token adds to it and what it must have after that for k - 1.
    """
    source, target, added, opened = moves
    counted = np.flatnonzero(limits)
    first = np.flatnonzero(np.diff(source, prepend=-1))
    needed = np.full(len(limits), NEVER, np.int64)  # NEVER: not within so many tokens
    needed[END] = 0
    left, history = np.where(needed < NEVER, 0, NEVER).astype(np.int32), [needed[counted]]
    while True:
        same = added + needed[target]
        fresh = np.where(limits[target] - opened >= needed[target], added, NEVER)
        cost = np.where(opened < 0, same, fresh)
        cost[cost > limits[source]] = NEVER
        lower = needed.copy()
        lower[source[first]] = np.minimum(needed[source[first]], np.minimum.reduceat(cost, first))
        if np.array_equal(lower, needed):
            break
        needed = lower
        left[(left == NEVER) & (needed < NEVER)] = len(history)
        history.append(needed[counted])
    spare = np.zeros((0, len(limits)), np.int32)
    rows = _from_left(np.stack(history), left[counted])
    if rows.any():
        spare = np.zeros((len(rows), len(limits)), np.int32)
        spare[:, counted] = rows
    return left, spare


def _from_left(history: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Returns int32[J, n], rows left, left + 1, .. of each column of a history, up to its last."""
    alive = left < NEVER
    final = np.where(alive, history[-1], 0)
    rows = []
    while True:
        row = history[np.minimum(left + len(rows), len(history) - 1), np.arange(len(left))]
        rows.append(np.where(alive, row, 0))
        if np.array_equal(rows[-1], final):
            return np.stack(rows).astype(np.int32)


def _round_up(count: int) -> int:
    """Returns the next power of two: tables of few sizes, so that few programs are compiled."""
    return 1 << (int(count) - 1).bit_length()
