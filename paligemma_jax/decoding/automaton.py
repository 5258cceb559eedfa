"""Regular languages as deterministic automata over numbers: bytes of text, or token ids.

A language is put together from parts. A Part is a function that adds nodes to a net, between the
node where it begins and the one that it returns, where it ends:

    sequence(text(b"a"), repeat(symbols(b"0123456789"), least=1))    # a7, a42, ..

`determinize` makes an automaton of it: in each state a symbol leads to one state, or nowhere.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

MAX_STATES = 20_000

Part = Callable[["Net", int], int]


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
    """A language of sequences of symbols; state 0 is the first.

    Attributes:
      moves: for each state (symbols int32[n], the states that they lead to int32[n]); a symbol that
        is not among them may not come.
      accepting: the states in which a sequence may end.
      rising: the states in which a symbol must be above the one that came two before: the second
        corner of a box lies below and right of the first.
    """

    moves: tuple[tuple[np.ndarray, np.ndarray], ...]
    accepting: frozenset[int]
    rising: frozenset[int] = frozenset()


class Net:
    """Nodes with labelled edges, of which several may bear the same symbol, and free jumps."""

    def __init__(self) -> None:
        self.edges: list[list[tuple[Sequence[int], int]]] = []
        self.jumps: list[list[int]] = []
        self.rising: set[int] = set()

    def node(self) -> int:
        """Returns a new node."""
        self.edges.append([])
        self.jumps.append([])
        return len(self.edges) - 1

    def follow_jumps(self, nodes: Iterable[int]) -> frozenset[int]:
        """Returns these nodes and what they reach without a symbol."""
        reached, waiting = set(), list(nodes)
        while waiting:
            node = waiting.pop()
            if node not in reached:
                reached.add(node)
                waiting += self.jumps[node]
        return frozenset(reached)


def symbols(chosen: Sequence[int]) -> Part:
    """One of these symbols."""

    def add(net: Net, start: int) -> int:
        end = net.node()
        net.edges[start].append((chosen, end))
        return end

    return add


def rising(chosen: Sequence[int]) -> Part:
    """One of these symbols that is above the one that came two before."""

    def add(net: Net, start: int) -> int:
        begin = net.node()
        net.jumps[start].append(begin)
        net.rising.add(begin)
        return symbols(chosen)(net, begin)

    return add


def text(ids: Iterable[int]) -> Part:
    """These symbols one after the other; bytes are numbers too."""
    return sequence(*(symbols((one,)) for one in ids))


def sequence(*parts: Part) -> Part:
    """All parts one after the other."""

    def add(net: Net, start: int) -> int:
        for part in parts:
            start = part(net, start)
        return start

    return add


def either(*parts: Part) -> Part:
    """One of the parts."""

    def add(net: Net, start: int) -> int:
        ends = [part(net, start) for part in parts]
        end = net.node()
        for node in ends:
            net.jumps[node].append(end)
        return end

    return add


def optional(part: Part) -> Part:
    """The part, or nothing."""
    return either(part, text(()))


def repeat(part: Part, *, least: int = 0, most: int | None = None) -> Part:
    """The part `least` to `most` times; None: as often as it likes."""

    def add(net: Net, start: int) -> int:
        for _ in range(least):
            start = part(net, start)
        if most is None:
            # A node of its own, so that the way back does not lead into what comes before.
            loop = net.node()
            net.jumps[start].append(loop)
            net.jumps[part(net, loop)].append(loop)
            return loop
        ends = [start]
        for _ in range(most - least):
            ends.append(part(net, ends[-1]))
        for node in ends[:-1]:
            net.jumps[node].append(ends[-1])
        return ends[-1]

    return add


def determinize(part: Part) -> Automaton:
    """Returns the automaton of a language (subset construction).

    Raises:
      ValueError: it has more than MAX_STATES states.
    """
    net = Net()
    first = net.node()
    last = part(net, first)
    numbers = {net.follow_jumps([first]): 0}
    moves: list[tuple[np.ndarray, np.ndarray]] = []
    members = list(numbers)
    for nodes in members:  # Grows while new states are found.
        leads: dict[int, set[int]] = defaultdict(set)
        for node in nodes:
            for chosen, end in net.edges[node]:
                for symbol in chosen:
                    leads[symbol].add(end)
        closures: dict[frozenset[int], int] = {}
        targets = []
        for ends in map(frozenset, leads.values()):
            if ends not in closures:
                reached = net.follow_jumps(ends)
                if reached not in numbers:
                    numbers[reached] = len(numbers)
                    members.append(reached)
                closures[ends] = numbers[reached]
            targets.append(closures[ends])
        if len(members) > MAX_STATES:
            raise ValueError(f"the grammar has more than {MAX_STATES:,} states: allow less")
        moves.append((np.array(list(leads), np.int32), np.array(targets, np.int32)))
    return Automaton(
        moves=tuple(moves),
        accepting=frozenset(number for nodes, number in numbers.items() if last in nodes),
        rising=frozenset(number for nodes, number in numbers.items() if nodes & net.rising),
    )


def spell(automaton: Automaton, pieces: Sequence[bytes | None]) -> Automaton:
    """Returns the automaton over token ids of an automaton over bytes.

    Every way to spell a text with pieces is in it, so also the tokenizer's own, whose pieces may
    reach over the border between, say, a JSON text and what follows it.

    Args:
      automaton: its symbols are 0..255.
      pieces: the text of each token id as UTF-8; None: a token without text of its own.
    """
    nowhere = len(automaton.moves)
    table = np.full((nowhere + 1, 256), nowhere, np.int32)
    for state, (chosen, targets) in enumerate(automaton.moves):
        table[state, chosen] = targets
    ids = np.array([i for i, piece in enumerate(pieces) if piece], np.int32)
    lengths = np.array([len(piece) for piece in pieces if piece], np.int32)
    letters = np.zeros((len(ids), lengths.max(initial=1)), np.uint8)
    for row, i in enumerate(ids):
        letters[row, : lengths[row]] = np.frombuffer(pieces[i] or b"", np.uint8)
    # Most states let few bytes come: only pieces that begin with one of these are looked at.
    begin_with = [np.flatnonzero(letters[:, 0] == byte) for byte in range(256)]
    moves = []
    for state in range(nowhere):
        rows = [begin_with[byte] for byte in np.flatnonzero(table[state] < nowhere)]
        rows = np.concatenate([np.zeros(0, np.int64), *rows])
        moves.append(_read(table, state, rows, letters, lengths))
    return dataclasses.replace(
        automaton, moves=tuple((ids[rows], targets) for rows, targets in moves)
    )


def _read(
    table: np.ndarray, state: int, rows: np.ndarray, letters: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns those rows of `letters` that can be read from a state, and where each leads.

    table: int32[S + 1, 256], S being nowhere; letters: uint8[n, longest].
    """
    current = np.full(len(rows), state, np.int32)
    read, reached = [rows[:0]], [current[:0]]
    for position in range(letters.shape[1]):
        current = table[current, letters[rows, position]]
        is_alive = current < len(table) - 1
        rows, current = rows[is_alive], current[is_alive]
        is_read = lengths[rows] == position + 1
        read.append(rows[is_read])
        reached.append(current[is_read])
        rows, current = rows[~is_read], current[~is_read]
        if not len(rows):
            break
    return np.concatenate(read), np.concatenate(reached)
