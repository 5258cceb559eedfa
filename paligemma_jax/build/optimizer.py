"""From settings to what is trained, by what optimizer, and the jitted step."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections

from paligemma_jax.build import model as build_model
from paligemma_jax.build import terminal
from paligemma_jax.config import settings
from paligemma_jax.params import names
from paligemma_jax.training import optimizer, step

FROZEN = None


def schedule_rules(config: ml_collections.ConfigDict) -> Any:
    """Returns the schedule as rules on names, with the short form `trainable` spelt out."""
    schedule = _plain(config.schedule)
    if config.trainable is None:
        return schedule
    if not isinstance(schedule, Mapping):
        raise ValueError("trainable is the short form of schedule rules: set one of the two")
    return [(config.trainable, schedule), (".*", FROZEN)]


def total_steps(config: ml_collections.ConfigDict, *, data_size: int) -> int:
    """Returns the number of updates of the run."""
    steps = settings.steps("total", config, data_size=data_size, batch_size=config.input.batch_size)
    assert steps is not None  # without a default, steps raises
    return steps


def make(
    config: ml_collections.ConfigDict,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    *,
    steps: int,
    data_size: int,
) -> optimizer.Optimizer:
    """Returns the optimizer of the trainable parameters among `shapes`."""
    if config.trainable is not None:
        names.select(config.trainable, shapes, what="trainable")
    return optimizer.make_optimizer(
        shapes,
        schedule=schedule_rules(config),
        total_steps=steps,
        batch_size=config.input.batch_size,
        data_size=data_size,
        schedule_offset=config.schedule_offset,
        optax_name=config.optax_name,
        optax_args=_plain(config.optax),
        lr=float(config.lr),
        wd=config.wd,
        grad_clip_norm=config.grad_clip_norm,
        lr_mults=_plain(config.lr_mults),
        wd_mults=_plain(config.wd_mults),
    )


def make_train_step(
    config: ml_collections.ConfigDict,
    functions: build_model.Functions,
    made: optimizer.Optimizer,
) -> Callable[..., Any]:
    """Returns the jitted step; it takes over the memory of the state that it is given."""
    return jax.jit(
        step.make_train_step(
            functions.apply,
            functions.logits,
            made.tx,
            seed=config.seed,
            label_smoothing=float(config.label_smoothing),
            accumulation_steps=config.accumulation_steps,
        ),
        donate_argnums=0,
    )


def describe(state: step.TrainState, made: optimizer.Optimizer) -> str:
    """Returns the step-0 table: arrays, parameters and bytes by group, trainable and frozen."""
    rows = []
    for rule, members in made.groups.items():
        arrays = {name: state.trainable[name] for name in members}
        lrs = sorted({made.lrs[name] for name in members})
        shown = f"{lrs[0]:g}" if len(lrs) == 1 else f"{lrs[0]:g}..{lrs[-1]:g}"
        rows.append((f"train {rule}", *_row(arrays), shown))
    by_tower: dict[str, dict[str, jax.Array]] = {}
    for name, array in state.frozen.items():
        by_tower.setdefault(f"{name.split('/')[0]} {array.dtype}", {})[name] = array
    rows += [(f"frozen {tower}", *_row(arrays), "") for tower, arrays in sorted(by_tower.items())]
    moments = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state.opt_state))}
    rows.append(("optimizer state", *_row(moments), ""))
    rows.append(("all", *_row({**state.trainable, **state.frozen, **moments}), ""))
    return terminal.table(rows, header=("parameters", "arrays", "count", "bytes", "lr"))


def _row(arrays: Mapping[str, jax.Array]) -> tuple[str, str, str]:
    count = sum(array.size for array in arrays.values())
    num_bytes = sum(array.nbytes for array in arrays.values())
    return str(len(arrays)), f"{count:,}", terminal.size(num_bytes)


def _plain(value: Any) -> Any:
    """Returns settings as plain dictionaries and tuples: ConfigDicts stop here."""
    if isinstance(value, ml_collections.ConfigDict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
