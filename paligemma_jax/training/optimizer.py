"""The optimizer: rules on parameter names in, one optax transformation and its schedules out.

The chain and its order are big_vision's (`optax.py::make`), over the trainable parameters only:

    clip by global norm -> transform (`optax_name`) -> * lr * lr_mults -> + wd * wd_mults * param
    -> * schedule of the parameter's rule -> * -1

so weight decay follows the schedule but not the learning rate: decoupled, as in the AdamW paper
(arXiv:1711.05101).

Rates, decays and the norm to clip at are constants of the transformation, or `values` of an update:
a program that takes them as an argument serves every run that differs in these alone.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from paligemma_jax.params import names
from paligemma_jax.training import schedules, transforms
from paligemma_jax.wording import phrases

ScheduleRules = Mapping[str, Any] | Sequence[tuple[str, Mapping[str, Any] | None]]

# Numbers of an update: of each distinct multiplier of the learning rate and of weight decay, and
# scalars. None: those that the transformation was made with.
Values = Mapping[str, Any]
LR, WD, CLIP = "lr", "wd", "grad_clip_norm"


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How the trainable parameters are updated.

    tx: the transformation of gradients, over a flat dictionary of the trainable parameters. Its
      update takes `values` too, of the same optimizer with other rates, decays or norms.
    values: these of its own.
    schedules: rule -> function of the number of updates done -> multiplier of the learning rate.
    groups: rule -> names of the trainable parameters that follow it.
    lrs: trainable name -> learning rate, multipliers included, at multiplier 1.
    decays: trainable name -> weight decay, multipliers included; 0 where none acts.
    """

    tx: optax.GradientTransformation
    values: dict[str, np.ndarray]
    schedules: dict[str, schedules.Schedule]
    groups: dict[str, tuple[str, ...]]
    lrs: dict[str, float]
    decays: dict[str, float]

    @property
    def trainable(self) -> list[str]:
        """Names of the trainable parameters, sorted."""
        return sorted(self.lrs)


def trainable_names(schedule: ScheduleRules, all_names: Iterable[str]) -> list[str]:
    """Returns the names whose first matching rule has a schedule, sorted; None is frozen.

    Raises:
      ValueError: a name without a rule, a rule without a name, or nothing to train.
    """
    rules = _as_rules(schedule)
    specs = names.match(rules, all_names, what="schedule")
    trainable = sorted(name for name, spec in specs.items() if spec is not None)
    if not trainable:
        raise ValueError(f"schedule: every parameter is frozen by {[r for r, _ in rules]}")
    return trainable


def make_optimizer(
    params: Mapping[str, Any],
    *,
    schedule: ScheduleRules,
    total_steps: int,
    batch_size: int | None = None,
    data_size: int | None = None,
    schedule_offset: int = 0,
    optax_name: str = "scale_by_adam",
    optax_args: Mapping[str, Any] | None = None,
    lr: float,
    wd: float | None = None,
    grad_clip_norm: float | None = None,
    lr_mults: names.Rules[float] | None = None,
    wd_mults: names.Rules[float] | None = None,
    ema_decay: float | None = None,
) -> Optimizer:
    """Returns the optimizer of the parameters that `schedule` does not freeze.

    Args:
      params: all parameters, or their shapes (anything with shape and dtype).
      schedule: one schedule for everything, or rules [(regex, schedule | None)]; see `schedules`.
      total_steps: updates of the whole run.
      batch_size, data_size: for schedules with durations in examples or epochs.
      schedule_offset: 0: the n-th update (n = 0, 1, ...) uses schedule(n) of a schedule of
        `total_steps`, as big_vision's trainer: the first update of a warm-up has rate 0. 1: it uses
        schedule(n + 1) of a schedule of `total_steps + 1`, as PaliGemma's Colab. Percentages are
        of that length.
      optax_name: a key of `TRANSFORMS`: "sgd", "momentum", "adam", "adam_8bit", any optax
        `scale_by_...`, or "big_vision.scale_by_adafactor", "big_vision.momentum_hp".
      optax_args: the transform's own arguments.
      lr: learning rate where the schedule is 1.
      wd: weight decay, times the schedule and not times lr; None or 0: none.
      grad_clip_norm: greatest global norm of the trainable gradients; None or 0: any.
      lr_mults: rules on lr, each above 0; names without a rule have 1.
      wd_mults: rules on wd; names without a rule have 0. None: 1 for names that end in `/kernel`
        (big_vision's default; a language model may have none).
      ema_decay: of a moving average of the parameters, see `transforms`; None: none is kept.

    Raises:
      ValueError: whatever is misspelled, matches nothing or cannot be converted, by its key.
    """
    rules = _as_rules(schedule)
    trainable = trainable_names(rules, params)
    rule_of = names.match([(regex, regex) for regex, _ in rules], params, what="schedule")
    groups = _groups(rules, trainable, rule_of)
    functions = {
        regex: _make_schedule(spec, schedule_offset, total_steps, batch_size, data_size)
        for regex, spec in rules
        if regex in groups and spec is not None
    }
    lr_mult_of, wd_mult_of = _lr_mults(lr_mults, params), _wd_mults(wd_mults, params)
    lrs = {name: lr * mult for name, mult in lr_mult_of.items()}
    decays = {name: (wd or 0.0) * mult for name, mult in wd_mult_of.items()}
    tx = optax.chain(
        _clip(grad_clip_norm) if grad_clip_norm else optax.identity(),
        make_transform(optax_name, optax_args or {}),
        _scale(lrs, _places(lr_mult_of)),
        _add_decay(decays, _places(wd_mult_of)),
        _descend({name: functions[rule_of[name]] for name in trainable}),
        transforms.keep_average(ema_decay) if ema_decay is not None else optax.identity(),
    )
    shapes = {name: jax.ShapeDtypeStruct(params[name].shape, jnp.float32) for name in trainable}
    _try_out(tx, shapes, f"optax_name='{optax_name}' with optax={dict(optax_args or {})}")
    mults = {LR: (lr, lr_mult_of), WD: (wd or 0.0, wd_mult_of)}
    scalars = {CLIP: grad_clip_norm, transforms.DECAY: ema_decay}
    return Optimizer(
        tx=tx,
        values=_own_values(mults, scalars),
        schedules=functions,
        groups=groups,
        lrs={name: lrs[name] for name in trainable},
        decays={name: decays[name] for name in trainable},
    )


def opt_state_like(
    tx: optax.GradientTransformation,
    params: Mapping[str, Any],
    values: Mapping[str, Any],
    other: Any,
) -> Any:
    """Returns a tree like the optimizer's state, with a parameter's value at each of its moments.

    A leaf below a parameter's name and of its shape gets `values[name]`, every other leaf (counts,
    factored moments) gets `other`. This is how moments are placed where their parameter is.
    """

    def choose(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Any:
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        is_moment = keys and keys[-1] in params and params[keys[-1]].shape == leaf.shape
        return values[keys[-1]] if is_moment else other

    return jax.tree_util.tree_map_with_path(choose, jax.eval_shape(tx.init, dict(params)))


def owners(opt_state: Any, params: Collection[str]) -> list[str]:
    """Returns for each leaf of the optimizer's state the parameter that it is of; "": of all."""

    def owner(path: tuple[Any, ...]) -> str:
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return keys[-1] if keys and keys[-1] in params else ""

    return [owner(path) for path, _ in jax.tree_util.tree_flatten_with_path(opt_state)[0]]


def by_owner(opt_state: Any, owners: Sequence[str]) -> dict[str, list[jax.Array]]:
    """Returns owner -> its leaves of the state, in order."""
    leaves: dict[str, list[jax.Array]] = {name: [] for name in ("", *owners)}
    for leaf, owner in zip(jax.tree.leaves(opt_state), owners, strict=True):
        leaves[owner].append(leaf)
    return leaves


def join(like: Any, owners: Sequence[str], arrays: Mapping[str, Any]) -> Any:
    """Returns a state like another, of what `by_owner` gives."""
    left = {owner: iter(leaves) for owner, leaves in arrays.items()}
    return jax.tree.unflatten(jax.tree.structure(like), [next(left[owner]) for owner in owners])


def update_some(
    tx: optax.GradientTransformation,
    owners: Sequence[str],
    grads: Mapping[str, jax.Array],
    params: Mapping[str, jax.Array],
    arrays: Mapping[str, Sequence[jax.Array]],
    own: Mapping[str, Any],
) -> tuple[Mapping[str, jax.Array], dict[str, list[jax.Array]]]:
    """Returns the updates of some parameters, or of one layer of them, and the state's new arrays.

    For transformations in `ELEMENTWISE`, which give each number what it would get among all.
    """
    mine = [owner for owner in owners if owner in ("", *params)]
    shapes = {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in params.items()}
    before = join(jax.eval_shape(tx.init, shapes), mine, arrays)
    updates, after = tx.update(dict(grads), before, dict(params), **own)
    return updates, by_owner(after, mine)


def update_layer(
    tx: optax.GradientTransformation,
    owners: Sequence[str],
    loss_scale: float,
    name: str,
    reached: set[str],
    grad: jax.Array,
    w: jax.Array,
    moments: Sequence[jax.Array],
    shared: Mapping[str, Any],
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """Returns the gradient, the update and the optimizer's new arrays of one layer's weight."""
    reached.add(name)
    grad = grad / loss_scale
    arrays = {"": shared["common"], name: moments}
    changes, after = update_some(tx, owners, {name: grad}, {name: w}, arrays, shared["own"])
    return grad, changes[name], tuple(after.get(name, ()))


def _as_rules(schedule: ScheduleRules) -> list[tuple[str, Mapping[str, Any] | None]]:
    return [(".*", schedule)] if isinstance(schedule, Mapping) else list(schedule)


def _groups(
    rules: Sequence[tuple[str, Any]], trainable: Sequence[str], rule_of: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Returns rule -> the trainable names that follow it, of the rules that any does."""
    members = {regex: tuple(n for n in trainable if rule_of[n] == regex) for regex, _ in rules}
    return {regex: chosen for regex, chosen in members.items() if chosen}


def _make_schedule(
    spec: Mapping[str, Any],
    offset: int,
    total_steps: int,
    batch_size: int | None,
    data_size: int | None,
) -> schedules.Schedule:
    if "base" in spec:
        raise ValueError(f"schedule {dict(spec)}: the top of a schedule is set by lr and lr_mults")
    function = schedules.make_schedule(
        spec, total_steps=total_steps + offset, batch_size=batch_size, data_size=data_size
    )
    return lambda updates_done: function(updates_done + offset)


def _lr_mults(rules: names.Rules[float] | None, all_names: Iterable[str]) -> dict[str, float]:
    for regex, mult in rules or ():
        if mult <= 0:
            raise ValueError(
                f"lr_mults: rule '{regex}' has factor {mult}; to freeze parameters give them the "
                f"schedule None"
            )
    return names.match(rules or (), all_names, what="lr_mults", default=1.0)


def _wd_mults(rules: names.Rules[float] | None, all_names: Iterable[str]) -> dict[str, float]:
    if rules is None:
        return {name: float(names.base_of(name).endswith("/kernel")) for name in all_names}
    return names.match(rules, all_names, what="wd_mults", default=0.0)


def _try_out(tx: optax.GradientTransformation, shapes: dict[str, Any], what: str) -> None:
    """Traces one update, so that a wrong argument is found before the model is on the device."""
    try:
        jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), shapes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {error}") from error


def _distinct(mults: Mapping[str, float]) -> list[float]:
    """Returns each multiplier once."""
    return list(dict.fromkeys(mults.values()))


def _own_values(
    multiplied: Mapping[str, tuple[float, Mapping[str, float]]],
    scalars: Mapping[str, float | None],
) -> dict[str, Any]:
    """Returns the `Values`: of each (value, multipliers) one product a distinct multiplier."""
    values: dict[str, Any] = {name: np.float32(value or 0.0) for name, value in scalars.items()}
    for name, (value, mults) in multiplied.items():
        values[name] = np.array([value * mult for mult in _distinct(mults)], np.float32)
    return values


def _places(mults: Mapping[str, float]) -> dict[str, int]:
    """Returns name -> where its multiplier is in `_distinct`."""
    places = {mult: place for place, mult in enumerate(_distinct(mults))}
    return {name: places[mult] for name, mult in mults.items()}


def _stateless(change: Callable[[Any, Any, Values | None], Any]) -> optax.GradientTransformation:
    """Returns the transformation without a state that (updates, params, values) describes."""

    def update(
        updates: Any, state: Any, params: Any = None, *, values: Values | None = None, **_: Any
    ) -> tuple[Any, Any]:
        return change(updates, params, values), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _clip(norm: float) -> optax.GradientTransformation:
    def clip(updates: Any, params: Any, values: Values | None) -> Any:
        del params
        most = norm if values is None else values[CLIP]
        clipped, _ = optax.clip_by_global_norm(most).update(updates, optax.EmptyState())
        return clipped

    return _stateless(clip)


def _scale(lrs: Mapping[str, float], places: Mapping[str, int]) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any, values: Values | None) -> Any:
        del params
        if values is None:
            return {n: u * lrs[n] for n, u in updates.items()}
        return {n: u * values[LR][places[n]].astype(u.dtype) for n, u in updates.items()}

    return _stateless(scale)


def _add_decay(
    decays: Mapping[str, float], places: Mapping[str, int]
) -> optax.GradientTransformation:
    def add(updates: Any, params: Any, values: Values | None) -> Any:
        decayed = [n for n in updates if decays[n]]
        of = decays if values is None else {n: values[WD][places[n]] for n in decayed}
        return {n: u + of[n] * params[n] if decays[n] else u for n, u in updates.items()}

    return _stateless(add)


def _descend(functions: Mapping[str, schedules.Schedule]) -> optax.GradientTransformation:
    """Multiplies each update by minus its schedule; one count serves all of them."""

    def init(params: Any) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros([], jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        # One evaluation per rule, not per parameter; in a fixed order, so that the compiled
        # program is the same in every process.
        rules = dict.fromkeys(functions.values())
        values = {function: -function(state.count) for function in rules}
        updates = {n: u * values[functions[n]] for n, u in updates.items()}
        return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def make_transform(name: str, arguments: Mapping[str, Any]) -> optax.GradientTransformation:
    """Returns `TRANSFORMS[name](**arguments)`.

    Raises:
      ValueError: an unknown name or argument (the nearest ones are shown), or a wrong value.
    """
    if name not in TRANSFORMS:
        near = phrases.nearest(name, TRANSFORMS)
        raise ValueError(
            f"optax_name='{name}' is not known. Did you mean {' or '.join(near) or 'sgd'}? "
            f"Known: {', '.join(TRANSFORMS)}"
        )
    known = inspect.signature(TRANSFORMS[name]).parameters
    for argument in arguments:
        if argument not in known:
            raise ValueError(
                f"optax: '{name}' has no argument '{argument}'. "
                f"{phrases.did_you_mean(argument, known)}"
                f"It has: {', '.join(known) or 'none'}"
            )
    try:
        return TRANSFORMS[name](**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"optax_name='{name}' with optax={dict(arguments)}: {error}") from error


# These need what a step does not give them (a function, the loss), or flip the sign themselves.
_NOT_TRANSFORMS = {
    "scale_by_backtracking_linesearch",
    "scale_by_learning_rate",
    "scale_by_polyak",
    "scale_by_schedule",
    "scale_by_zoom_linesearch",
}
TRANSFORMS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.identity,
    "momentum": transforms.momentum,
    "adam": optax.scale_by_adam,
    "adamw": optax.scale_by_adam,  # Decay is decoupled for every transform: set wd.
    "adam_8bit": transforms.adam_8bit,
    "adamw_8bit": transforms.adam_8bit,
    "paged_adam_8bit": transforms.paged_adam_8bit,
    "paged_adamw_8bit": transforms.paged_adam_8bit,
    "big_vision.sgd": optax.identity,
    "big_vision.momentum_hp": functools.partial(transforms.momentum, dtype="bfloat16"),
    "big_vision.scale_by_adafactor": transforms.adafactor,
} | {
    name: getattr(optax, name)
    for name in dir(optax)
    if name.startswith("scale_by_") and name not in _NOT_TRANSFORMS
}
# Of these, what look at each number by itself, with the numbers that belong to it: an update of a
# part of the parameters is a part of the update of all.
ELEMENTWISE = {
    *("sgd", "momentum", "adam", "adamw", "big_vision.sgd", "big_vision.momentum_hp"),
    *("scale_by_adam", "scale_by_adamax", "scale_by_amsgrad", "scale_by_lion"),
}
