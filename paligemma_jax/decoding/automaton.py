"""Regular languages as deterministic automata over numbers: bytes of text, or token ids.

A language is put together from parts. A Part is a function that adds nodes to a net, between the
node where it begins and the one that it returns, where it ends:

    sequence(text(b"a"), repeat(symbols(b"0123456789"), least=1))    # a7, a42, ..

`determinize` makes an automaton of it: in each state a symbol leads to one state, or nowhere.

A part that may come up to a thousand times need not be a thousand states: `counted` is one loop,
and whoever follows the automaton counts. Only one thing is counted at a time.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

MAX_NODES, MAX_STATES = 300_000, 20_000

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
      limits: state within a counted part -> how many items the part may have. A symbol that leads
        from outside into one begins to count at 0.
      between: the states within counted parts in which no item has begun: a symbol that leads to a
        state within the part begins one.
    """

    moves: tuple[tuple[np.ndarray, np.ndarray], ...]
    accepting: frozenset[int]
    rising: frozenset[int] = frozenset()
    limits: Mapping[int, int] = dataclasses.field(default_factory=dict)
    between: frozenset[int] = frozenset()


class TooLargeError(ValueError):
    """A language that would take too much time and memory."""


class Net:
    """Nodes with labelled edges, of which several may bear the same symbol, and free jumps."""

    def __init__(self) -> None:
        self.edges: list[list[tuple[Sequence[int], int]]] = []
        self.jumps: list[list[int]] = []
        self.rising: set[int] = set()
        self.limits: dict[int, int] = {}
        self.between: set[int] = set()

    def node(self) -> int:
        """Returns a new node.

        Raises:
          TooLargeError: there are MAX_NODES already.
        """
        if len(self.edges) >= MAX_NODES:
            raise TooLargeError(f"the grammar has more than {MAX_NODES:,} nodes: allow less")
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


def counted(item: Part, *, most: int) -> Part:
    """The item up to `most` times, counted instead of written out.

    No item is the beginning of another. At least one symbol stands between two counted parts.
    """

    def add(net: Net, start: int) -> int:
        first = len(net.edges)
        loop = net.node()
        net.jumps[start].append(loop)
        net.jumps[item(net, loop)].append(loop)
        net.between.add(loop)
        net.limits.update(dict.fromkeys(range(first, len(net.edges)), most))
        end = net.node()
        net.jumps[loop].append(end)
        return end

    return add if most else text(())


def determinize(part: Part) -> Automaton:
    """Returns the automaton of a language (subset construction).

    Raises:
      TooLargeError: it has more than MAX_STATES states, or its net more than MAX_NODES nodes.
      ValueError: two things would have to be counted at a time.
    """
    net = Net()
    first = net.node()
    last = part(net, first)
    groups, edges = _group_symbols(net)
    numbers = {net.follow_jumps([first]): 0}
    moves: list[tuple[np.ndarray, np.ndarray]] = []
    members = list(numbers)
    limits = [_limit(net, members[0])]
    for nodes in members:  # Grows while new states are found.
        leads: dict[int, set[int]] = defaultdict(set)
        for node in nodes:
            for chosen, end in edges[node]:
                for group in chosen:
                    leads[group].add(end)
        closures: dict[frozenset[int], int] = {}
        targets = []
        for ends in map(frozenset, leads.values()):
            if ends not in closures:
                reached = net.follow_jumps(ends)
                if reached not in numbers:
                    numbers[reached] = len(numbers)
                    members.append(reached)
                    limits.append(_limit(net, reached))
                closures[ends] = numbers[reached]
                if limits[numbers[reached]]:
                    _check_count(net, ends, limits[numbers[nodes]])
            targets.append(closures[ends])
        if len(members) > MAX_STATES:
            raise TooLargeError(f"the grammar has more than {MAX_STATES:,} states: allow less")
        chosen = [groups[group] for group in leads]
        targets = np.repeat(np.array(targets, np.int32), [len(one) for one in chosen])
        moves.append((np.concatenate([np.zeros(0, np.int32), *chosen]), targets))
    return Automaton(
        moves=tuple(moves),
        accepting=frozenset(number for nodes, number in numbers.items() if last in nodes),
        rising=frozenset(number for nodes, number in numbers.items() if nodes & net.rising),
        limits={number: limit for number, limit in enumerate(limits) if limit},
        between=frozenset(number for nodes, number in numbers.items() if nodes & net.between),
    )


def _group_symbols(
    net: Net,
) -> tuple[list[np.ndarray], list[list[tuple[Sequence[int], int]]]]:
    """Returns groups of symbols that stand together on every edge, and the edges of groups."""
    sets: dict[tuple[int, ...], int] = {}
    edges = [[(sets.setdefault(tuple(c), len(sets)), end) for c, end in some] for some in net.edges]
    seen: dict[int, list[int]] = defaultdict(list)
    for chosen, number in sets.items():
        for symbol in dict.fromkeys(chosen):
            seen[symbol].append(number)
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for symbol, where in seen.items():
        groups[tuple(where)].append(symbol)
    groups_of_set: list[list[int]] = [[] for _ in sets]
    for number, where in enumerate(groups):
        for chosen in where:
            groups_of_set[chosen].append(number)
    return (
        [np.array(group, np.int32) for group in groups.values()],
        [[(groups_of_set[number], end) for number, end in some] for some in edges],
    )


def _limit(net: Net, nodes: frozenset[int]) -> int:
    """Returns how many items the part may have that is counted here; 0: none is."""
    limits = {net.limits[node] for node in nodes if node in net.limits}
    if len(limits) > 1:
        raise ValueError(f"two parts are counted at a time, up to {sorted(limits)}")
    return max(limits, default=0)


def _check_count(net: Net, ends: frozenset[int], limit_before: int) -> None:
    """Makes sure that a symbol either goes on within a counted part or begins one."""
    goes_on = {end in net.limits for end in ends}
    if len(goes_on) > 1 or (goes_on == {False} and limit_before):
        raise ValueError("two parts are counted at a time: part them by a symbol")
