"""What a run needs of its devices, before its weights are read.

The step is compiled once, here, from shapes: the run goes on with the compiled program.
"""

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from paligemma_jax.assembly import assembly, datasets, model_functions
from paligemma_jax.console import process, say
from paligemma_jax.evaluation import evaluator
from paligemma_jax.models import family
from paligemma_jax.models.common import quantize
from paligemma_jax.params import sharding
from paligemma_jax.runs import embedding_cache, optimization, training_run
from paligemma_jax.settings import schema
from paligemma_jax.training import flops, loss, step, transforms
from paligemma_jax.wording import phrases

FLOAT32_BYTES = 4
# Forward passes that a remat_policy adds to the backward one.
REPEATS = {model_functions.SMALLER: 1.0, model_functions.SMALLEST: 1.5}
NUM_STEPS = 4  # that a process keeps compiled
# How the compilers of TPUs and GPUs say what a program would have needed.
TOO_LARGE = re.compile(r"(?:temporaries \(|Used |allocate )([\d.]+)\s?([KMGT])")
# Of a container, in the two versions of Linux control groups.
GROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device. All are known from shapes but `temporary`, which the compiler tells.

    Attributes:
      trained: trainable parameters, float32.
      frozen: the others, as they are stored.
      optimizer: the optimizer's state, without what lies in the memory of the host.
      batch: the arrays of a batch.
      temporary: gradients, activations and logits, at the moment when they are most.
      logits: of these, the logits of one chunk of positions.
      evaluation: what an evaluation needs beside parameters and optimizer, from shapes: the cache,
        the blocks once more, as decoding reads them, and the logits of a token. 0: none decodes.
      quantized: of the frozen ones, those in 4 or 8 bits.
      paged: of the optimizer's state, in the memory of the host: not on the device.
    """

    trained: int
    frozen: int
    optimizer: int
    batch: int
    temporary: int
    logits: int
    evaluation: int = 0
    quantized: int = 0
    paged: int = 0

    @property
    def resident(self) -> int:
        """What is there all the time."""
        return self.trained + self.frozen + self.optimizer

    @property
    def peak(self) -> int:
        """The most that is needed at any time."""
        return self.resident + max(self.batch + self.temporary, self.evaluation)


def bytes_of(tree: Any) -> int:
    """Returns the bytes of a tree's arrays, or of their shapes, on one device."""
    return sum(_bytes_of_array(x) for x in jax.tree.leaves(tree))


def temporary_bytes(compiled: Any) -> int:
    """Returns what a compiled step needs beside its arguments, and results without their memory."""
    analysis = compiled.memory_analysis()
    not_in_place = max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
    return analysis.temp_size_in_bytes + not_in_place


def _bytes_of_array(x: Any) -> int:
    shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    return math.prod(shape) * x.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run's memory and work.

    Attributes:
      memory: bytes on one device.
      limit: bytes that a device has; None where nobody knows.
      works: text_len -> work of one example, for each length that a batch may have.
      num_devices: that share a batch.
      batch_size: examples per step.
      train_step: the compiled step; for a shorter text_len it is compiled when it first comes.
      remat: the remat_policy, and why it is that one where the settings left it open.
      sequence: how long an example is, in words.
      program: the step as its compiler made it; None where it could not, for want of memory.
    """

    memory: Memory
    limit: int | None
    works: Mapping[int, flops.Work]
    num_devices: int
    batch_size: int
    train_step: Callable[..., Any]
    remat: str
    sequence: str = ""
    program: Any = None

    @property
    def work(self) -> flops.Work:
        """Of an example of the longest text_len."""
        return self.works[max(self.works)]

    @property
    def fits(self) -> bool:
        """Whether the peak is within the limit, as far as that is known."""
        return self.limit is None or self.memory.peak <= self.limit

    def mfu(self, *, seconds: float, supervised: float, text_len: int) -> float | None:
        """Returns the model FLOPs of a step over what the devices can do in that time.

        None for devices that are not in the table of `flops`. `supervised`: tokens per example.
        """
        top = flops.peak(jax.devices()[0].device_kind)
        done = self.works[text_len].of_step(batch_size=self.batch_size, supervised=supervised)
        return done / (seconds * top * self.num_devices) if top else None


def make(built: assembly.Assembly, planned: training_run.Plan) -> Planned:
    """Compiles the step of these settings and adds up what it needs. Loads no weights."""
    state, batch = shapes(built, planned)
    recipe = optimization.recipe(
        planned.settings,
        built.functions,
        planned.optimizer,
        state,
        batch,
        groups=built.model.kind.names.groups,
        stacked=built.model.kind.names.stacked,
        steps=planned.total_steps,
        data_size=len(planned.data.records),
    )
    with say.working("compiling the train step, which later runs find compiled"):
        jitted, programs, temporary = _compile_step(recipe)
    values = step.run_values(planned.optimizer, seed=planned.settings.seed)
    text_len = planned.settings.input.text_len
    return Planned(
        memory=dataclasses.replace(at_least(built, planned), temporary=temporary),
        limit=device_limit(),
        works=count_work(built, planned, state.params),
        num_devices=built.mesh.size,
        batch_size=planned.settings.input.batch_size,
        train_step=by_text_len(jitted, programs, values),
        remat=describe_remat(planned.settings, built.functions.compute.remat),
        program=programs.get(text_len),
        sequence=model_functions.describe_sequence(
            planned.settings, built.model, platform=built.mesh.devices.flat[0].platform
        ),
    )


# Runs of one process share it where they can, with the programs of shorter batches.
@family.made_once(maxsize=NUM_STEPS)
def _compile_step(recipe: optimization.Recipe) -> tuple[Any, dict[int, Callable[..., Any]], int]:
    """Returns (the jitted step, text_len -> what is compiled of it, temporary bytes)."""
    jitted = optimization.make_train_step(recipe)
    values = step.run_values(recipe.made, seed=recipe.settings.seed)
    compiled, temporary = _compile(jitted.lower(recipe.state, recipe.batch, 0, values))
    text_len = recipe.settings.input.text_len
    return jitted, {} if compiled is None else {text_len: compiled}, temporary


def _compile(lowered: Any) -> tuple[Any, int]:
    """Returns (the compiled step, its temporary bytes); (None, what it asks for) if that is more
    than its device has, which a TPU's compiler refuses."""
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        amount = TOO_LARGE.search(str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or amount is None:
            raise
        return None, int(float(amount[1]) * UNITS[amount[2]])
    return compiled, temporary_bytes(compiled)


def count_work(
    built: assembly.Assembly, planned: training_run.Plan, params: Mapping[str, Any]
) -> dict[int, flops.Work]:
    """Returns text_len -> work of one example, for each length that a batch may have."""
    return {
        length: flops.count(
            built.model,
            params,
            text_len=length,
            max_images=planned.settings.input.max_images,
            trainable=set(planned.optimizer.trainable),
            embeds_images=planned.settings.input.embedding_cache is None,
            repeats=REPEATS.get(built.functions.compute.remat, 0.0),
        )
        for length in (*datasets.text_lens(planned.settings), planned.settings.input.text_len)
    }


def meter(
    needed: Planned, compiled: process.Count
) -> Callable[[Mapping[str, float]], dict[str, float]]:
    """Returns the function from a row of metrics to its `mfu`, where the device is known, and to
    `programs_compiled` so far: it grows where a shape changes."""

    def measure(row: Mapping[str, float]) -> dict[str, float]:
        counted = {"programs_compiled": float(compiled.programs)}
        if "seconds" not in row:
            return counted
        supervised = row["supervised_tokens_mean"]
        text_len = int(row["text_len"])
        mfu = needed.mfu(seconds=row["seconds"], supervised=supervised, text_len=text_len)
        return counted if mfu is None else {"mfu": mfu, **counted}

    return measure


def at_least(built: assembly.Assembly, planned: training_run.Plan) -> Memory:
    """Returns what shapes tell without a compiler: temporary memory holds the gradients alone."""
    state, batch = shapes(built, planned)
    settings = planned.settings
    rows = settings.input.batch_size // (built.mesh.size * settings.accumulation_steps)
    params = state.params
    start = built.model.kind.names.blocks
    blocks = {name: x for name, x in params.items() if start and name.startswith(start)}
    evaluations = [
        _cache_bytes(built, planned, one) + bytes_of(blocks)
        for one, _ in planned.evaluations
        if one.generate is not None
    ]
    trained, paged = bytes_of(state.trainable), bytes_of(transforms.pages(state.opt_state))
    own = settings, built.functions.compute, planned.optimizer, built.model.kind.names.stacked
    made_with = optimization.updated_in_backward(*own)
    quantized = [x for x in state.frozen.values() if isinstance(x, quantize.Quantized)]
    return Memory(
        trained=trained,
        frozen=bytes_of(state.frozen),
        optimizer=bytes_of(state.opt_state) - paged,
        paged=paged,
        batch=bytes_of(batch),
        temporary=trained - bytes_of([state.trainable[name] for name in made_with]),
        logits=rows * loss.CHUNK * built.model.vocab_size * FLOAT32_BYTES,
        evaluation=max(evaluations, default=0),
        quantized=bytes_of(quantized),
    )


def by_text_len(
    jitted: Any, programs: dict[int, Callable[..., Any]], values: Mapping[str, Any]
) -> Callable[..., Any]:
    """Returns the step that runs the program of a batch's length, compiled if there is none yet.

    `programs`: text_len -> the step compiled for it. `values`: see `step.run_values`.
    """

    def train_step(state: step.TrainState, batch: Mapping[str, jax.Array], number: int) -> Any:
        length = batch["text"].shape[1] - 1
        if length not in programs:
            say.info(f"compiling the step for text_len {length}")
            programs[length] = jitted.lower(state, batch, number, values).compile()
        return programs[length](state, batch, number, values)

    return train_step


def describe_remat(settings: schema.Settings, remat: str) -> str:
    """Returns what a backward pass keeps, and whether it updates weights too."""
    return remat + ("; it updates the layers" if settings.optimizer_in_backward else "")


def device_limit() -> int | None:
    """Returns the bytes of one device: what its allocator may take, or a share of the host's.

    Of several processes it is the least, so that all of them decide alike; None where not all know.
    """
    own = _own_limit()
    if jax.process_count() == 1:
        return own
    # Bytes would not fit the integers that devices exchange.
    mib = multihost_utils.process_allgather(np.int32((own or 0) // process.MIB))
    return int(np.min(mib)) * process.MIB or None


def _own_limit() -> int | None:
    devices = jax.local_devices()
    stats = devices[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    total = _host_memory() if devices[0].platform == "cpu" else None
    return None if total is None else total // len(devices)


def facts(needed: Planned) -> list[tuple[str, str]]:
    """Returns the plan as pairs of names and values: bytes per device, then three lines of text."""
    memory = needed.memory
    rows = [
        ("trained parameters", memory.trained),
        ("frozen parameters", memory.frozen),
        *([("  of these in 4 or 8 bits", memory.quantized)] if memory.quantized else []),
        ("optimizer", memory.optimizer),
        *([("  in the host's memory instead", memory.paged)] if memory.paged else []),
        ("batch", memory.batch),
        ("gradients, activations, logits", memory.temporary),
        ("  of these logits", memory.logits),
        ("evaluation, instead of the last three", memory.evaluation),
        ("peak", memory.peak),
    ]
    if needed.limit is not None:
        rows.append(("there is", needed.limit))
    texts = [
        ("sequence", needed.sequence),
        ("remat_policy", needed.remat),
        ("work of a step", _describe_work(needed)),
    ]
    return [*((name, phrases.size(size)) for name, size in rows), *texts]


def describe(needed: Planned) -> str:
    """Returns the plan as text, one line per kind of memory."""
    *rows, sequence, remat, work = facts(needed)
    table = say.table(rows, header=("memory per device", "bytes"))
    return "\n".join([table, *(f"{name}: {text}" for name, text in (sequence, remat, work))])


def _describe_work(needed: Planned) -> str:
    step_flops = needed.batch_size * needed.work.per_example
    again = needed.batch_size * needed.work.again_per_example
    text = f"{step_flops / 1e12:.3g} TFLOP and the vocabulary"
    kind = jax.devices()[0].device_kind
    if top := flops.peak(kind):
        least_s = (step_flops + again) / (top * needed.num_devices)
        ceiling = step_flops / (step_flops + again)
        text += f"; {kind}: {least_s:.3g} s or more, MFU {ceiling:.0%} at most"
    return text


def shapes(
    built: assembly.Assembly, planned: training_run.Plan
) -> tuple[step.TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """Returns shapes, types and places of the state, and of a batch as `data.on_mesh` gives it."""
    trainable = planned.optimizer.trainable
    layout = assembly.lay_out(built, planned.base, tuple(trainable))
    placed = {
        name: jax.tree.map(
            lambda part, place: jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=place),
            x,
            layout.where[name],
        )
        for name, x in layout.shapes.items()
    }
    spec, rows = datasets.spec(planned.settings), sharding.batch_sharding(built.mesh)
    arrays = embedding_cache.batch_arrays(planned.settings, built.model, spec)
    batch = {
        name: jax.ShapeDtypeStruct((spec.batch_size, *shape), dtype, sharding=rows)
        for name, (shape, dtype) in arrays.items()
    }
    return step.state_shapes(placed, trainable, planned.optimizer.tx), batch


def _cache_bytes(
    built: assembly.Assembly, planned: training_run.Plan, one: evaluator.Evaluation
) -> int:
    """Returns the bytes of keys and values, and of the logits of a token, on one device."""
    spec, chosen = one.prompts, planned.settings.evals[one.name]
    candidates = chosen.beam_size if chosen.sampler == "beam" else chosen.best_of
    slots = spec.max_images * built.model.num_image_tokens + spec.text_len + one.max_new_tokens
    device = built.mesh.devices.flat[0]
    dtype, _ = model_functions.choose_dtype(planned.settings.cache_dtype, device)
    itemsize = jnp.dtype(dtype).itemsize
    cache = built.model.cache_bytes(slots=slots, itemsize=itemsize)
    rows = spec.batch_size // built.mesh.size * candidates
    return rows * (cache + built.model.vocab_size * FLOAT32_BYTES)


def _host_memory() -> int | None:
    """Returns the bytes of memory that this machine or container has; None where it cannot tell."""
    try:
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):
        return None
    for path in map(pathlib.Path, GROUP_LIMITS):
        text = path.read_text().strip() if path.exists() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)
