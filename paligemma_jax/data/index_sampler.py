"""Which records a training step reads: a function of (seed, step), for one source or several.

Sources take turns by their weights in an even pattern, no source more than a few examples ahead of
its share at any time: with weights 2 and 1 the turns are b a a b a a ... Each source is read in
passes, every pass a permutation of its own.

Random numbers follow from where they are used and are the same with every version of numpy: the raw
stream of a bit generator is fixed; the methods of `numpy.random.Generator` may change (NEP 19). A
resumed run needs both properties, and several processes need the first.
"""

import dataclasses
import functools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

# Shares are taken as the nearest fraction with such a denominator, so that turns are exact.
MAX_DENOMINATOR = 1_000_000


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that training draws from; its records stand in a row among all records.

    Attributes:
      name: for reports.
      num_records: at least one.
      weight: its part of the examples, relative to the other sources'.
    """

    name: str
    num_records: int
    weight: float = 1.0

    def __post_init__(self):
        if self.num_records < 1:
            raise ValueError(f"{self.name}: no records to make batches of")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"{self.name}: weight {self.weight}, expected a number above 0")


class Order:
    """The records of every step.

    Attributes:
      sources: what the records are from, in the order in which they stand.
      batch_size: examples per step, over all processes.
    """

    def __init__(self, seed: int, sources: Sequence[Source], *, batch_size: int):
        self.sources, self.batch_size = tuple(sources), batch_size
        self._starts = np.cumsum([0, *(source.num_records for source in sources)])
        # A step may need the end of one pass and the beginning of the next.
        self._permutations = [
            functools.lru_cache(maxsize=2)(
                functools.partial(permutation, seed, size=source.num_records, source=number)
            )
            for number, source in enumerate(self.sources)
        ]

    def positions(self, step: int) -> np.ndarray:
        """Returns int64[batch_size]: the places of a step's examples in the run, from 0."""
        return np.arange(step * self.batch_size, (step + 1) * self.batch_size)

    def records(self, step: int) -> np.ndarray:
        """Returns int64[batch_size], numbers of records; steps count from 0."""
        chosen, turn = take_turns(self.positions(step), [s.weight for s in self.sources])
        numbers = np.empty_like(turn)
        for number, source in enumerate(self.sources):
            is_mine = chosen == number
            numbers[is_mine] = self._starts[number] + self._read(number, turn[is_mine], source)
        return numbers

    def _read(self, number: int, turn: np.ndarray, source: Source) -> np.ndarray:
        """Returns which of a source's own records each turn reads."""
        epoch, offset = np.divmod(turn, source.num_records)
        indices = np.empty_like(turn)
        for e in np.unique(epoch).tolist():
            here = epoch == e
            indices[here] = self._permutations[number](e)[offset[here]]
        return indices


def passes(sources: Sequence[Source], num_examples: int) -> dict[str, float]:
    """Returns how often each source has been read after so many examples: {name: passes}."""
    positions = np.array([num_examples])
    weights = [source.weight for source in sources]
    num_passes = {}
    for number, source in enumerate(sources):
        taken = _turns_before(positions, weights)[number]
        num_passes[source.name] = float(taken[0]) / source.num_records
    return num_passes


def take_turns(positions: np.ndarray, weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (int64[n] which source each position reads, int64[n] how often it was read before).

    The first source takes the turns at which its share of all positions passes an integer; what is
    left are the positions that the second one shares with those after it, and so on.
    """
    chosen = np.full(len(positions), -1)
    turn = np.zeros_like(positions)
    before, after = _turns_before(positions, weights), _turns_before(positions + 1, weights)
    for number in range(len(weights)):
        is_mine = after[number] > before[number]
        chosen[is_mine] = number
        turn[is_mine] = before[number][is_mine]
    return chosen, turn


def _turns_before(positions: np.ndarray, weights: Sequence[float]) -> list[np.ndarray]:
    """Returns for each source int64[n], how many of the positions below each one are its own."""
    exact = [Fraction(weight) for weight in weights]
    turns, left = [], np.asarray(positions, np.int64)
    for number, weight in enumerate(exact):
        share = (weight / sum(exact[number:])).limit_denominator(MAX_DENOMINATOR)
        share = max(share, Fraction(1, MAX_DENOMINATOR))
        mine = left * share.numerator // share.denominator
        turns.append(mine)
        left = left - mine
    return turns


# Every use of `uniforms` has numbers of its own.
AUGMENT, SHUFFLE_OBJECTS, NOISE_BOXES, DRAW_ANSWERS = range(4)
# Keys of `uniforms`; those of permutations stay below.
UNIFORMS = 1 << 63
# Passes over one source before the keys of the next source begin.
PASSES = 1 << 40


def permutation(seed: int, epoch: int, size: int, *, source: int = 0) -> np.ndarray:
    """Returns int64[size], the order of a source's records in one pass over them."""
    key = np.array([seed, source * PASSES + epoch], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable")


def uniforms(seed: int, use: int, position: int, count: int) -> np.ndarray:
    """Returns float64[count] in 0..1 (1 excluded) for the example at `position` of the run.

    Args:
      seed: of the run.
      use: one of the constants above.
      position: of the example among all that the run trains on: step * batch size + place.
      count: how many; the first ones do not depend on it.
    """
    key = np.array([seed, UNIFORMS + use], np.uint64)
    bits = np.random.Philox(key=key, counter=[0, position, 0, 0]).random_raw(count)
    return (bits >> np.uint64(11)) * 2.0**-53
