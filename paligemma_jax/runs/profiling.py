"""A trace of some steps, for TensorBoard's profiler, xprof or Perfetto."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from paligemma_jax.console import say
from paligemma_jax.wording import phrases

# The first steps warm up: allocators, and on a GPU the choice of algorithms.
SKIPPED = 2


def check(num_steps: int, *, total_steps: int) -> None:
    """Raises a ValueError if the run is too short for a trace of so many steps."""
    if num_steps and num_steps + SKIPPED > total_steps:
        raise ValueError(
            f"profile_steps={num_steps}: a trace begins after {SKIPPED} steps, and the run has "
            f"{total_steps}"
        )


def trace(
    train_step: Callable[..., Any], num_steps: int, folder: pathlib.Path
) -> Callable[..., Any]:
    """Returns a step that writes a trace of its third and the following calls into `folder`.

    With `num_steps` 0 the step is returned as it is. The device is waited for before and after.
    """
    if not num_steps:
        return train_step
    called = 0

    def traced(state: Any, *args: Any) -> Any:
        nonlocal called
        called += 1
        if called == SKIPPED + 1:
            jax.block_until_ready(state)
            jax.profiler.start_trace(os.fspath(folder))
        result = train_step(state, *args)
        if called == SKIPPED + num_steps:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
            say.info(f"trace of {phrases.count(num_steps, 'steps')}: {folder}")
        return result

    return traced
