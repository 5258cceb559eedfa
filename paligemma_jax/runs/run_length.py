"""How long a run is, and how often it saves and evaluates, in steps."""

from paligemma_jax.settings import schema
from paligemma_jax.training import schedules

SAVES = 10  # in a run, unless the settings say how often


def total_steps(settings: schema.Settings, *, data_size: int) -> int:
    """Returns the number of updates of the run."""
    length = schedules.Duration(
        "total", settings.total_steps, settings.total_epochs, settings.total_examples
    )
    steps = length.in_steps(data_size=data_size, batch_size=settings.input.batch_size)
    if steps is None:
        raise ValueError("set one of total_steps, total_epochs, total_examples: none is set")
    return steps


def steps_between_saves(settings: schema.Settings, *, total_steps: int, data_size: int) -> int:
    """Returns how many updates lie between two checkpoints; 0: none is made on the way."""
    interval = schedules.Duration(
        "ckpt",
        settings.ckpt_steps,
        settings.ckpt_epochs,
        settings.ckpt_examples,
        settings.ckpt_percent,
    )
    steps = interval.in_steps(
        data_size=data_size, batch_size=settings.input.batch_size, total_steps=total_steps
    )
    return max(1, round(total_steps / SAVES)) if steps is None else steps


def steps_between_evaluations(
    chosen: schema.EvalSettings, *, total_steps: int, data_size: int, batch_size: int
) -> int:
    """Returns how many updates lie between two evaluations; 0: there is only the last one."""
    steps = _interval(chosen).in_steps(
        data_size=data_size, batch_size=batch_size, total_steps=total_steps
    )
    return steps or 0


def is_repeated(chosen: schema.EvalSettings) -> bool:
    """Whether an evaluation runs before the last step too."""
    return any(_interval(chosen).given.values())


def _interval(chosen: schema.EvalSettings) -> schedules.Duration:
    return schedules.Duration(
        "log", chosen.log_steps, chosen.log_epochs, chosen.log_examples, chosen.log_percent
    )
