"""What may be said next: automata as small tables on the device, followed by every row of a batch.

Token ids that no state tells apart form a class: all `<loc>` tokens but the first and the last, all
pieces that are letters of a JSON text. So the table is [states, classes], not [states, vocabulary].
Beside it stands how many tokens each state is away from the end of an answer. A token that would
lead further from the end than there is room may not come: an answer is never cut off.

    detect a ; b, 5 tokens left:  <loc><loc><loc><loc> -> label -> eos        fits 6, not 5
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.decoding import automaton

NOWHERE, END = 0, 1  # states; those of automata follow
MAX_ENTRIES = 2**27  # of a table: half a GB
NEVER = 2**30  # tokens to the end of an answer from where there is none

Tables = jax.Array | np.ndarray


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
    """

    classes: Tables
    moves: Tables
    left: Tables
    rising: Tables | None
    starts: Tables


class State(NamedTuple):
    """Where answers are, int32[...] each: a state, and the last two tokens."""

    node: jax.Array
    last: jax.Array
    before: jax.Array


def start(constraint: Constraint | None, index: jax.Array) -> State | None:
    """Returns where the rows int32[...] of a data set begin; None where all is free."""
    if constraint is None:
        return None
    starts = jnp.asarray(constraint.starts)
    node = starts[jnp.clip(index, 0, len(starts) - 1)]
    return State(node, jnp.full_like(node, -1), jnp.full_like(node, -1))


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
    fits = jnp.asarray(constraint.left)[targets] < room
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
    token_class = jnp.asarray(constraint.classes)[token]
    node = jnp.asarray(constraint.moves)[state.node, token_class]
    return State(node, token, state.last)


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
    grammars: Sequence[automaton.Automaton],
    *,
    grammar_of_row: Sequence[int] = (0,),
    eos: int,
    vocab_size: int,
) -> Constraint:
    """Returns the tables of automata over token ids.

    Args:
      grammars: without eos: it comes where they accept.
      grammar_of_row: which one each row of a data set follows; a single number serves all rows.
      eos: id that ends an answer.
      vocab_size: V, of the logits.
    """
    offsets = np.cumsum([2] + [len(grammar.moves) for grammar in grammars])
    moves: list[tuple[np.ndarray, np.ndarray]] = []
    rising = np.zeros(_round_up(offsets[-1]), bool)
    for offset, grammar in zip(offsets[:-1], grammars, strict=True):
        rising[[offset + state for state in grammar.rising]] = True
        for state, (ids, targets) in enumerate(grammar.moves):
            targets = targets + offset
            if state in grammar.accepting:
                ids, targets = np.append(ids, eos), np.append(targets, END)
            moves.append((ids.astype(np.int64), targets.astype(np.int64)))
    classes, num_classes = _classify(moves, vocab_size)
    if (size := len(rising) * num_classes) > MAX_ENTRIES:
        raise ValueError(
            f"{len(grammars)} grammars need a table of {size:.1e} numbers, and {MAX_ENTRIES:.1e} "
            f"is the limit: let rows share one grammar, as a list of all labels"
        )
    table = np.full((len(rising), _round_up(num_classes)), NOWHERE, np.int32)
    table[END] = END
    for state, (ids, targets) in enumerate(moves, start=2):
        table[state, classes[ids]] = targets
    return Constraint(
        classes=classes,
        moves=table,
        left=_tokens_to_end(moves, len(table)),
        rising=rising if rising.any() else None,
        starts=offsets[np.asarray(grammar_of_row)].astype(np.int32),
    )


def shortest_answers(constraint: Constraint) -> np.ndarray:
    """Returns int32[R], the least number of tokens, eos included, of an answer to each row."""
    return np.asarray(constraint.left)[np.asarray(constraint.starts)]


def _classify(
    moves: Sequence[tuple[np.ndarray, np.ndarray]], vocab_size: int
) -> tuple[np.ndarray, int]:
    """Returns int32[V], the same number for ids that lead to the same state from every state."""
    classes, count = np.zeros(vocab_size, np.int64), 1
    for ids, targets in moves:
        if len(ids):
            stride = targets.max() + 1
            _, split = np.unique(classes[ids] * stride + targets, return_inverse=True)
            classes[ids] = count + split
            count += split.max() + 1
    used, classes = np.unique(classes, return_inverse=True)
    return classes.astype(np.int32), len(used)


def _tokens_to_end(moves: Sequence[tuple[np.ndarray, np.ndarray]], num_states: int) -> np.ndarray:
    """Returns int32[S], how many tokens each state is away from END (breadth first, backwards)."""
    leads_here: list[list[int]] = [[] for _ in range(num_states)]
    for state, (_, targets) in enumerate(moves, start=2):
        for target in np.unique(targets):
            leads_here[target].append(state)
    left = np.full(num_states, NEVER, np.int32)
    left[END] = 0
    reached = [END]
    for state in reached:  # Grows while it is read.
        for before in leads_here[state]:
            if left[before] == NEVER:
                left[before] = left[state] + 1
                reached.append(before)
    return left


def _round_up(count: int) -> int:
    """Returns the next power of two: tables of few sizes, so that few programs are compiled."""
    return 1 << (int(count) - 1).bit_length()
