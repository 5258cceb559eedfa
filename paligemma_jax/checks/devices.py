"""The part of a check's report on machines that are not here: will the run fit, and how fast is it.

One machine is asked of its own compiler where that is installed, all of them from shapes.
"""

from collections.abc import Iterator

from paligemma_jax.assembly import model_functions
from paligemma_jax.checks import (
    by_shapes,
    compilers,
    described_devices,
    device_plan,
    findings,
)
from paligemma_jax.console import say
from paligemma_jax.reports import sections
from paligemma_jax.runs import memory_plan
from paligemma_jax.settings import load, machines, schema
from paligemma_jax.wording import phrases

ALL = "all"
NAME, TITLE = "device", "On a machine that is not here"
MAX_ROWS = 2**16  # examples of one step, when looking for the largest batch that fits
GB = 1e9


def look(settings: schema.Settings, name: str) -> tuple[sections.Section, list[findings.Finding]]:
    """Returns what there is to say of a run on a machine, or on all that are known.

    Raises:
      ValueError: no such machine.
    """
    if name == ALL:
        return _look_at_all(settings), []
    machine = machines.look_up(name)
    try:
        plan, how = plan_for(settings, machine)
    except ValueError as error:
        remedy = "correct it in the config file, or with --config.KEY=VALUE"
        refused = findings.Finding("error", "settings", str(error), remedy, f"--device {name}")
        return _section(name, sections.Facts((("not planned", str(error)),))), [refused]
    return _section(name, *_parts(settings, plan, how)), _findings(settings, plan, machine)


def plan_for(
    settings: schema.Settings, machine: machines.Machine
) -> tuple[device_plan.DevicePlan, str]:
    """Returns (a run's plan for a machine, how it was made).

    Raises:
      ValueError: what training would refuse.
    """
    platform = machine.chip.platform
    python = compilers.find(platform)
    if python is None:
        package, _ = compilers.PACKAGES[platform]
        with say.working(f"planning for {machine.name} from shapes"):
            plan = device_plan.by_name(settings, machine)
        missing = f"{package} is not installed. {compilers.how_to_install(platform)}"
        return plan, f"from shapes, an estimate: {missing}"
    request = {
        "settings": load.to_dict(settings),
        "machine": machine.name,
        "finds_changes": True,
    }
    try:
        with say.working(f"compiling the train step for {machine.name}: a minute or more"):
            answer = compilers.run(python, device_plan.MODULE, request)
    except RuntimeError as error:
        say.warning(str(error))
        plan = device_plan.by_name(settings, machine)
        return plan, f"from shapes, an estimate: its compiler failed: {str(error).splitlines()[-1]}"
    if "refused" in answer:
        raise ValueError(answer["refused"])
    return device_plan.from_json(answer["plan"]), "by the machine's own compiler"


def _section(name: str, *parts: sections.Part) -> sections.Section:
    return sections.Section(NAME, f"{TITLE}: {name}", parts)


def _parts(
    settings: schema.Settings, plan: device_plan.DevicePlan, how: str
) -> Iterator[sections.Part]:
    machine = machines.look_up(plan.machine)
    chip, memory = machine.chip, plan.memory
    bars = [_bar("a training step", _in_a_step(memory), plan.limit)]
    if memory.evaluation:
        bars.append(_bar("an evaluation", _in_an_evaluation(memory), plan.limit))
    yield sections.Bars("memory of a chip", tuple(bars))
    least, most = plan.seconds
    fits = "fits" if plan.fits else "does NOT fit"
    moved = sum(plan.collective_bytes.values())
    timed = "the compiler's estimate" if plan.is_timed else "at 60% of the peak"
    batch = f"{plan.batch_size} examples"
    if plan.batch_size != settings.input.batch_size:
        batch += f" (input.batch_size={settings.input.batch_size}, raised: its chips share a batch)"
    facts = [
        ("machine", f"{machine.describe()} ({machine.topology}); {chip.source}"),
        ("planned", how),
        ("verdict", f"{fits}: {phrases.size(memory.peak)} of {phrases.size(plan.limit)} a chip"),
        ("batch", batch),
        ("sequence", plan.sequence),
        ("computes in", f"{plan.dtype}{'' if chip.has_bfloat16 else ' (no units for bfloat16)'}"),
        ("remat_policy", plan.remat),
        ("model FLOPs", f"{plan.model_flops / 1e12:.3g} TFLOP a chip and step"),
        ("products", f"{plan.compute_s:.3g} s a step, {timed}"),
    ]
    if machine.count > 1:
        kinds = ", ".join(f"{kind} {x / GB:.3g}" for kind, x in plan.collective_bytes.items())
        rate = f"{chip.link_bytes_per_s / GB:.0f} GB/s"
        facts.append(
            (
                "between chips",
                f"{moved / GB:.3g} GB a chip and step ({kinds}): {plan.link_s:.3g} s at {rate}",
            )
        )
    step = f"{least:.3g} s" if least == most else f"{least:.3g} to {most:.3g} s"
    rate = f"{plan.batch_size / most:.3g}"
    rate += "" if least == most else f" to {plan.batch_size / least:.3g}"
    facts.append(("step", f"{step}: {rate} examples/s, MFU {plan.mfu_ceiling:.0%} at most"))
    yield sections.Facts(tuple(facts))
    yield from _tables(plan)


def _tables(plan: device_plan.DevicePlan) -> Iterator[sections.Part]:
    kinds = tuple(_kinds(plan.memory))
    yield sections.Table("memory of a chip, in bytes", ("kind", "size"), kinds)
    if plan.operations:
        total = plan.compute_s
        rows = tuple(
            (name[-90:], f"{1e3 * seconds:.3g} ms", f"{seconds / total:.0%}")
            for name, seconds in plan.operations
        )
        yield sections.Table("costliest operations", ("operation", "time", "share"), rows)
    if plan.changes:
        rows = tuple(
            (_as_options(keys), phrases.size(peak), cost) for keys, peak, cost in plan.changes
        )
        yield sections.Table("what makes it fit", ("change", "peak then", "cost"), rows)


def _kinds(memory: memory_plan.Memory) -> Iterator[tuple[str, str]]:
    for name, size, _ in _in_a_step(memory):
        yield name, phrases.size(size)
    yield "evaluation, instead of the last three", phrases.size(memory.evaluation)
    yield "peak", phrases.size(memory.peak)


# (kind, bytes, its style on the page)
Segments = list[tuple[str, int, str]]


def _at_any_time(memory: memory_plan.Memory) -> Segments:
    return [
        ("trained weights", memory.trained, "trained"),
        ("frozen weights", memory.frozen, "frozen"),
        ("optimizer", memory.optimizer, "optimizer"),
    ]


def _in_a_step(memory: memory_plan.Memory) -> Segments:
    gradients = min(memory.temporary, memory.trained)
    return [
        *_at_any_time(memory),
        ("batch", memory.batch, "batch"),
        ("gradients", gradients, "gradients"),
        ("activations and logits", memory.temporary - gradients, "activations"),
    ]


def _in_an_evaluation(memory: memory_plan.Memory) -> Segments:
    return [*_at_any_time(memory), ("evaluation", memory.evaluation, "evaluation")]


def _bar(label: str, segments: Segments, limit: int) -> sections.Bar:
    total = sum(size for _, size, _ in segments)
    note = f"{phrases.size(total)} of {phrases.size(limit)}"
    drawn = tuple((name, float(size), style) for name, size, style in segments if size)
    return sections.Bar(label, drawn, float(limit), note)


def _highest(memory: memory_plan.Memory) -> Segments:
    """Returns what makes up the peak."""
    both = _in_a_step(memory), _in_an_evaluation(memory)
    return max(both, key=lambda segments: sum(size for _, size, _ in segments))


def _as_options(overrides: tuple[str, ...]) -> str:
    return " ".join(f"--config.{override}" for override in overrides)


def _findings(
    settings: schema.Settings, plan: device_plan.DevicePlan, machine: machines.Machine
) -> list[findings.Finding]:
    """Returns that a run does not fit, with what would make it fit; else nothing."""
    if plan.fits:
        return []
    ways = [
        f"{_as_options(keys)} (then {phrases.size(peak)}; {cost})"
        for keys, peak, cost in plan.changes
    ]
    for larger in machines.larger(machine):
        # From shapes, as a first look: a machine of more chips is asked with its own --device.
        other = device_plan.by_name(settings, larger, finds_changes=False)
        if other.fits:
            ways.append(f"--device {larger.name} (about {phrases.size(other.memory.peak)} a chip)")
            break
    what = f"a chip needs {phrases.size(plan.memory.peak)} and has {phrases.size(plan.limit)}"
    remedy = "; or ".join(ways) or "no change that was tried makes it fit: a larger chip"
    return [findings.Finding("error", "does not fit", what, remedy, f"--device {machine.name}")]


def _look_at_all(settings: schema.Settings) -> sections.Section:
    """Returns which machines can run a config, and at what batch size."""
    rows, bars = [], []
    with say.progress("planning from shapes", unit="machines") as report:
        for done, name in enumerate(machines.COMMON, 1):
            machine = machines.look_up(name)
            row, bar = _row(settings, machine)
            rows.append(row)
            bars.append(bar)
            report(done, len(machines.COMMON))
    header = ("machine", "chips", "fits", "peak a chip", "of", "batch", "largest", "step", "per s")
    return _section(
        ALL,
        sections.Facts(
            (
                ("planned", "from shapes, an estimate; --device NAME asks a machine's compiler"),
                ("largest", "the largest batch, a power of two times the chips, that fits"),
                ("step", "products at 60% of the peak, what moves between chips hidden or not"),
            )
        ),
        sections.Table("", header, tuple(rows), num_shown=len(rows)),
        sections.Bars("memory of a chip", tuple(bars)),
    )


def _row(settings: schema.Settings, machine: machines.Machine) -> tuple[sections.Row, sections.Bar]:
    try:
        plan = device_plan.by_name(settings, machine, finds_changes=False)
    except ValueError as error:
        blank = ("",) * 6
        return (machine.name, str(machine.count), str(error)[:40], *blank), sections.Bar(
            machine.name, (), 1.0, "not planned"
        )
    least, most = plan.seconds
    step = f"{least:.3g} s" if least == most else f"{least:.3g} to {most:.3g} s"
    largest = largest_batch(settings, machine, plan.limit)
    row = (
        machine.name,
        str(machine.count),
        "yes" if plan.fits else "no",
        phrases.size(plan.memory.peak),
        phrases.size(plan.limit),
        str(plan.batch_size),
        str(largest) if largest else "none",
        step if plan.fits else "",
        f"{plan.batch_size / most:.3g}" if plan.fits else "",
    )
    return row, _bar(machine.name, _highest(plan.memory), plan.limit)


def largest_batch(settings: schema.Settings, machine: machines.Machine, limit: int) -> int:
    """Returns the largest batch that fits, a power of two times the chips; 0: none does.

    All that grows with it is planned for two batches, and lies on a line through both.
    """
    unit = machine.count * settings.accumulation_steps
    one, two = (_leanest(settings, machine, batch_size) for batch_size in (unit, 2 * unit))

    def peak(size: int) -> float:
        def grow(a: int, b: int) -> float:
            return a + (b - a) * (size / unit - 1)

        step = grow(one.batch + one.temporary, two.batch + two.temporary)
        return one.resident + max(step, grow(one.evaluation, two.evaluation))

    best, size = 0, unit
    while size <= MAX_ROWS and peak(size) <= limit:
        best, size = size, 2 * size
    return best


def _leanest(
    settings: schema.Settings, machine: machines.Machine, batch_size: int
) -> memory_plan.Memory:
    """Returns the memory of a batch, where an automatic policy keeps least."""
    changes: dict[str, object] = {"input.batch_size": batch_size}
    if settings.remat_policy == model_functions.AUTO:
        changes["remat_policy"] = model_functions.SMALLEST
    changed = schema.replace(settings, changes)
    built, planned = device_plan.assemble(changed, described_devices.by_name(machine))
    return by_shapes.make(built, planned).memory
