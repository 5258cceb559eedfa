"""The rows of a training run: lines on the terminal, and metrics.jsonl."""

import pathlib
from collections.abc import Callable, Mapping

import jax

from paligemma_jax.assembly import training_data
from paligemma_jax.console import say
from paligemma_jax.files import run_folder
from paligemma_jax.reports import run_log
from paligemma_jax.tasks import score_docs
from paligemma_jax.training import step


class Log:
    """The run's rows: a line on the terminal and one in metrics.jsonl every so many steps.

    `done` is the number of updates that the run goes on after: later rows of the file are void.
    `measure` (values of a row) -> more values of it.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        every: int,
        total_steps: int,
        done: int = 0,
        measure: Callable[[Mapping[str, float]], dict[str, float]] = lambda _: {},
    ):
        self._every, self._total, self._measure = every, total_steps, measure
        self._file = None
        if jax.process_index() == 0:
            began = (workdir / run_folder.METRICS).exists()
            self._file = run_log.RunLog(workdir, resumed_step=done if began else None)

    def append(self, row: Mapping[str, float]) -> None:
        """Writes a row if its step is due, or if it holds an evaluation."""
        values = dict(row)
        number = int(values.pop("step"))
        every_row = (training_data.EPOCHS, step.UPDATE_NORM)
        has_evaluation = any("/" in n and not n.startswith(every_row) for n in values)
        due = number in (1, self._total) or number % self._every == 0
        if self._file is None or not (due or has_evaluation):
            return
        values |= _device_memory() | self._measure(values)
        self._file.append(number, values)
        shown = [f"{key} {values[key]:.4g}" for key in _shown(values)]
        say.info(f"step {number}/{self._total}  " + "  ".join(shown))

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _device_memory() -> dict[str, float]:
    """Returns the peak memory of this process's first device, where it counts."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {} if peak is None else {"device_memory_peak_gib": peak / 2**30}


def _shown(values: Mapping[str, float]) -> list[str]:
    """Returns which values a line on the terminal has room for."""
    always = ("loss", "grad_norm", "examples_per_s", "input_wait", "mfu")
    evaluated = [
        n for n in values if n.count("/") == 1 and n.rpartition("/")[2] in score_docs.FIRST
    ]
    return [name for name in (*always, *evaluated) if name in values]
