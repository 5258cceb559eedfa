"""What makes a run fit its devices: what it may choose itself, and changes of its settings."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

from paligemma_jax.assembly import assembly, model_functions, weights
from paligemma_jax.console import say
from paligemma_jax.models import family
from paligemma_jax.runs import memory_plan, optimization, training_run
from paligemma_jax.settings import load, schema
from paligemma_jax.wording import phrases

NUM_CHANGES = 3
# How much of a device's own memory, or of the host's, an automatic choice may take: an allocator
# cannot join all that is free, and on a host there is the input and whatever else runs.
DEVICE_SHARE, HOST_SHARE = 0.9, 0.5
FASTEST_FIRST = (model_functions.FASTER, model_functions.BETWEEN)


# What plans a run: `memory_plan.make`, which compiles it, or what does so from shapes.
Planner = Callable[[assembly.Assembly, training_run.Plan], memory_plan.Planned]


@dataclasses.dataclass(frozen=True)
class Change:
    """Settings that need less memory, written as on the command line, and what they cost."""

    overrides: tuple[str, ...]
    cost: str


def plan_run(
    built: assembly.Assembly, planned: training_run.Plan
) -> tuple[assembly.Assembly, training_run.Plan, memory_plan.Planned]:
    """Returns the run, its plan and what it needs, with the step compiled.

    An automatic remat_policy becomes the fastest one that is known to leave some memory free, else
    the one that keeps no products, or the smallest one where only that may fit. The settings that
    are returned, and so the run's config.json, name it.
    """
    limit, is_host = memory_plan.device_limit(), jax.local_devices()[0].platform == "cpu"
    share = HOST_SHARE if is_host else DEVICE_SHARE
    # A host compiles for itself, and slowly: one more program to try costs more than it gains.
    tried = (model_functions.FASTER,) if is_host else FASTEST_FIRST
    return plan_for(built, planned, limit=limit, share=share, tried=tried, make=memory_plan.make)


def plan_for(
    built: assembly.Assembly,
    planned: training_run.Plan,
    *,
    limit: int | None,
    share: float = DEVICE_SHARE,
    tried: Sequence[str] = FASTEST_FIRST,
    make: Planner,
) -> tuple[assembly.Assembly, training_run.Plan, memory_plan.Planned]:
    """Does what `plan_run` does, for devices of so many bytes, which may be elsewhere.

    Args:
      built, planned: the run.
      limit: bytes of a device; None: not known.
      share: of these that an automatic choice may take.
      tried: policies that it may choose, the fastest first, before those that keep no products.
      make: plans a run.
    """
    if planned.settings.remat_policy != model_functions.AUTO:
        return built, planned, make(built, planned)
    if limit is None:
        why = "how much memory there is is not known"
        return _settle(built, planned, model_functions.SMALLER, why, make)
    room = int(limit * share)
    wanted = []
    # Where layers are updated in the backward pass, it keeps no products.
    for policy in () if planned.settings.optimizer_in_backward else tried:
        why = "its products fit" if not wanted else _too_much(wanted, room, limit)
        settled = _settle(built, planned, policy, why, make)
        if settled[-1].memory.peak <= room:
            return settled
        wanted.append(f"{policy} would need {phrases.size(settled[-1].memory.peak)}")
    why = _too_much(wanted, room, limit) if wanted else "the backward pass updates the layers"
    settled = _settle(built, planned, model_functions.SMALLER, why, make)
    if settled[-1].memory.peak <= limit:
        return settled
    why = f"{model_functions.SMALLER} would need {phrases.size(settled[-1].memory.peak)}"
    return _settle(built, planned, model_functions.SMALLEST, why, make)


def _too_much(wanted: Sequence[str], room: int, limit: int) -> str:
    return f"{', '.join(wanted)}, and may take {phrases.size(room)} of {phrases.size(limit)}"


def require_fit(
    built: assembly.Assembly, planned: training_run.Plan, needed: memory_plan.Planned
) -> None:
    """Raises a ValueError that says what would make the run fit, if it does not."""
    if needed.fits:
        return
    say.warning("the run does not fit: looking for changes that make it fit")
    fitting = find_changes(built, planned, limit=needed.limit or 0)
    lines = [f"the run needs more memory than a device has:\n{memory_plan.describe(needed)}"]
    lines += [describe(change, memory) for change, memory in fitting]
    if not fitting:
        lines.append("no change of settings that was tried makes it fit: use more devices")
    lines.append("--config.allow_over_memory=True starts it as it is")
    raise ValueError("\n".join(lines))


def describe(change: Change, memory: memory_plan.Memory) -> str:
    """Returns a change as one writes it, with the peak that it gives and what it costs."""
    keys = " ".join(f"--config.{override}" for override in change.overrides)
    return f"{keys} (then the peak is {phrases.size(memory.peak)}; {change.cost})"


def find_changes(
    built: assembly.Assembly,
    planned: training_run.Plan,
    *,
    limit: int,
    make: Planner | None = None,
) -> list[tuple[Change, memory_plan.Memory]]:
    """Returns up to three changes that make the run fit, and its memory then, the cheapest first.

    Each is planned by `make`; None: with its step compiled. Where no single change does, all of
    them are taken together, one after the other, until it fits.
    """
    changes, make = list(_candidates(built, planned)), make or memory_plan.make
    fitting, seen = [], set()
    for change in changes:
        key = change.overrides[0].partition("=")[0]
        if key in seen or len(fitting) == NUM_CHANGES:
            continue
        if memory := _try_out(built, planned, change, limit=limit, make=make):
            fitting.append((change, memory))
            seen.add(key)
    together: dict[str, tuple[str, str]] = {}
    for change in changes if not fitting else ():
        for override in change.overrides:
            key, _, value = override.partition("=")
            together[key] = value, change.cost
        overrides = tuple(f"{key}={value}" for key, (value, _) in together.items())
        cost = "; ".join(dict.fromkeys(cost for _, cost in together.values()))
        joined = Change(overrides, cost)
        if memory := _try_out(built, planned, joined, limit=limit, make=make):
            return [(joined, memory)]
    return fitting


def _candidates(built: assembly.Assembly, planned: training_run.Plan) -> Iterator[Change]:
    """Yields changes, the cheapest first: what changes no result before what changes the recipe."""
    yield from _same_results(built, planned)
    settings, names = planned.settings, built.model.kind.names
    batch_size, parts = settings.input.batch_size, settings.accumulation_steps
    if settings.frozen_dtype not in ("bfloat16", "float16") and _has_wide_frozen(built, planned):
        yield Change(
            ("frozen_dtype=bfloat16",), "frozen weights are rounded to 16 bit, as published"
        )
    if settings.quantize is None and _can_quantize(built, planned):
        for kind, bits in (("int8", 8), ("nf4", 4)):
            yield Change(
                (f"quantize={kind}",), f"frozen weights are rounded to {bits} bit a number"
            )
    if built.functions.compute.dtype == "float32":
        yield Change(
            ("compute_dtype=bfloat16",),
            "activations are rounded to 16 bit; norms, softmax, logits, trained weights are not",
        )
    for size in _halvings(batch_size, built.mesh.size * parts):
        yield Change((f"input.batch_size={size}",), "another recipe: fewer examples per step")
    recipe = "another recipe: trains low-rank factors beside "
    for target in list(names.lora_targets)[:1] if _may_add_factors(settings) else ():
        factors = (f"lora.targets={target}", "trainable=None")
        yield Change(factors, f"{recipe}the frozen weights, at an lr about ten times higher")
        if settings.quantize is None:
            overrides = *factors, "quantize=nf4"
            yield Change(overrides, f"{recipe}frozen weights of 4 bits, at ten times the lr")
    attention = names.attention
    if attention and _trains_more_than(attention, settings, planned):
        recipe = "another recipe: trains attention only"
        yield Change((f"trainable={attention}",), recipe)
        if settings.quantize is None:
            overrides = f"trainable={attention}", "quantize=nf4"
            yield Change(overrides, f"{recipe}, beside frozen weights of 4 bits")


def _same_results(built: assembly.Assembly, planned: training_run.Plan) -> Iterator[Change]:
    """Yields changes that change no result, the cheapest first."""
    settings = planned.settings
    batch_size, parts = settings.input.batch_size, settings.accumulation_steps
    remat = built.functions.compute.remat
    if remat not in (model_functions.SMALLER, model_functions.SMALLEST):
        yield Change(
            (f"remat_policy={model_functions.SMALLER}",),
            "same result; layers are computed again in the backward pass, a third more work",
        )
    if remat != model_functions.SMALLEST:
        yield Change(
            (f"remat_policy={model_functions.SMALLEST}",),
            "same result; layers are computed again in the backward pass, and half of them twice",
        )
    small = dataclasses.replace(built.functions.compute, remat=model_functions.SMALLEST)
    if not settings.optimizer_in_backward and not optimization.what_prevents(
        settings, small, planned.optimizer, built.model.kind.names.stacked
    ):
        yield Change(
            ("optimizer_in_backward=True", f"remat_policy={model_functions.SMALLEST}"),
            "same result; layers are computed again, and updated in the backward pass",
        )
    most = parts if settings.optimizer_in_backward else batch_size // built.mesh.size
    for count in _doublings(parts, most):
        yield Change(
            (f"accumulation_steps={count}",),
            f"same result; {count} micro-batches of {batch_size // count}, some more time",
        )


def _doublings(start: int, end: int) -> list[int]:
    return [start * 2**n for n in range(1, 12) if start * 2**n <= end]


def _halvings(start: int, end: int) -> list[int]:
    return [start // 2**n for n in range(1, 12) if start // 2**n >= end and start % 2**n == 0]


def _may_add_factors(settings: schema.Settings) -> bool:
    return settings.lora.targets is None and isinstance(settings.schedule, Mapping)


def _has_wide_frozen(built: assembly.Assembly, planned: training_run.Plan) -> bool:
    trainable = set(planned.optimizer.trainable)
    shapes = assembly.lay_out(built, planned.base, tuple(trainable)).shapes
    frozen = [x for name, x in shapes.items() if name not in trainable]
    return any(model_functions.kind_of(x) == "float32" for x in frozen)


def _can_quantize(built: assembly.Assembly, planned: training_run.Plan) -> bool:
    quantizable = built.model.kind.names.quantizable
    possible = quantizable.candidates(built.model.shapes()) if quantizable else ()
    return not set(possible) <= set(planned.optimizer.trainable)


def _trains_more_than(part: str, settings: schema.Settings, planned: training_run.Plan) -> bool:
    is_plain = isinstance(settings.schedule, Mapping)
    outside = [n for n in planned.optimizer.trainable if not re.fullmatch(part, n)]
    return is_plain and bool(outside)


def _settle(
    built: assembly.Assembly, planned: training_run.Plan, remat: str, why: str, make: Planner
) -> tuple[assembly.Assembly, training_run.Plan, memory_plan.Planned]:
    """Returns the run with a remat_policy of its own, its plan, and what it then needs."""
    settings = dataclasses.replace(planned.settings, remat_policy=remat)
    compute = dataclasses.replace(built.functions.compute, remat=remat)
    built, planned = _change(built, planned, settings, compute)
    needed = make(built, planned)
    return built, planned, dataclasses.replace(needed, remat=f"{remat} (auto: {why})")


def _change(
    built: assembly.Assembly,
    planned: training_run.Plan,
    settings: schema.Settings,
    compute: family.Compute,
) -> tuple[assembly.Assembly, training_run.Plan]:
    """Returns the run and its plan with other settings, which ask for this way to compute."""
    model = built.model
    if settings.lora != planned.settings.lora:
        model = model_functions.describe(settings, vocab_size=model.vocab_size)
    functions = assembly.make_functions(settings, model, compute, built.mesh)
    built = dataclasses.replace(built, settings=settings, model=model, functions=functions)
    return built, dataclasses.replace(planned, settings=settings)


def _try_out(
    built: assembly.Assembly,
    planned: training_run.Plan,
    change: Change,
    *,
    limit: int,
    make: Planner,
) -> memory_plan.Memory | None:
    """Returns the memory of the changed run if it fits. What cannot fit is not compiled."""
    settings = load.change(planned.settings, change.overrides)
    try:
        weights.check_divisible(
            settings.input.batch_size,
            built.mesh,
            key="input.batch_size",
            parts=settings.accumulation_steps,
        )
    except ValueError:
        return None
    compute = model_functions.make_compute(settings, built.mesh.devices.flat[0])
    changed, replanned = _change(built, planned, settings, compute)
    optimizer = optimization.make(
        settings,
        changed.model.shapes(),
        steps=planned.total_steps,
        data_size=len(planned.data.records),
    )
    replanned = dataclasses.replace(replanned, optimizer=optimizer)
    if memory_plan.at_least(changed, replanned).peak > limit:
        return None
    memory = make(changed, replanned).memory
    return memory if memory.peak <= limit else None
