"""Durations in steps, and learning-rate schedules: from step to multiplier.

A duration is `{name}_steps`, `_epochs`, `_examples` or `_percent`, as big_vision has them. Every
duration of a run is converted here: its length, schedules, and how often it evaluates and saves.
Rounding and the meaning of negative numbers are big_vision's (`utils.py::steps`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from paligemma_jax.wording import phrases

UNITS = ("steps", "epochs", "examples", "percent")


@dataclasses.dataclass(frozen=True)
class Duration:
    """A duration in one of four units, or not given. Negative is not given, as a sweep's -1.

    Attributes:
      name: before the unit in keys: "warmup" of warmup_steps.
      steps: updates.
      epochs: passes over the data.
      examples: training examples.
      percent: fraction of the run's steps: 0.1 is a tenth.
    """

    name: str
    steps: int | None = None
    epochs: float | None = None
    examples: int | None = None
    percent: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """Unit -> amount of what is given."""
        amounts = {unit: getattr(self, unit) for unit in UNITS}
        return {unit: x for unit, x in amounts.items() if x is not None and x >= 0}

    def in_steps(
        self,
        *,
        data_size: int | None = None,
        batch_size: int | None = None,
        total_steps: int | None = None,
    ) -> int | None:
        """Returns how many steps, rounded as Python does, at least 1 unless it is 0, or None.

        Raises:
          ValueError: two units are given, or what the conversion needs (for example the number of
            examples) is not known.
        """
        given, name = self.given, self.name
        if not given:
            return None
        if len(given) > 1:
            raise ValueError(f"set one of {[f'{name}_{unit}' for unit in given]}, not all of them")
        ((unit, amount),) = given.items()
        if unit == "steps":
            return int(amount)
        if unit == "percent":
            if total_steps is None:
                raise ValueError(f"{name}_percent: a part of total_steps, which is not known")
            if amount > 1:
                raise ValueError(f"{name}_percent={amount} is a fraction, between 0 and 1")
            exact = amount * total_steps
        else:
            if not batch_size or (unit == "epochs" and not data_size):
                raise ValueError(f"{name}_{unit} needs batch_size and, for epochs, data_size")
            is_epochs = unit == "epochs"
            exact = amount * ((data_size or 0) / batch_size) if is_epochs else amount / batch_size
        return max(1, round(exact)) if amount else 0


def read_duration(name: str, values: Mapping[str, Any]) -> Duration:
    """Returns the duration that a mapping has under `{name}_{unit}`."""
    return Duration(name, **{unit: values.get(f"{name}_{unit}") for unit in UNITS})


# Learning-rate schedules: a few keys in, a function from step to multiplier out.
#
# Keys, defaults and numbers are big_vision's (`utils.py::create_learning_rate_schedule`), so its
# recipes can be pasted; `warmup_start`, and `end` of cosine, are ours. Unlike there, a misspelled
# key or one that the decay type does not use is an error, and so is a duration that cannot be
# converted.

Schedule = Callable[[Any], jax.Array]


def _durations(name: str) -> tuple[str, ...]:
    return tuple(f"{name}_{unit}" for unit in UNITS)


# Keys of each decay type, beside those of every schedule.
DECAY_KEYS = {
    "constant": (),
    "cosine": ("end", *_durations("decay")),
    "linear": ("end", "linear_end"),
    "polynomial": ("end", "linear_end", "power"),
    "rsqrt": ("timescale", "shift", *_durations("timescale"), *_durations("shift")),
    "stair": ("steps", "mults"),
}
COMMON_KEYS = (
    *("decay_type", "base", "scale_with_batchsize", "warmup_start"),
    *_durations("warmup"),
    *_durations("cooldown"),
)


def make_schedule(
    spec: Mapping[str, Any],
    *,
    total_steps: int,
    batch_size: int | None = None,
    data_size: int | None = None,
) -> Schedule:
    """Returns the function step -> float32[] that `spec` describes.

    Args:
      spec: `decay_type` (constant, cosine, linear, polynomial, rsqrt, stair; default stair, which
        is constant unless it has `steps`), `base` (value at the top, default 1), warm-up from
        `warmup_start` (times the value; default 0) and cool-down to 0 as
        `{warmup,cooldown}_{steps,epochs,examples,percent}`, `scale_with_batchsize` (times batch
        size / 256), and the decay type's own keys: cosine, linear, polynomial: `end` (default 0);
        cosine: its length as `decay_{steps,epochs,examples,percent}` (default all that is left
        after the warm-up; a longer one does not reach `end`); polynomial: `power`; rsqrt:
        `timescale`, `shift`, also as durations; stair: `steps`, `mults` (factor on base from each
        of these steps on).
      total_steps: length of the schedule.
      batch_size, data_size: examples per step and per epoch, for the units that need them.

    Raises:
      ValueError: unknown decay type or key (the nearest one is shown), two units for one
        duration, a duration that cannot be converted, warm-up that lasts the whole run, or its
        start without it.
    """
    check_keys(spec)

    def duration(name: str, default: int) -> int:
        steps = _in_steps(read_duration(name, spec), data_size, batch_size, total_steps)
        return default if steps is None else steps

    warmup, cooldown = duration("warmup", 0), duration("cooldown", 0)
    # A run of one step is how people try a recipe: it may be all warm-up.
    if total_steps > 1 and warmup >= total_steps:
        raise ValueError(f"schedule {dict(spec)}: warm-up of {warmup} of {total_steps} steps")
    base = spec.get("base", 1.0)
    if spec.get("scale_with_batchsize"):
        if batch_size is None:
            raise ValueError(f"schedule {dict(spec)}: scale_with_batchsize needs the batch size")
        base = base * batch_size / 256
    if "warmup_start" in spec and not warmup:
        raise ValueError(f"schedule {dict(spec)}: warmup_start needs a warm-up, as warmup_steps")
    start = spec.get("warmup_start", 0.0)
    decay = duration("decay", total_steps - warmup) or 1
    timescale = duration("timescale", spec.get("timescale", 10_000))
    shift = duration("shift", spec.get("shift", 0))

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        value = _decay(
            spec,
            base,
            step=step,
            elapsed=jnp.maximum(step - warmup, 0.0),
            progress=jnp.clip((step - warmup) / decay, 0.0, 1.0),
            timescale=timescale,
            shift=shift,
        )
        if warmup:
            begun = jnp.minimum(1.0, step / warmup)
            value = value * (start + (1.0 - start) * begun)
        if cooldown:
            value = value * jnp.minimum(1.0, (total_steps - step) / cooldown)
        return jnp.asarray(value, jnp.float32)

    return schedule


def _decay(
    spec: Mapping[str, Any],
    base: float,
    *,
    step: jax.Array,
    elapsed: jax.Array,
    progress: jax.Array,
    timescale: int,
    shift: int,
) -> jax.Array:
    """Returns the value without warm-up and cool-down.

    `elapsed` counts steps since the warm-up; `progress` is that as a fraction, 0..1, of the decay.
    """
    match spec.get("decay_type", "stair"):
        case "cosine":
            end = spec.get("end", 0.0)
            return end + (base - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        case "linear" | "polynomial":
            end = spec.get("end", spec.get("linear_end", 0.0))
            return end + (base - end) * (1.0 - progress) ** spec.get("power", 1)
        case "rsqrt":
            return base / jnp.sqrt(1.0 + (elapsed + shift) / timescale)
        case "stair":
            boundaries = jnp.asarray(spec.get("steps", ()), jnp.float32)
            factors = jnp.asarray((1.0, *spec.get("mults", ())), jnp.float32)
            return base * factors[jnp.searchsorted(boundaries, step, side="right")]
        case _:
            return jnp.full_like(step, base)


def check_keys(spec: Mapping[str, Any]) -> None:
    """Raises a ValueError for a decay type, or a key, that `make_schedule` does not know."""
    decay_type = spec.get("decay_type", "stair")
    if decay_type not in DECAY_KEYS:
        raise ValueError(
            f"schedule: decay_type={decay_type!r} is not known. "
            f"{phrases.did_you_mean(str(decay_type), DECAY_KEYS)}"
            f"Known: {', '.join(DECAY_KEYS)}"
        )
    allowed = COMMON_KEYS + DECAY_KEYS[decay_type]
    for key in spec:
        if key not in allowed:
            users = [name for name, keys in DECAY_KEYS.items() if key in keys]
            hint = f"Only {', '.join(users)} use it. " if users else ""
            raise ValueError(
                f"schedule: decay_type={decay_type!r} has no key '{key}'. "
                f"{hint or phrases.did_you_mean(key, allowed)}It has: {', '.join(allowed)}"
            )
    if len(spec.get("steps", ())) != len(spec.get("mults", ())):
        raise ValueError(
            f"schedule: stair needs one of mults for each of steps, found "
            f"steps={list(spec.get('steps', ()))}, mults={list(spec.get('mults', ()))}"
        )


def _in_steps(
    duration: Duration,
    data_size: int | None,
    batch_size: int | None,
    total_steps: int,
) -> int | None:
    try:
        return duration.in_steps(
            data_size=data_size, batch_size=batch_size, total_steps=total_steps
        )
    except ValueError as error:
        raise ValueError(f"schedule: {error}") from error
