"""Grammars of answers, as automata over token ids.

Text that is known beforehand, labels and listed answers, is spelt as the tokenizer spells it where
it stands in an answer, and in no other way: so a model was taught it, a text has one probability,
and beams do not fill up with spellings of the same text. JSON is spelt in every way there is, for
where its texts and numbers end is not known beforehand, and pieces reach over these borders.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from paligemma_jax.data import tokens
from paligemma_jax.decoding import automaton, json_grammar
from paligemma_jax.tasks import box_text

BOX = "".join(tokens.LOC_PIECES[:4])


def objects(
    tokenizer: tokens.Tokenizer,
    labels: Sequence[str],
    *,
    num_segs: int,
    check: Callable[[str], str | None],
    room: int,
) -> automaton.Automaton:
    """Returns the grammar of objects: boxes that have an area, each with one of the labels.

    `<loc><loc><loc><loc> label` joined by ` ; `, or nothing; with `num_segs` `<seg>` tokens behind
    every box. The label "" stands for an object without label, as referring expressions have it.

    Args:
      tokenizer: of the model.
      labels: that an object may have.
      num_segs: 0 for boxes alone.
      check: (text) -> what is wrong with it, of the task.
      room: tokens that an answer may have, eos included.

    Raises:
      ValueError: no label; one that would not read back, or of which no object fits into `room`.
    """
    if not labels:
        raise ValueError("a grammar of objects without a label")
    segs = automaton.repeat(automaton.symbols(tokenizer.seg_ids), least=num_segs, most=num_segs)
    part = automaton.sequence(_box(tokenizer), segs) if num_segs else _box(tokenizer)
    text = BOX + "".join(tokens.SEG_PIECES[:num_segs])
    taken, loc = len(tokenizer.encode(text)), tokenizer.loc_ids[0]
    inner, last = [], []
    for label in labels:
        named = f"{text} {label}" if label else text
        if problem := check(named):
            raise ValueError(f"label '{label}': {problem}")
        ids = tokenizer.encode(named)
        _check_room(f"an object with the label '{label}'", len(ids) + 1, room)
        last.append(automaton.text(ids[taken:]))
        # Where another object follows, what parts them may be one piece with the label.
        ids = tokenizer.encode(f"{named}{box_text.SEPARATOR}{tokens.LOC_PIECES[0]}")
        inner.append(automaton.text(ids[taken : ids.index(loc, taken)]))
    more = automaton.repeat(automaton.sequence(part, automaton.either(*inner)))
    written = automaton.sequence(more, part, automaton.either(*last))
    return automaton.determinize(automaton.optional(written))


def choose(
    tokenizer: tokens.Tokenizer, answers: Sequence[str], *, room: int
) -> automaton.Automaton:
    """Returns the grammar of a closed list of answers.

    Raises:
      ValueError: an empty list; an answer that the tokenizer does not give back, or that does not
        fit into `room` tokens, eos included.
    """
    if not answers:
        raise ValueError("a list of answers without an answer")
    spelt = [tokenizer.encode_answer(answer) for answer in answers]
    for answer, ids in zip(answers, spelt, strict=True):
        if (decoded := tokenizer.decode(ids)) != answer:
            raise ValueError(f"answer '{answer}': the tokenizer reads it back as '{decoded}'")
        _check_room(f"answer '{answer}'", len(ids) + 1, room)
    return automaton.determinize(automaton.either(*map(automaton.text, spelt)))


def write_json(tokenizer: tokens.Tokenizer, schema: json_grammar.Schema) -> "Spelt":
    """Returns the grammar of JSON texts of a schema; see `json_grammar.make`.

    Raises:
      ValueError: a schema outside the subset, or one that is too large.
    """
    try:
        start = automaton.text(tokenizer.answer_start.encode())
        over_bytes = automaton.determinize(automaton.sequence(start, json_grammar.make(schema)))
    except automaton.TooLargeError as error:
        raise ValueError(f"JSON schema: {error}: {json_grammar.SMALLER}") from None
    return spell(over_bytes, tokenizer.spellings())


def _box(tokenizer: tokens.Tokenizer) -> automaton.Part:
    """Four `<loc>`: y1 x1 y2 x2 with y2 > y1 and x2 > x1, so never the last place first."""
    tokens.check_has_places(tokenizer, "a grammar of objects")
    first = automaton.symbols(tokenizer.loc_ids[:-1])
    second = automaton.rising(tokenizer.loc_ids)
    return automaton.sequence(first, first, second, second)


def _check_room(what: str, needed: int, room: int) -> None:
    if needed > room:
        raise ValueError(
            f"{what} takes {needed} tokens, and there is room for {room}: set max_new_tokens"
        )


# Texts spelt with the pieces of a vocabulary: an automaton over bytes read by token ids.
#
# What a piece does is a function: from each state of the automaton to the state where its bytes
# lead. Of a vocabulary's 250,000 pieces most do the same (a word and another word within a text),
# so ids fall into classes of equal functions. Functions are put together byte by byte along all
# pieces at once; what was put together before is looked up. So the work grows with the number of
# different functions, not with states times pieces.

DEAD, IDENTITY = 0, 1  # functions: no state may read it; nothing was read


class Moves:
    """What pieces do where they may come, a move in each place of int32 arrays of equal length.

    Attributes:
      symbol: the class of pieces (while they are made: the function).
      source, target: the states before and after.
      added: items that the counted part which is open at `source` grows by.
      opened: items of another counted part, which the piece opened and leaves open at `target`;
        0 where none is open there; -1: the part of `source` is open still.
    """

    def __init__(
        self,
        symbol: np.ndarray,
        source: np.ndarray,
        target: np.ndarray,
        added: np.ndarray,
        opened: np.ndarray,
    ):
        self.symbol, self.source, self.target = symbol, source, target
        self.added, self.opened = added, opened

    def __len__(self) -> int:
        return len(self.symbol)

    def __getitem__(self, chosen: np.ndarray) -> "Moves":
        return Moves(*(array[chosen] for array in self.arrays()))

    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.symbol, self.source, self.target, self.added, self.opened


@dataclasses.dataclass(frozen=True, eq=False)
class Spelt:
    """A language of token ids, all ways to spell the texts of an automaton over bytes.

    Attributes:
      over_bytes: the automaton; its states are those of the language.
      classes: int32[V], the class of each id; 0: ids that may not come anywhere.
      moves: of classes.
    """

    over_bytes: automaton.Automaton
    classes: np.ndarray
    moves: Moves


def spell(over_bytes: automaton.Automaton, pieces: Sequence[bytes | None]) -> Spelt:
    """Returns the language of token ids of an automaton over bytes.

    Every way to spell a text with pieces is in it, so also the tokenizer's own, whose pieces may
    reach over the border between, say, a JSON text and what follows it.

    Args:
      over_bytes: its symbols are 0..255.
      pieces: the text of each token id as UTF-8; None: a token without text of its own.
    """
    ids = np.array([i for i, piece in enumerate(pieces) if piece], np.int64)
    lengths = np.array([len(piece) for piece in pieces if piece], np.int64)
    text = np.frombuffer(b"".join(piece for piece in pieces if piece), np.uint8)
    functions = _Functions(over_bytes, longest=int(lengths.max(initial=1)))
    letters = functions.letter_of_byte[text]
    where = np.cumsum(lengths) - lengths
    symbols = np.full(len(ids), DEAD, np.int64)
    rows, current = np.arange(len(ids)), np.full(len(ids), IDENTITY, np.int64)
    for position in range(int(lengths.max(initial=0))):
        current = functions.extend(current, letters[where[rows] + position])
        is_read = lengths[rows] == position + 1
        symbols[rows[is_read]] = current[is_read]
        is_alive = ~is_read & (current != DEAD)
        rows, current = rows[is_alive], current[is_alive]
    used = np.unique(np.append(symbols, DEAD))  # DEAD, the first, becomes class 0.
    classes = np.zeros(len(pieces), np.int32)
    classes[ids] = np.searchsorted(used, symbols)
    moves = functions.moves
    moves = moves[np.isin(moves.symbol, used)]
    moves.symbol = np.searchsorted(used, moves.symbol)
    return Spelt(over_bytes, classes, moves)


class _Functions:
    """Functions of states, each once, and a table of what each becomes with one more byte.

    A function is its moves where it leads anywhere, and is known by a 64-bit hash of these.
    """

    def __init__(self, over_bytes: automaton.Automaton, *, longest: int):
        """longest: bytes of a piece."""
        count = len(over_bytes.moves)
        table = np.full((count + 1, 256), count, np.int32)
        for state, (chosen, targets) in enumerate(over_bytes.moves):
            table[state, chosen] = targets
        # Bytes that no state tells apart are one letter.
        table, letter = np.unique(table, axis=1, return_inverse=True)
        self.table, self.letter_of_byte, self.nowhere = table, letter.reshape(-1), count
        self.limits = np.zeros(count + 1, np.int32)
        self.limits[list(over_bytes.limits)] = list(over_bytes.limits.values())
        self.is_between = np.zeros(count + 1, bool)
        self.is_between[list(over_bytes.between)] = True
        self.longest = longest
        states, zeros = np.arange(count, dtype=np.int32), np.zeros(count, np.int32)
        opened = np.where(self.limits[:-1] > 0, -1, 0).astype(np.int32)
        self.moves = Moves(zeros + IDENTITY, states, states, zeros, opened)
        self.after = np.full((64, table.shape[1]), -1, np.int64)
        self.after[DEAD] = DEAD
        self.numbers = {0: DEAD, int(self._hash(self.moves).sum()): IDENTITY}

    def extend(self, functions: np.ndarray, letters: np.ndarray) -> np.ndarray:
        """Returns int64[n], what int64[n] functions are followed by a letter each."""
        new = self.after[functions, letters] < 0
        if new.any():
            width = self.after.shape[1]
            pairs = np.unique(functions[new] * width + letters[new])
            self._make(pairs // width, pairs % width)
        return self.after[functions, letters]

    def _make(self, functions: np.ndarray, letters: np.ndarray) -> None:
        """Makes the functions that int64[n] functions are with int64[n] letters behind them."""
        before = self.moves
        first = np.searchsorted(before.symbol, functions)
        sizes = np.searchsorted(before.symbol, functions, side="right") - first
        pair = np.repeat(np.arange(len(functions)), sizes)
        ends = np.cumsum(sizes)
        rows = np.arange(len(pair)) - np.repeat(ends - sizes - first, sizes)
        moves = self._read(before[rows], letters[pair])
        moves.symbol = pair[moves.symbol]
        total = np.append(np.uint64(0), np.cumsum(self._hash(moves)))
        last = np.searchsorted(moves.symbol, np.arange(len(functions)), side="right")
        sums = np.diff(total[last], prepend=np.uint64(0))
        known = len(self.numbers)
        numbers = np.array([self.numbers.setdefault(h, len(self.numbers)) for h in sums.tolist()])
        while len(self.after) < len(self.numbers):
            self.after = np.concatenate([self.after, np.full_like(self.after, -1)])
        self.after[functions, letters] = numbers
        # Of equal new functions the first is kept; numbers rise in the order of first pairs.
        _, kept = np.unique(numbers, return_index=True)
        is_kept = np.zeros(len(functions), bool)
        is_kept[kept] = numbers[kept] >= known
        added = moves[is_kept[moves.symbol]]
        added.symbol = numbers[added.symbol].astype(np.int32)
        if len(added):
            both = zip(before.arrays(), added.arrays(), strict=True)
            self.moves = Moves(*map(np.concatenate, both))

    def _read(self, moves: Moves, letters: np.ndarray) -> Moves:
        """Returns the moves that are left after one more letter; `symbol` is the place before."""
        target = self.table[moves.target, letters]
        goes_on = (self.limits[moves.target] > 0) & (self.limits[target] > 0)
        step = goes_on & self.is_between[moves.target]
        is_same = goes_on & (moves.opened < 0)
        added = moves.added + (step & is_same)
        opened = np.where(is_same, -1, np.where(goes_on, moves.opened + step, 0))
        in_time = (added <= self.limits[moves.source]) & (opened <= self.limits[target])
        alive = np.flatnonzero((target < self.nowhere) & in_time)
        return Moves(
            alive.astype(np.int32), moves.source[alive], target[alive], added[alive], opened[alive]
        )

    def _hash(self, moves: Moves) -> np.ndarray:
        """Returns uint64[n], a well-mixed number for each move (splitmix64's finalizer)."""
        width = self.longest + 2
        mixed = moves.source.astype(np.uint64)
        for size, values in (
            (self.nowhere, moves.target),
            (width, moves.added),
            (width, moves.opened + 1),
        ):
            mixed = mixed * np.uint64(size) + values.astype(np.uint64)
        mixed += np.uint64(1)  # No move is 0, which a sum would not show.
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
