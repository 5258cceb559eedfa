"""What a step needs, from shapes alone: an estimate where no compiler can be asked.

Known exactly are parameters, optimizer, batch and gradients. What the backward pass keeps is read
off the traced step, per example; what a layer holds while it is computed is a layer's share of what
would be kept if all were.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.assembly import assembly, datasets, model_functions
from paligemma_jax.models import family
from paligemma_jax.params import names
from paligemma_jax.runs import embedding_cache, memory_plan, training_run
from paligemma_jax.settings import schema
from paligemma_jax.training import loss

KEEP_ALL = "none"  # a remat_policy
# Layers whose weights are whole on a device at once: the one computed, and the next one fetched.
WHOLE_LAYERS = 2
# Copies of a chunk's logits: themselves, what softmax makes of them, and their gradient.
LOGITS_COPIES = 3


def make(built: assembly.Assembly, planned: training_run.Plan) -> memory_plan.Planned:
    """Returns what a run needs, as `memory_plan.make` does, without a compiler and a program."""
    settings, memory = planned.settings, memory_plan.at_least(built, planned)
    state, _ = memory_plan.shapes(built, planned)
    temporary = memory.temporary + work_bytes(
        built, settings, planned.optimizer.trainable, state.params, memory.logits
    )
    # At the update, when activations are gone, pages may all be there at once.
    temporary = max(temporary, memory.temporary + memory.paged)
    return memory_plan.Planned(
        memory=dataclasses.replace(memory, temporary=temporary),
        limit=None,
        works=memory_plan.count_work(built, planned, state.params),
        num_devices=built.mesh.size,
        batch_size=settings.input.batch_size,
        train_step=_refuse,
        remat=memory_plan.describe_remat(settings, built.functions.compute.remat),
        sequence=model_functions.describe_sequence(
            settings, built.model, platform=built.mesh.devices.flat[0].platform
        ),
    )


def work_bytes(
    built: assembly.Assembly,
    settings: schema.Settings,
    trainable: Iterable[str],
    params: Mapping[str, Any],
    logits: int,
) -> int:
    """Returns the bytes of one device that a step needs beside its arguments and gradients."""
    rows = settings.input.batch_size // (built.mesh.size * settings.accumulation_steps)
    per_row, fixed, layer = _kept_bytes(built, settings, tuple(sorted(trainable)))
    weights = 0
    if built.mesh.size > 1:
        start = built.model.kind.names.blocks or ""
        blocks = [x for name, x in params.items() if name.startswith(start)]
        depth = max((x.shape[0] for x in jax.tree.leaves(blocks) if x.shape), default=1)
        size = sum(x.size for x in jax.tree.leaves(blocks))
        itemsize = jnp.dtype(built.functions.compute.dtype).itemsize
        weights = WHOLE_LAYERS * size * itemsize // max(1, depth)
    return rows * (per_row + layer) + fixed + weights + LOGITS_COPIES * logits


def collective_bytes(
    built: assembly.Assembly, planned: training_run.Plan, params: Mapping[str, Any]
) -> dict[str, int]:
    """Returns kind -> bytes a chip and step, where weights that are split come together twice and
    gradients go back once: what a program cannot do with less. As `compiled_cost.Cost` counts."""
    if built.mesh.size == 1:
        return {}
    itemsize = jnp.dtype(built.functions.compute.dtype).itemsize
    moved = {"all-gather": 0, "reduce-scatter": 0, "all-reduce": 0}
    trainable = set(planned.optimizer.trainable)
    for name, tree in params.items():
        for x in jax.tree.leaves(tree):
            is_split = x.sharding.shard_shape(x.shape) != tuple(x.shape)
            if is_split:
                moved["all-gather"] += 2 * x.size * min(itemsize, x.dtype.itemsize)
            if name in trainable:
                moved["reduce-scatter" if is_split else "all-reduce"] += 4 * x.size
    return {kind: size for kind, size in moved.items() if size}


def _refuse(*_: Any) -> Any:
    raise NotImplementedError("a step that was planned from shapes has no program")


_CACHE: dict[Any, tuple[int, int, int]] = {}


def _kept_bytes(
    built: assembly.Assembly, settings: Any, trainable: tuple[str, ...]
) -> tuple[int, int, int]:
    """Returns bytes that the backward pass keeps: of a row, of none, and of a row in one layer."""
    # Rows of one device are traced: where arrays lie is no part of it.
    compute = model_functions.make_compute(settings, built.mesh.devices.flat[0])
    compute = dataclasses.replace(compute, remat=built.functions.compute.remat)
    one = settings.input
    key = (
        repr((settings.model, settings.lora, settings.quantize, settings.frozen_dtype)),
        (settings.res, one.text_len, one.max_images, one.embedding_cache),
        (compute.dtype, compute.remat, compute.attention, compute.img_attention),
        trainable,
    )
    if key not in _CACHE:
        first, second = (
            _residual_bytes(built, settings, trainable, rows=n, compute=compute) for n in (1, 2)
        )
        per_row = second - first
        whole = dataclasses.replace(compute, remat=KEEP_ALL)
        everything = _residual_bytes(built, settings, trainable, rows=2, compute=whole)
        everything -= _residual_bytes(built, settings, trainable, rows=1, compute=whole)
        start = built.model.kind.names.blocks or ""
        depths = [x.shape[0] for n, x in built.model.shapes().items() if n.startswith(start)]
        layer = max(0, everything - per_row) // max([1, *depths])
        _CACHE[key] = per_row, max(0, first - per_row), layer
    return _CACHE[key]


def _residual_bytes(
    built: assembly.Assembly,
    settings: Any,
    trainable: tuple[str, ...],
    *,
    rows: int,
    compute: family.Compute,
) -> int:
    """Returns the bytes of arrays that the backward pass of so many rows reads, but parameters."""
    functions = built.model.functions(compute, cache_dtype="float32")
    functions = model_functions.pad_sequences(functions, built.model)
    shapes = _without_places(built, settings, trainable)
    chosen, frozen = names.partition(shapes, trainable)
    spec = datasets.spec(settings)
    arrays = embedding_cache.batch_arrays(settings, built.model, spec)
    batch = {
        name: jax.ShapeDtypeStruct((rows, *shape), dtype) for name, (shape, dtype) in arrays.items()
    }

    def backward(chosen: Any, frozen: Any, batch: Any) -> Any:
        def loss_of(weights: Any) -> jax.Array:
            losses = loss.example_losses(
                names.merge(weights, frozen),
                batch,
                apply_fn=functions.apply,
                logits_fn=functions.logits,
                rng=jax.random.key(0),
            )
            return jnp.mean(losses)

        return jax.vjp(loss_of, chosen)[1]

    residuals = jax.tree.leaves(jax.eval_shape(backward, chosen, frozen, batch))
    own = [(x.shape, np.dtype(x.dtype)) for x in jax.tree.leaves((chosen, frozen))]
    total = 0
    for x in residuals:
        described = (
            (x.shape, np.dtype(x.dtype))
            if not jnp.issubdtype(x.dtype, jax.dtypes.extended)
            else None
        )
        if described in own:
            own.remove(described)  # a parameter itself, not a copy
        elif described:
            total += math.prod(x.shape) * x.dtype.itemsize
    return total


def _without_places(
    built: assembly.Assembly, settings: Any, trainable: tuple[str, ...]
) -> dict[str, Any]:
    layout = assembly.lay_out(dataclasses.replace(built, settings=settings), None, trainable)
    return {
        name: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        for name, x in layout.shapes.items()
    }
