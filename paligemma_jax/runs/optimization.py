"""From settings to what is trained, by what optimizer, and the jitted step."""

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import jax
import numpy as np

from paligemma_jax.assembly import model_functions
from paligemma_jax.console import say
from paligemma_jax.models import family
from paligemma_jax.params import lora, names
from paligemma_jax.settings import load, schema
from paligemma_jax.training import loop, optimizer, step
from paligemma_jax.wording import phrases

FROZEN = None
LR = "lr"  # of an update, in metrics; of several rules lr/REGEX too


def schedule_rules(settings: schema.Settings) -> Any:
    """Returns the schedule as rules on names, with the short forms spelt out.

    These are `trainable`, and LoRA: the factors train, and of the base what `trainable` says.
    """
    schedule = settings.schedule
    factors = None if settings.lora.targets is None else names.ANY_FACTOR
    if settings.trainable is not None and not isinstance(schedule, Mapping):
        raise ValueError("trainable is the short form of schedule rules: set one of the two")
    chosen = [regex for regex in (factors, settings.trainable) if regex is not None]
    if not chosen or not isinstance(schedule, Mapping):
        return schedule
    return [*((regex, schedule) for regex in chosen), (".*", FROZEN)]


def make(
    settings: schema.Settings,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    *,
    steps: int,
    data_size: int,
) -> optimizer.Optimizer:
    """Returns the optimizer of the trainable parameters among `shapes`."""
    if settings.trainable is not None:
        names.select(settings.trainable, shapes, what="trainable")
    schedule = schedule_rules(settings)
    _check_factors_train(schedule, shapes)
    return optimizer.make_optimizer(
        shapes,
        schedule=schedule,
        total_steps=steps,
        batch_size=settings.input.batch_size,
        data_size=data_size,
        schedule_offset=settings.schedule_offset,
        optax_name=settings.optax_name,
        optax_args=settings.optax,
        lr=float(settings.lr),
        wd=settings.wd,
        grad_clip_norm=settings.grad_clip_norm,
        lr_mults=settings.lr_mults,
        wd_mults=settings.wd_mults,
        ema_decay=settings.ema_decay,
    )


def learning_rates(made: optimizer.Optimizer, *, total_steps: int) -> dict[str, np.ndarray]:
    """Returns {name in metrics: float64[total_steps]}, the rate of update 1, 2, ...

    `lr` is the highest of all parameters, multipliers included; where several rules train, each has
    its own highest as lr/REGEX.
    """
    done, by_rule = np.arange(total_steps), {}
    for rule, members in made.groups.items():
        shares = np.asarray(jax.jit(made.schedules[rule])(done), np.float64)
        highest = max(made.lrs[name] for name in members)
        by_rule[rule] = highest * np.broadcast_to(shares, (total_steps,))
    rates = {LR: np.max([*by_rule.values()], axis=0)}
    if len(by_rule) > 1:
        rates |= {f"{LR}/{rule}": values for rule, values in by_rule.items()}
    return rates


def gradient_groups(made: optimizer.Optimizer) -> dict[str, tuple[str, ...]]:
    """Returns what must not all start with zero gradients, by a name for messages.

    Of a pair of factors one starts at zero, so the other one has no gradient yet.
    """
    rules = {f"rule '{regex}'": members for regex, members in made.groups.items()}
    return rules | {f"LoRA of '{b}'": pair for b, pair in lora.pairs(made.trainable).items()}


def updated_in_backward(
    settings: schema.Settings,
    compute: family.Compute,
    made: optimizer.Optimizer,
    stacked: tuple[str, ...],
) -> list[str]:
    """Returns the parameters that are updated in the backward pass: none, if nobody asks for it.

    Raises:
      ValueError: it is asked for and cannot be: all reasons.
    """
    if not settings.optimizer_in_backward:
        return []
    if reasons := what_prevents(settings, compute, made, stacked):
        raise ValueError(f"config: optimizer_in_backward=True: {'; '.join(reasons)}")
    return _in_layers(made, stacked)


def what_prevents(
    settings: schema.Settings,
    compute: family.Compute,
    made: optimizer.Optimizer,
    stacked: tuple[str, ...],
) -> list[str]:
    """Returns why parameters cannot be updated in the backward pass, and what to change."""
    kept = (model_functions.SMALLER, model_functions.SMALLEST)
    wanted = {
        "grad_clip_norm is a norm of all gradients, which is known behind it: set it to None": (
            not settings.grad_clip_norm
        ),
        "micro-batches add up their gradients first: set accumulation_steps=1": (
            settings.accumulation_steps == 1
        ),
        "several devices hold parts of each gradient: use one, or leave it out": (
            compute.layout is None
        ),
        f"optax_name='{settings.optax_name}' looks at whole arrays: it needs one of "
        f"{', '.join(sorted(optimizer.ELEMENTWISE))}": settings.optax_name in optimizer.ELEMENTWISE,
        f"remat_policy='{compute.remat}' keeps gradients' products: it needs one of "
        f"{', '.join(kept)}": compute.remat in kept,
        "nothing that trains is stacked by layer: leave it out": bool(_in_layers(made, stacked)),
    }
    return [reason for reason, is_so in wanted.items() if not is_so]


def _in_layers(made: optimizer.Optimizer, stacked: tuple[str, ...]) -> list[str]:
    return [name for name in made.trainable if name.startswith(stacked)]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a step is made from. Two are equal if one program is right for both.

    Attributes:
      same: all that the program depends on, besides its arguments.
      settings: of the run.
      functions: the model.
      made: the optimizer.
      state, batch: shapes, types and places; the new state has them too.
      groups, stacked: of parameters; see `family.Names`.
    """

    same: Hashable
    settings: schema.Settings = dataclasses.field(compare=False)
    functions: family.Functions = dataclasses.field(compare=False)
    made: optimizer.Optimizer = dataclasses.field(compare=False)
    state: step.TrainState = dataclasses.field(compare=False)
    batch: Mapping[str, Any] = dataclasses.field(compare=False)
    groups: names.Rules[str] = dataclasses.field(compare=False)
    stacked: tuple[str, ...] = dataclasses.field(default=(), compare=False)


def recipe(
    settings: schema.Settings,
    functions: family.Functions,
    made: optimizer.Optimizer,
    state: step.TrainState,
    batch: Mapping[str, Any],
    *,
    groups: names.Rules[str],
    stacked: tuple[str, ...],
    steps: int,
    data_size: int,
) -> Recipe:
    """Returns what a step is made from.

    Every setting counts as something that the program depends on but those of `step.run_values`: of
    these it matters whether they are there. What a config puts into our tables counts as well.

    Args:
      settings, functions, made, state, batch, groups, stacked: see `Recipe`.
      steps, data_size: of the run: schedules are made of them.
    """
    alike = dataclasses.replace(
        settings,
        lr=1.0,
        wd=1.0 if settings.wd else None,
        grad_clip_norm=1.0 if settings.grad_clip_norm else None,
        ema_decay=None if settings.ema_decay is None else 0.5,
        seed=0,
    )
    transform = optimizer.TRANSFORMS[settings.optax_name]
    leaves, tree = jax.tree.flatten((state, dict(batch)))
    structs = tuple((x.shape, x.dtype, x.sharding) for x in leaves)
    text = load.to_json(alike)
    parts = tuple(groups), stacked
    same = (text, functions, transform, parts, steps, data_size, tree, structs)
    return Recipe(same, settings, functions, made, state, batch, groups, stacked)


def make_train_step(recipe: Recipe) -> Any:
    """Returns the jitted step; it takes over the memory of the state that it is given.

    Its metrics are packed: one array comes to the host in each step. Called with the run's
    `step.run_values`, it is the same program for all rates and seeds.
    """
    settings, functions, made = recipe.settings, recipe.functions, recipe.made
    where = jax.tree.map(lambda x: x.sharding, recipe.state)
    platform = next(iter(where.step.device_set)).platform
    update = step.make_train_step(
        functions.apply,
        functions.logits,
        made.tx,
        parts=names.group(recipe.groups, made.trainable),
        seed=settings.seed,
        label_smoothing=float(settings.label_smoothing),
        mean_over=settings.loss_mean,
        accumulation_steps=settings.accumulation_steps,
        loss_scale=functions.compute.loss_scale,
        in_backward=updated_in_backward(settings, functions.compute, made, recipe.stacked),
    )

    def train_step(
        state: step.TrainState,
        batch: Any,
        number: step.Number = None,
        values: optimizer.Values | None = None,
    ) -> Any:
        new, metrics = update(state, batch, number, values)
        return new, loop.pack(metrics)

    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(where, where.step),
        compiler_options=step.COMPILER_OPTIONS.get(platform),
    )


def describe(state: step.TrainState, made: optimizer.Optimizer) -> str:
    """Returns the step-0 table: arrays, parameters and bytes by group, trainable and frozen."""
    rows = []
    for rule, members in made.groups.items():
        arrays = {name: state.trainable[name] for name in members}
        lrs = sorted({made.lrs[name] for name in members})
        shown = f"{lrs[0]:g}" if len(lrs) == 1 else f"{lrs[0]:g}..{lrs[-1]:g}"
        rows.append((f"train {rule}", *_row(arrays), shown))
    by_tower: dict[str, dict[str, Any]] = {}
    for name, array in state.frozen.items():
        tower = f"{name.split('/')[0]} {model_functions.kind_of(array)}"
        by_tower.setdefault(tower, {})[name] = array
    rows += [(f"frozen {tower}", *_row(arrays), "") for tower, arrays in sorted(by_tower.items())]
    moments = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state.opt_state))}
    rows.append(("optimizer state", *_row(moments), ""))
    rows.append(("all", *_row({**state.trainable, **state.frozen, **moments}), ""))
    return say.table(rows, header=("parameters", "arrays", "count", "bytes", "lr"))


def _check_factors_train(schedule: Any, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    factors = [name for name in shapes if names.is_factor(name)]
    if frozen := set(factors) - set(optimizer.trainable_names(schedule, shapes)):
        raise ValueError(
            f"schedule: {len(frozen)} of {len(factors)} LoRA factors are frozen by a rule, "
            f"'{min(frozen)}' for one: put ('{names.ANY_FACTOR}', dict(...)) first, or leave their "
            f"weights out of lora.targets"
        )


def _row(arrays: Mapping[str, Any]) -> tuple[str, str, str]:
    count = sum(array.size for array in arrays.values())
    num_bytes = sum(array.nbytes for array in arrays.values())
    return str(len(arrays)), f"{count:,}", phrases.size(num_bytes)
