"""What a compiled program costs on its chip, by its own text (HLO): nothing runs.

A TPU's compiler writes beside every operation how many cycles it expects, so the time of a step
can be read before there is a chip; one for GPUs does not. What moves between chips stands in both.
Loops count as often as they run. Where the text does not say how often that is, as for a loop
that ends when the data says so, the caller does.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
# Bytes of a number; what is not listed (tokens, opaque handles) has none.
ITEMSIZES = {
    **dict.fromkeys(("pred", "s4", "u4", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
}
# A kernel that is not the compiler's own reaches this part of the chip's peak.
KERNEL_EFFICIENCY = 0.6

# A TPU overlaps a collective with products, and names it in each of these: all such lines have the
# one mark, and only the computation that begins it the other.
STEPS, START = "async_collective_fusion_config", "AsyncCollectiveStart"

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:to_apply|calls|body|(?:true|false)_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Chip:
    """What turns a program's own figures into seconds.

    Attributes:
      clock_hz: of the cycles that its compiler expects.
      peak_flops: FLOP/s of matrix products in 16 bits.
      bytes_per_s: of its memory.
    """

    clock_hz: float
    peak_flops: float
    bytes_per_s: float


@dataclasses.dataclass(frozen=True)
class Operation:
    """What one line of a model comes to.

    Attributes:
      name: the end of its path in the traced program.
      seconds: all its runs together.
      runs: how often the program runs it.
    """

    name: str
    seconds: float
    runs: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one run of a program comes to, on each chip.

    Attributes:
      seconds: what the compiler expects; None where it expects nothing, as for GPUs.
      collective_bytes: kind -> bytes of what the collectives give one chip (of an all-gather, what
        is gathered; of a sum, what is summed), without zeros.
      collective_counts: kind -> how many run.
      operations: by name, the costliest first.
      unknown_loops: names of the loops whose trips the text does not say.
    """

    seconds: float | None
    collective_bytes: dict[str, int]
    collective_counts: dict[str, int]
    operations: tuple[Operation, ...]
    unknown_loops: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a program: `name = shape opcode(rest`."""

    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def path(self) -> str:
        """Where it comes from in the traced program, or its own name."""
        given = re.search(r'op_name="([^"]*)"', self.rest)
        return given[1] if given else self.name

    @property
    def collective(self) -> str | None:
        """Which of COLLECTIVES it is or starts; None: none."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None

    @property
    def result_bytes(self) -> int:
        """Bytes of its result; of one that starts, of its operands where they are more."""
        parts = [_bytes(*part) for part in _ARRAY.findall(self.shape) if part[1]]
        if not self.opcode.endswith("-start") or self.opcode == "all-reduce-start":
            return sum(parts)
        # Operands, then as many results.
        return max(sum(parts[: len(parts) // 2]), sum(parts[len(parts) // 2 :]))


Program = Mapping[str, list[Instruction]]


def read(text: str, chip: Chip, *, unknown_trips: int = 1) -> Cost:
    """Returns what a compiled program costs.

    Args:
      text: `compiled.as_text()`.
      chip: what it is compiled for.
      unknown_trips: how often loops run of which the text does not say it.
    """
    program, entry = parse(text)
    shapes = {line.name: line.shape for lines in program.values() for line in lines}
    runs, unknown = _count_runs(program, entry, unknown_trips)
    seconds, times = collections.defaultdict[str, float](float), collections.Counter[str]()
    num_bytes, counts = collections.Counter[str](), collections.Counter[str]()
    has_estimates = False
    for name, lines in program.items():
        is_start = any(START in line.rest for line in lines)
        for line in lines if runs[name] else ():
            if (kind := line.collective) and (is_start or STEPS not in line.rest):
                num_bytes[kind] += runs[name] * line.result_bytes
                counts[kind] += runs[name]
            cost = _seconds(line, chip, shapes)
            if cost is not None:
                has_estimates = has_estimates or "estimated_cycles" in line.rest
                seconds[_short(line.path)] += runs[name] * cost
                times[_short(line.path)] += runs[name]
    costliest = sorted(seconds.items(), key=lambda item: -item[1])
    operations = tuple(Operation(name, cost, times[name]) for name, cost in costliest)
    total = sum(seconds.values()) if has_estimates else None
    return Cost(total, dict(num_bytes), dict(counts), operations, unknown)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Returns the computations of a program by name, callees first, and the name of its entry."""
    program: dict[str, list[Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if not line.startswith(" ") and (head := _COMPUTATION.match(line)):
            current = head[2]
            program[current] = []
            entry = current if head[1] else entry
        elif current and (match := _LINE.match(line)):
            program[current].append(Instruction(*match.groups()))
    if not entry:
        raise ValueError("no program: expected the text of a compiled one, with an ENTRY")
    return program, entry


def callees(program: Program, line: Instruction) -> Iterator[tuple[str, int | None]]:
    """Yields what a line runs, and how often: None where the text does not say so."""
    names = _CALLED.findall(line.rest)
    for group in _BRANCHES.findall(line.rest):
        names += [name.strip().lstrip("%") for name in group.split(",")]
    trips = _trips(program, line) if line.opcode == "while" else 1
    # What a sum or a sort applies to each pair of numbers is part of its own cost.
    runs = ("while", "call", "fusion", "conditional", "async-start")
    if line.opcode in runs:
        yield from ((name, trips) for name in names if name in program)


def _count_runs(
    program: Program, entry: str, unknown_trips: int
) -> tuple[collections.Counter[str], tuple[str, ...]]:
    """Returns how often each computation runs, and the loops of which that is not known."""
    runs, unknown = collections.Counter({entry: 1}), []
    for name in reversed(list(program)):  # callers first: the text has them last
        for line in program[name] if runs[name] else ():
            for callee, trips in callees(program, line):
                if trips is None:
                    unknown.append(_short(line.path))
                runs[callee] += runs[name] * (unknown_trips if trips is None else trips)
    return runs, tuple(unknown)


def _trips(program: Program, line: Instruction) -> int | None:
    """Returns how often a loop runs: as the compiler noted, or the only bound in its condition."""
    if known := re.search(r"known_trip_count[^0-9]*(\d+)", line.rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line.rest)
    bounds = [
        int(inner.rest.partition(")")[0])
        for inner in (program.get(condition[1], []) if condition else [])
        if inner.opcode == "constant" and re.match(r"[su]32\[\]", inner.shape)
    ]
    return bounds[0] if len(bounds) == 1 else None


def _seconds(line: Instruction, chip: Chip, shapes: Mapping[str, str]) -> float | None:
    """Returns the time of one run of a line; None: it has none of its own."""
    if cycles := re.search(r'estimated_cycles":"(\d+)"', line.rest):
        return int(cycles[1]) / chip.clock_hz
    if line.opcode != "custom-call" or "tpu_custom_call" not in line.rest:
        return None
    operands = re.findall(r"%([\w.\-]+)", line.rest.partition("),")[0])
    moved = sum(_total(shapes.get(name, "")) for name in operands) + _total(line.shape)
    flops = re.search(r'"flops":\s*"?(\d+)', line.rest)
    work = int(flops[1]) / (KERNEL_EFFICIENCY * chip.peak_flops) if flops else 0.0
    return max(moved / chip.bytes_per_s, work)


def _total(shape: str) -> int:
    return sum(_bytes(*part) for part in _ARRAY.findall(shape))


def _bytes(dtype: str, sides: str) -> int:
    return math.prod(int(side) for side in sides.split(",") if side) * ITEMSIZES.get(dtype, 0)


def _short(path: str) -> str:
    """Returns a path without what loops and rematerialization put into it."""
    return re.sub(
        r"jit\(\w+\)/|closed_call/|while/body/|checkpoint/|rematted_computation/", "", path
    )
