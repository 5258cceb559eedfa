"""The loop: batches in, updates, rows of numbers out; whatever else is to happen is a hook.

Besides, it can be asked to stop, and says when the state is to be saved: after the row of its step
is written, so that a run which goes on from there has the rows of all steps. And it looks at what a
step's metrics must not say: not-a-number, and a group of parameters that never learns.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.training import loss
from paligemma_jax.training import step as step_lib

State = step_lib.TrainState
SHOWN = 3  # names in a message


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedMetrics:
    """Metrics one after the other in one array, which comes to the host in one piece.

    values: float32[n].
    shapes: (name, shape) of each.
    """

    values: jax.Array
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = dataclasses.field(metadata={"static": True})

    def to_host(self) -> dict[str, np.ndarray]:
        """Waits for them, and returns them by name."""
        values, start, metrics = jax.device_get(self.values), 0, {}
        for name, shape in self.shapes:
            stop = start + math.prod(shape)
            metrics[name] = values[start:stop].reshape(shape)
            start = stop
        return metrics


def pack(metrics: step_lib.Metrics) -> PackedMetrics:
    """Returns metrics in one array; what is true in them is 1."""
    shapes = tuple((name, metrics[name].shape) for name in sorted(metrics))
    parts = [jnp.ravel(metrics[name]).astype(jnp.float32) for name, _ in shapes]
    return PackedMetrics(jnp.concatenate(parts), shapes)


Metrics = step_lib.Metrics | PackedMetrics
TrainStep = Callable[[State, loss.Batch, int], tuple[State, Metrics]]


def to_host(metrics: Metrics) -> dict[str, np.ndarray]:
    """Waits for metrics, packed or not, and returns them by name."""
    return metrics.to_host() if isinstance(metrics, PackedMetrics) else jax.device_get(metrics)


@dataclasses.dataclass(frozen=True)
class Hook:
    """Something done every so many updates, as to evaluate.

    every: number of updates between two calls; 0: never in between.
    fn: (state, updates done) -> numbers for the row of that step. It must not keep the state: the
      next update takes its memory.
    first: also before the first update of a fresh run.
    last: also after the last update of the run, however it falls.
    """

    every: int
    fn: Callable[[State, int], Mapping[str, float]]
    first: bool = False
    last: bool = True

    def is_due(self, step: int, total_steps: int) -> bool:
        """Whether to call `fn` when `step` updates are done."""
        if step in (0, total_steps):
            return (step == 0 and self.first) or (step == total_steps and self.last)
        return bool(self.every) and step % self.every == 0


def run(
    state: State,
    batches: Iterable[loss.Batch],
    train_step: TrainStep,
    *,
    total_steps: int,
    log: Callable[[dict[str, float]], None],
    hooks: Sequence[Hook] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    progress: Callable[[int], None] = lambda _: None,
    save: Callable[[State, Mapping[str, float]], None] | None = None,
    save_every: int = 0,
    stop: Callable[[], bool] | None = None,
    is_enough: Callable[[Mapping[str, float]], bool] = lambda _: False,
    rescue: Callable[[State], None] | None = None,
) -> State:
    """Trains from `state.step` to `total_steps` updates and returns the last state.

    A step's numbers are read while the next one is computing, so the device never waits for the
    host; only before a hook or a save is everything read. So an error (see `checks`) comes up to
    one step late; the state is then the one before the update that failed.

    Args:
      state: where to start; its memory is used up if `train_step` donates it.
      batches: of the updates from `state.step` on.
      train_step: the jitted `step_lib.make_train_step`, its metrics packed or not.
      total_steps: updates in all, those that `state` already has included.
      log: gets one row per update, in order: `step` (1, 2, ...), the scalar metrics, `seconds`
        (since the row before, without hooks), `examples_per_s`, `input_wait` (share of `seconds`
        that the device stood idle for want of a batch), and what hooks return. Before the first
        update, hooks give a row of step 0.
      hooks: see `Hook`; called in order.
      groups: by what they are called, trainable names that must not all have zero gradients in
        update 1.
      progress: called with the number of each update as it is started.
      save: gets the state and its row once that is logged, every `save_every` updates, after hooks
        and after the last update. It decides what to keep, and must not hold the state.
      save_every: number of updates between two calls; 0: never for their number's sake.
      stop: asked once an update, after it is started; True ends the run with this update.
      is_enough: asked with each row that hooks may have written into; True ends the run there.
      rescue: gets the last state when anything goes wrong, before the error goes on: the one before
        an update that was not finite, else with all updates that were started, their rows logged.
    """
    start = int(state.step)
    if start > total_steps:
        raise ValueError(f"the state has {start} updates, more than total_steps={total_steps}")
    if start in (0, total_steps) and (row := _call_hooks(hooks, state, start, total_steps)):
        log({"step": start} | row)
    stream, pending, idle, since = iter(batches), None, 0.0, time.perf_counter()
    try:
        for step in range(start + 1, total_steps + 1):
            batch, waited = _next_batch(stream, step, total_steps)
            idle += waited if pending is None or pending.is_done() else 0.0
            state, metrics = train_step(state, batch, step - 1)
            progress(step)
            before, pending = pending, _Pending(step, metrics, num_examples=len(batch["text"]))
            if before:
                log(_read(before, state, idle, since, groups or {}))
                idle, since = 0.0, time.perf_counter()
            is_last = step == total_steps or (stop is not None and stop())
            is_kept = bool(save_every) and step % save_every == 0
            if is_last or is_kept or any(hook.is_due(step, total_steps) for hook in hooks):
                row = _read(pending, state, idle, since, groups or {})
                row |= _call_hooks(hooks, state, step, total_steps)
                log(row)
                pending = None
                if save:
                    save(state, row)
                if is_enough(row) or is_last:
                    break
                idle, since = 0.0, time.perf_counter()
    except BaseException as error:
        if pending and not isinstance(error, FloatingPointError):
            _try(lambda: log(_read(pending, state, idle, since, {})), error, "a row is lost")
        _try(lambda: rescue(state) if rescue else None, error, "the state could not be rescued")
        raise
    return state


@dataclasses.dataclass(frozen=True)
class _Pending:
    """An update that the device was given, and whose numbers were not looked at."""

    step: int
    metrics: Metrics
    num_examples: int

    def is_done(self) -> bool:
        value: Any = jax.tree.leaves(self.metrics)[0]
        return value.is_ready()


def _next_batch(stream: Iterator[loss.Batch], step: int, total: int) -> tuple[loss.Batch, float]:
    """Returns the next batch and the seconds it took to come."""
    asked = time.perf_counter()
    batch = next(stream, None)
    if batch is None:
        raise ValueError(f"the batches ended before update {step} of {total}")
    return batch, time.perf_counter() - asked


def _read(
    pending: _Pending,
    state: State,
    idle: float,
    since: float,
    groups: Mapping[str, Sequence[str]],
) -> dict[str, float]:
    """Waits for the update, checks its numbers and returns its row."""
    metrics = to_host(pending.metrics)
    seconds = time.perf_counter() - since
    check_finite(metrics, step=pending.step, state=state)
    if pending.step == 1:
        check_gradients(metrics, step=1, trainable=list(state.trainable), groups=groups)
    scalars = {name: float(x) for name, x in metrics.items() if x.ndim == 0 and name != "finite"}
    speed = {
        "seconds": seconds,
        "examples_per_s": pending.num_examples / seconds,
        "input_wait": min(idle / seconds, 1.0),
    }
    return {"step": pending.step} | scalars | speed


def _call_hooks(hooks: Sequence[Hook], state: State, step: int, total: int) -> dict[str, float]:
    row: dict[str, float] = {}
    for hook in hooks:
        if hook.is_due(step, total):
            row |= hook.fn(state, step)
    return row


def _try(action: Callable[[], None], error: BaseException, otherwise: str) -> None:
    """Does what may fail too after an error, which it must not hide."""
    try:
        action()
    except Exception as another:
        if str(another) != str(error):  # a full disk is full for both
            error.add_note(f"And {otherwise}: {another}")


def check_finite(metrics: Mapping[str, Any], *, step: int, state: State) -> None:
    """Raises a FloatingPointError that names the step and the arrays which are not finite.

    Args:
      metrics: of `step_lib.make_train_step`, on the host.
      step: number of the update they come from, counted from 1.
      state: any state at or after that update; its parameters are looked at only to explain.
    """
    scalars = ("loss", "grad_norm", "update_norm", "param_norm")
    bad = [f"{name} is {float(metrics[name])}" for name in scalars if not _finite(metrics[name])]
    if not bad:
        return
    tops = zip(sorted(state.trainable), metrics["grad_max"], strict=True)
    bad_grads = [name for name, top in tops if not _finite(top)]
    bad_params = non_finite(state.params)
    where = f"Parameters that are not finite: {_listed(bad_params)}. " if bad_params else ""
    where += f"Gradients that are not finite: {_listed(bad_grads)}. " if bad_grads else ""
    kept = "Parameters and optimizer are as before it. " if not metrics["finite"] else ""
    if kept and bad_params:
        kept = "If optimizer_in_backward is set, only some layers are updated: start from a save. "
    raise FloatingPointError(
        f"step {step}: {', '.join(bad)}. {where}{kept}"
        f"Try a lower lr, grad_clip_norm=1.0, or compute_dtype='float32'"
    )


def check_gradients(
    metrics: Mapping[str, Any],
    *,
    step: int,
    trainable: Sequence[str],
    groups: Mapping[str, Sequence[str]],
) -> None:
    """Raises a ValueError for a group of trainable parameters whose gradients are all exactly 0.

    A single array may well start with a zero gradient (a factor whose partner starts at zero), so
    this looks at whole groups: all the parameters of one schedule rule, both factors of a weight.

    Args:
      metrics, step: as in `check_finite`; meant for the first update of a run.
      trainable: names of the trainable parameters.
      groups: what a group is called in the message -> its trainable names.
    """
    top = dict(zip(sorted(trainable), metrics["grad_max"], strict=True))
    if not metrics["supervised_tokens_max"]:
        raise ValueError(
            f"step {step}: no token of the batch is supervised, nothing to learn from. Do the "
            f"examples have suffixes, and does text_len leave room for them?"
        )
    dead = {group: members for group, members in groups.items() if not any(top[n] for n in members)}
    if dead:
        listing = "; ".join(f"{group}: {_listed(members)}" for group, members in dead.items())
        raise ValueError(
            f"step {step}: trainable, but all gradients are exactly zero: {listing}. The loss does "
            f"not depend on them: freeze them (schedule None), or look for what cuts them off"
        )


def non_finite(arrays: Mapping[str, Any]) -> list[str]:
    """Returns the names of the arrays, or trees of arrays, that hold a NaN or an infinity."""

    def is_finite(tree: Any) -> jax.Array:
        return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()

    flags = jax.jit(lambda trees: {name: is_finite(x) for name, x in trees.items()})(dict(arrays))
    return [name for name, flag in jax.device_get(flags).items() if not flag]


def _finite(value: Any) -> bool:
    return bool(np.isfinite(value))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(list(names)[:SHOWN]) + more
