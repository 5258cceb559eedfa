"""A run's plan for a machine that is not here: by the machine's compiler, or from shapes.

As a program, in the process of a compiler, it takes the paths of a request and of the answer that
it writes, both JSON; see `compilers.run`.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, cast

import jax
import numpy as np

from paligemma_jax.assembly import assembly, datasets, model_functions, training_data
from paligemma_jax.checks import by_shapes, compiled_cost, described_devices, planned_run
from paligemma_jax.evaluation import evaluator
from paligemma_jax.params import sharding
from paligemma_jax.runs import (
    auto_remat,
    early_stopping,
    memory_plan,
    optimization,
    run_length,
    saving,
    training_run,
)
from paligemma_jax.settings import load, machines, presets, schema

# Tokens of an answer, where no data says how long they are; the loss takes 16 at a time.
ANSWER_TOKENS = 32
CHUNKS = 2
# The part of a chip's peak that products reach, where no compiler says.
EFFICIENCY = compiled_cost.KERNEL_EFFICIENCY
SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"
NUM_OPERATIONS = 10
MODULE = "paligemma_jax.checks.device_plan"


@dataclasses.dataclass(frozen=True)
class DevicePlan:
    """What a run needs of each chip of a machine, and how long a step takes there.

    Attributes:
      machine: its name.
      is_compiled: by the machine's own compiler; else from shapes.
      batch_size: examples per step.
      memory: bytes on a chip.
      limit: bytes that a program may have there.
      remat, sequence, dtype: as `memory_plan.Planned` and `family.Compute` have them.
      model_flops: of a step, on a chip, without what is computed again.
      compute_s: of a step without collectives; estimated by the compiler, or at 60% of the peak.
      is_timed: whether the compiler estimated it.
      collective_bytes: kind -> bytes a chip and step.
      link_s: that the links need for these.
      operations: (name, seconds) of the costliest ones, where the compiler says so.
      changes: (override, ...), peak and cost of what makes it fit, the cheapest first.
    """

    machine: str
    is_compiled: bool
    batch_size: int
    memory: memory_plan.Memory
    limit: int
    remat: str
    sequence: str
    dtype: str
    model_flops: float
    compute_s: float
    is_timed: bool
    collective_bytes: Mapping[str, int]
    link_s: float
    operations: tuple[tuple[str, float], ...] = ()
    changes: tuple[tuple[tuple[str, ...], int, str], ...] = ()

    @property
    def fits(self) -> bool:
        """Whether a chip has what the run needs."""
        return self.memory.peak <= self.limit

    @property
    def seconds(self) -> tuple[float, float]:
        """Of a step: with all that moves between chips hidden behind products, and with none."""
        return max(self.compute_s, self.link_s), self.compute_s + self.link_s

    @property
    def mfu_ceiling(self) -> float:
        """Model FLOPs over what a chip can do in that time, at best."""
        chip = machines.look_up(self.machine).chip
        return self.model_flops / (chip.peak_flops[self.dtype] * self.seconds[0])


def limit_of(chip: machines.Chip) -> int:
    """Returns the bytes of a chip that a program may have, as jax will let it."""
    if chip.platform == machines.TPU:
        return chip.memory_bytes
    return int(chip.memory_bytes * float(os.environ.get(SHARE) or machines.GPU_SHARE))


def for_machine(settings: schema.Settings, machine: machines.Machine) -> schema.Settings:
    """Returns the settings with a batch that the machine's chips can share, the next larger one."""
    multiple = machine.count * settings.accumulation_steps
    batch_size = evaluator.round_up(settings.input.batch_size, multiple)
    return schema.replace(settings, {"input.batch_size": batch_size})


def assemble(
    settings: schema.Settings, devices: list[Any]
) -> tuple[assembly.Assembly, training_run.Plan]:
    """Returns a run and its plan on these devices. Reads neither data nor tokenizer nor weights.

    Evaluations are as long as their settings say, or as training texts may be.

    Raises:
      ValueError: what training would refuse.
    """
    settings = planned_run.without_download(settings)
    rows = settings.model.llm.vocab_size or planned_run.ASSUMED_PIECES
    model = model_functions.describe(settings, vocab_size=rows)
    compute = model_functions.make_compute(settings, devices[0])
    model_functions.check_attention(settings, model, compute, devices[0])
    axes = [(axis, size) for axis, size in settings.mesh]
    if isinstance(devices[0], described_devices.Described):
        sizes = sharding.axis_sizes(axes, len(devices))
        mesh = jax.sharding.Mesh(np.reshape(devices, sizes), [axis for axis, _ in axes])
    else:
        mesh = sharding.make_mesh(axes, devices)
    built = assembly.Assembly(
        settings=settings,
        tokenizer=cast(Any, None),  # no text is read
        task=datasets.make_reader(settings),
        model=model,
        functions=assembly.make_functions(settings, model, compute, mesh),
        mesh=mesh,
    )
    size = planned_run.ASSUMED_ROWS
    steps = run_length.total_steps(settings, data_size=size)
    planned = training_run.Plan(
        settings=settings,
        data=training_data.TrainingData(cast(Any, range(size)), (), None, None),
        total_steps=steps,
        optimizer=optimization.make(settings, model.shapes(), steps=steps, data_size=size),
        evaluations=tuple((_evaluation(settings, built, name), 0) for name in settings.evals),
        base=None,
        saving=saving.plan(settings, total_steps=steps, data_size=size),
        goal=early_stopping.make(settings),
    )
    return built, planned


def _evaluation(
    settings: schema.Settings, built: assembly.Assembly, name: str
) -> evaluator.Evaluation:
    chosen = settings.evals[name]
    batch_size = evaluator.round_up(chosen.batch_size or settings.input.batch_size, built.mesh.size)
    spec = datasets.spec(settings, batch_size=batch_size)
    return evaluator.Evaluation(
        name=name,
        settings=chosen,
        records=(),
        task=built.task,
        max_new_tokens=chosen.max_new_tokens or settings.input.text_len,
        prompts=spec,
        examples=spec,
        generate=_never if chosen.decode else None,
        noise=None,
        eval_loss=_never,
    )


def _never(*_: Any) -> Any:
    raise NotImplementedError("an evaluation of a plan has no data")


def make(
    settings: schema.Settings,
    machine: machines.Machine,
    *,
    planner: auto_remat.Planner,
    devices: list[Any],
    finds_changes: bool = True,
) -> DevicePlan:
    """Returns a run's plan for a machine.

    Args:
      settings: of the run.
      machine: to run it on.
      planner: `memory_plan.make` in a process with its compiler, else `by_shapes.make`.
      devices: as that planner takes them.
      finds_changes: whether to look for changes where it does not fit.
    """
    limit, chip = limit_of(machine.chip), machine.chip
    settings = for_machine(settings, machine)
    built, planned = assemble(settings, devices)
    built, planned, needed = auto_remat.plan_for(built, planned, limit=limit, make=planner)
    state, _ = memory_plan.shapes(built, planned)
    batch_size, dtype = settings.input.batch_size, built.functions.compute.dtype
    supervised = min(ANSWER_TOKENS, settings.input.text_len)
    model_flops = needed.work.of_step(batch_size=batch_size, supervised=supervised) / machine.count
    again = batch_size * needed.work.again_per_example / machine.count
    peak = chip.peak_flops[dtype]
    compute_s, moved = (model_flops + again) / (EFFICIENCY * peak), None
    operations, is_timed = (), False
    if needed.program is not None:
        figures = compiled_cost.Chip(chip.clock_hz, peak, chip.bytes_per_s)
        cost = compiled_cost.read(needed.program.as_text(), figures, unknown_trips=CHUNKS)
        moved, is_timed = cost.collective_bytes, cost.seconds is not None
        compute_s = compute_s if cost.seconds is None else cost.seconds
        operations = tuple((one.name, one.seconds) for one in cost.operations[:NUM_OPERATIONS])
    if moved is None:
        moved = by_shapes.collective_bytes(built, planned, state.params)
    fits = needed.memory.peak <= limit
    changes = () if fits or not finds_changes else _changes(built, planned, limit, planner)
    return DevicePlan(
        machine=machine.name,
        is_compiled=planner is memory_plan.make,
        batch_size=batch_size,
        memory=needed.memory,
        limit=limit,
        remat=needed.remat,
        sequence=needed.sequence,
        dtype=dtype,
        model_flops=model_flops,
        compute_s=compute_s,
        is_timed=is_timed,
        collective_bytes=moved,
        link_s=sum(moved.values()) / chip.link_bytes_per_s,
        operations=operations if is_timed else (),
        changes=changes,
    )


def _changes(
    built: assembly.Assembly, planned: training_run.Plan, limit: int, planner: auto_remat.Planner
) -> tuple[tuple[tuple[str, ...], int, str], ...]:
    fitting = auto_remat.find_changes(built, planned, limit=limit, make=planner)
    return tuple((change.overrides, memory.peak, change.cost) for change, memory in fitting)


def by_name(
    settings: schema.Settings, machine: machines.Machine, *, finds_changes: bool = True
) -> DevicePlan:
    """Returns a run's plan for a machine from shapes."""
    return make(
        settings,
        machine,
        planner=by_shapes.make,
        devices=described_devices.by_name(machine),
        finds_changes=finds_changes,
    )


def to_json(plan: DevicePlan) -> dict[str, Any]:
    """Returns a plan as JSON."""
    return dataclasses.asdict(plan)


def from_json(values: Mapping[str, Any]) -> DevicePlan:
    """Returns the plan that `to_json` wrote."""
    memory = memory_plan.Memory(**values["memory"])
    changes = tuple((tuple(keys), peak, cost) for keys, peak, cost in values["changes"])
    operations = tuple((name, seconds) for name, seconds in values["operations"])
    return DevicePlan(**{**values, "memory": memory, "changes": changes, "operations": operations})


def main(asked: str, answer: str) -> None:
    """Plans what a file asks for, with the compiler of this process; writes the answer."""
    request = json.loads(pathlib.Path(asked).read_text())
    settings = load.typed(presets.defaults(request["settings"]))
    machine = machines.look_up(request["machine"])
    try:
        devices = described_devices.for_compiler(machine)
        planned = make(
            settings,
            machine,
            planner=memory_plan.make,
            devices=devices,
            finds_changes=request["finds_changes"],
        )
        written = {"plan": to_json(planned)}
    except ValueError as error:
        written = {"refused": str(error)}
    pathlib.Path(answer).write_text(json.dumps(written))


if __name__ == "__main__":
    main(*sys.argv[1:])
