"""The rows of a training run: lines on the terminal, what its trackers keep, and traces."""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from paligemma_jax.assembly import training_data
from paligemma_jax.console import say
from paligemma_jax.files import atomic, run_folder
from paligemma_jax.reports import run_log
from paligemma_jax.tasks import task
from paligemma_jax.training import step
from paligemma_jax.wording import phrases


class Log:
    """The run's rows: a line on the terminal and a row for the trackers every so many steps.

    Within `with`, trackers follow the run: `status` is what they are finished with, unless an error
    ends it. Only the first process has any.

    Args:
      workdir: the run's folder.
      every: steps between two rows.
      total_steps: of the run.
      done: the number of updates that the run goes on after: later rows are void.
      settings: of the run, for the trackers.
      more_trackers: beside metrics.jsonl and TensorBoard.
      measure: (values of a row) -> more values of it.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        every: int,
        total_steps: int,
        done: int = 0,
        settings: Mapping[str, Any] | None = None,
        more_trackers: Sequence[run_log.Tracker] = (),
        measure: Callable[[Mapping[str, float]], dict[str, float]] = lambda _: {},
    ):
        self._workdir, self._settings, self._done = workdir, settings or {}, done
        self._every, self._total, self._measure = every, total_steps, measure
        is_first = jax.process_index() == 0
        self._trackers = run_log.Trackers(more_trackers) if is_first else None
        self._place: os.stat_result | None = None  # of its metrics.jsonl, while it runs
        self.status: run_log.Status = "finished"

    def append(self, row: Mapping[str, float]) -> None:
        """Writes a row if its step is due, or if it holds an evaluation.

        Raises:
          OSError: the disk refused it; or, at any step, the run's folder is not there any more.
        """
        if self._place is not None:
            atomic.require_same(self._workdir / run_folder.METRICS, self._place)
        values = dict(row)
        number = int(values.pop("step"))
        every_row = (training_data.EPOCHS, step.UPDATE_NORM)
        has_evaluation = any("/" in n and not n.startswith(every_row) for n in values)
        due = number in (1, self._total) or number % self._every == 0
        if self._trackers is None or not (due or has_evaluation):
            return
        values |= _device_memory() | self._measure(values)
        self._trackers.log(number, values)
        shown = [f"{key} {values[key]:.4g}" for key in _shown(values)]
        say.info(f"step {number}/{self._total}  " + "  ".join(shown))

    def append_files(self, number: int, evaluation: str, files: Sequence[pathlib.Path]) -> None:
        """Hands the trackers what an evaluation wrote after so many updates."""
        if self._trackers is not None:
            self._trackers.log_files(number, evaluation, files)

    def __enter__(self) -> "Log":
        if self._trackers is not None:
            # A run that was killed before its first checkpoint has rows, too, that are void now.
            is_resumed = self._done > 0 or (self._workdir / run_folder.METRICS).exists()
            resumed_step = self._done if is_resumed else None
            self._trackers.start(self._workdir, self._settings, resumed_step)
            self._place = os.stat(self._workdir / run_folder.METRICS)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._trackers is None:
            return
        try:
            self._trackers.finish("failed" if error else self.status)
        except Exception as another:
            if error is None:
                raise
            error.add_note(f"And a tracker could not finish: {another}")


def _device_memory() -> dict[str, float]:
    """Returns the peak memory of this process's first device, where it counts."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {} if peak is None else {"device_memory_peak_gib": peak / 2**30}


def _shown(values: Mapping[str, float]) -> list[str]:
    """Returns which values a line on the terminal has room for."""
    always = ("loss", "grad_norm", "examples_per_s", "input_wait", "mfu")
    first = task.first_scores()
    evaluated = [n for n in values if n.count("/") == 1 and n.rpartition("/")[2] in first]
    return [name for name in (*always, *evaluated) if name in values]


# A trace of some steps, for TensorBoard's profiler, xprof or Perfetto.

# The first steps warm up: allocators, and on a GPU the choice of algorithms.
SKIPPED = 2


def check_profile(num_steps: int, *, total_steps: int) -> None:
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
