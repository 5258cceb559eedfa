"""What follows a training run: metrics.jsonl, TensorBoard, and whatever else has these methods.

A tracker is an object of four methods (`Tracker`). To add one of your own, pass it to
`train.train(..., trackers=[...])`: docs/extending.md. To add one to every run, list it in TRACKERS.
"""

import contextlib
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from paligemma_jax.files import run_folder
from paligemma_jax.reports import run_log

# finished: all updates are done, or what the run was trained for is reached; stopped: it was asked
# to stop, and goes on when started again; failed: an error ended it.
Status = Literal["finished", "stopped", "failed"]


class Tracker(Protocol):
    """Follows one training run. Called by the run's first process, from one thread.

    An error that a method raises ends the run, its state saved: a tracker whose numbers are not
    worth that catches its own errors.
    """

    def start(
        self, folder: pathlib.Path, settings: Mapping[str, Any], resumed_step: int | None
    ) -> None:
        """Begins, before the first update.

        Args:
          folder: of the run; it exists.
          settings: of the run, as in its config.json.
          resumed_step: the step of the checkpoint that the run goes on from: what was logged of
            later steps is void. None for a new run.
        """
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes one row: numbers by name, nan and infinity among them, after so many updates."""
        ...

    def log_files(self, step: int, evaluation: str, files: Sequence[pathlib.Path]) -> None:
        """Takes what an evaluation wrote: its predictions (jsonl), scores (json), report (html)."""
        ...

    def finish(self, status: Status) -> None:
        """Ends: nothing follows."""
        ...


class TensorBoard:
    """The tracker that writes TensorBoard's event files, into `tensorboard/` of the run."""

    def __init__(self) -> None:
        self._writer: Any = None

    def start(
        self, folder: pathlib.Path, settings: Mapping[str, Any], resumed_step: int | None
    ) -> None:
        del settings
        import tensorboardX

        purge_step = None if resumed_step is None else resumed_step + 1
        self._writer = tensorboardX.SummaryWriter(
            str(folder / run_folder.TENSORBOARD), purge_step=purge_step
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(name, value, global_step=step)

    def log_files(self, step: int, evaluation: str, files: Sequence[pathlib.Path]) -> None:
        """Does nothing: the report of an evaluation is a page of its own."""

    def finish(self, status: Status) -> None:
        del status
        self._writer.close()


# Those of every run.
TRACKERS: Mapping[str, Callable[[], Tracker]] = {
    "metrics": run_log.MetricsFile,
    "tensorboard": TensorBoard,
}


class Trackers:
    """Those of every run and some more, as one."""

    def __init__(self, more: Sequence[Tracker] = ()):
        self._all = [*(make() for make in TRACKERS.values()), *more]
        self._started = contextlib.ExitStack()
        self._status: Status = "failed"

    def start(
        self, folder: pathlib.Path, settings: Mapping[str, Any], resumed_step: int | None
    ) -> None:
        """Starts each; where one cannot, those before it are finished as failed."""
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as started:
            for tracker in self._all:
                tracker.start(folder, settings, resumed_step)
                started.callback(lambda tracker=tracker: tracker.finish(self._status))
            self._started = started.pop_all()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Gives each a row. Values may be scalars of numpy or jax: `run_log.to_numbers`."""
        numbers = run_log.to_numbers(values)
        for tracker in self._all:
            tracker.log(int(step), numbers)

    def log_files(self, step: int, evaluation: str, files: Sequence[pathlib.Path]) -> None:
        for tracker in self._all:
            tracker.log_files(step, evaluation, files)

    def finish(self, status: Status) -> None:
        """Finishes each, whether or not another one can; then raises the error of one."""
        self._status = status
        self._started.close()
