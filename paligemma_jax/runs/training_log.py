"""The rows of a training run: lines on the terminal, what its trackers keep, and traces."""

import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from paligemma_jax.assembly import training_data
from paligemma_jax.console import say
from paligemma_jax.evaluation import report
from paligemma_jax.files import atomic, run_folder
from paligemma_jax.reports import run_log
from paligemma_jax.runs import optimization
from paligemma_jax.training import step
from paligemma_jax.wording import phrases

# Between two lines of steps, where bars are shown and where not: the trackers get every row.
LINE_S, LINE_WITHOUT_BARS_S = 1.0, 10.0
MUCH_WAITING = 0.05  # share of a step that is worth a word
EPOCH = "epoch"  # in metrics: passes over all training data so far
# What a row of metrics holds of training itself, before a slash.
OF_TRAINING = (training_data.EPOCHS, step.UPDATE_NORM, f"{optimization.LR}/")


class Log:
    """The run's rows: a line on the terminal and a row for the trackers every so many steps.

    Within `with`, trackers follow the run: `status` is what they are finished with, unless an error
    ends it. Only the first process has any.

    Args:
      workdir: the run's folder.
      every: steps between two rows.
      total_steps: of the run.
      done: the number of updates that the run goes on after: later rows are void.
      total_epochs: passes over the training data.
      unit: what an example is called.
      settings: of the run, for the trackers.
      trackers: beside metrics.jsonl.
      measure: (values of a row) -> more values of it.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        every: int,
        total_steps: int,
        done: int = 0,
        total_epochs: float = 0.0,
        unit: str = "examples",
        settings: Mapping[str, Any] | None = None,
        trackers: Sequence[run_log.Tracker] = (),
        measure: Callable[[Mapping[str, float]], dict[str, float]] = lambda _: {},
    ):
        self._workdir, self._settings, self._done = workdir, settings or {}, done
        self._every, self._total, self._measure = every, total_steps, measure
        self._total_epochs, self._unit = total_epochs, unit
        self._first: tuple[int, float] | None = None  # step that ended first, and when
        self._last_line_at = 0.0
        is_first = jax.process_index() == 0
        self._trackers = run_log.Trackers(trackers) if is_first else None
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
        now = time.monotonic()
        self._first = self._first or (number, now)
        evaluations = _evaluations(values)
        due = number in (1, self._total) or number % self._every == 0
        if self._trackers is None or not (due or evaluations):
            return
        values |= _device_memory() | self._measure(values)
        self._trackers.log(number, values)
        self._say(number, values, evaluations, now)

    def _say(
        self,
        number: int,
        values: Mapping[str, float],
        evaluations: Mapping[str, Mapping[str, float]],
        now: float,
    ) -> None:
        """Writes the line of a step, unless the one before is recent, and tables of scores."""
        wait_s = LINE_S if say.shows_bars() else LINE_WITHOUT_BARS_S
        is_last = number == self._total
        if evaluations or is_last or number == 1 or now - self._last_line_at >= wait_s:
            self._last_line_at = now
            say.info(self._line(number, values, now))
        for name, scores in evaluations.items():
            title = f"{name}, step {number}"
            if table := report.score_table(title, scores, with_classes=is_last):
                say.info(f"\n{table}\n")

    def _line(self, number: int, values: Mapping[str, float], now: float) -> str:
        """Returns what is known of a step, each part as wide in every line of the run."""
        whole, passes = str(self._total), f"{self._total_epochs:.2f}"
        parts = [f"step {number:>{len(whole)}}/{whole}"]
        if EPOCH in values:
            parts.append(f"epoch {values[EPOCH]:>{len(passes)}.2f}/{passes}")
        if optimization.LR in values:
            parts.append(f"lr {values[optimization.LR]:.2e}")
        if "loss" in values:
            parts.append(f"loss {_short(values['loss']):>8}")
        if "examples_per_s" in values:
            parts.append(f"{values['examples_per_s']:>7.1f} {self._unit}/s")
        if PEAK in values:
            parts.append(f"{values[PEAK]:>5.1f} GiB")
        if "mfu" in values:
            parts.append(f"mfu {values['mfu']:>4.0%}")
        if left := self._left(number, now):
            parts.append(f"{left} left")
        waited = values.get("input_wait", 0.0)
        if waited >= MUCH_WAITING and number > 1:
            parts.append(f"{waited:.0%} of it waiting for {self._unit}")
        return "  ".join(parts)

    def _left(self, number: int, now: float) -> str:
        """Returns how long the rest takes if it goes on as so far, evaluations included."""
        first, since = self._first or (number, now)
        if number == first or number == self._total:
            return ""
        return phrases.duration((now - since) / (number - first) * (self._total - number))

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


PEAK = "device_memory_peak_gib"


def _device_memory() -> dict[str, float]:
    """Returns the peak memory of this process's first device, where it counts."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {} if peak is None else {PEAK: peak / 2**30}


def _short(value: float) -> str:
    """Returns a loss in four places, or in powers of ten where these would not show it."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


def _evaluations(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Returns the scores of each evaluation in a row: {"val": {"map50": .., ..}}."""
    scores: dict[str, dict[str, float]] = {}
    for key, value in values.items():
        name, slash, score = key.partition("/")
        if slash and not key.startswith(OF_TRAINING):
            scores.setdefault(name, {})[score] = value
    return scores


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
