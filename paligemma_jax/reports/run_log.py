"""The numbers of a run, as it goes: metrics.jsonl, TensorBoard, and whatever else is a `Tracker`.

To add a tracker of your own, pass it to training (docs/extending.md); to name one in the key
`trackers`, list it in TRACKERS.

A row of metrics.jsonl is one line of JSON, `{"step": 20, "train/loss": 2.31, ...}`: numbers by
name. JSON has no nan, so such a value is written as null and named: `{"step": 21, "train/loss":
null, "nonfinite": {"train/loss": "nan"}}`; `read_rows` gives it back.

A run that is resumed appends to the same file. A line `{"resumed_step": 100}` says that what was
written before it about later steps is void; `read_rows` leaves it out.
"""

import contextlib
import importlib
import json
import math
import os
import pathlib
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from paligemma_jax.files import atomic, run_folder
from paligemma_jax.wording import phrases

# Names that the format needs.
RESERVED = {"step", "nonfinite", "resumed_step"}


class MetricsFile:
    """The tracker (`Tracker`) that appends rows to metrics.jsonl of the run's folder."""

    def __init__(self) -> None:
        self._file: Any = None

    def start(
        self, folder: pathlib.Path, settings: Mapping[str, Any], resumed_step: int | None
    ) -> None:
        """Opens the file.

        Raises:
          ValueError: a new run, but the folder has metrics.
        """
        del settings
        path = folder / run_folder.METRICS
        if resumed_step is None and path.exists() and path.stat().st_size:
            raise ValueError(
                f"{path} holds the metrics of another run: resume it, or change folder"
            )
        _cut_torn_line(path)
        is_resumed = resumed_step is not None
        first = _line({"resumed_step": int(resumed_step)}) if is_resumed else b""
        self._file = atomic.GrowingFile(path, first=first)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one row at once, so that a run that is killed keeps what it has measured."""
        nonfinite = {name: str(value) for name, value in values.items() if not math.isfinite(value)}
        shown = {name: None if name in nonfinite else value for name, value in values.items()}
        row = {"step": step, **shown} | ({"nonfinite": nonfinite} if nonfinite else {})
        self._file.append(_line(row))

    def log_files(self, step: int, evaluation: str, files: Sequence[pathlib.Path]) -> None:
        """Does nothing: the files are beside the rows."""

    def finish(self, status: str) -> None:
        del status
        self._file.close()


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def to_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns a row's values as Python numbers: floats keep nine digits, all of a float32.

    Args:
      values: numbers by name, also scalars of numpy or jax.

    Raises:
      ValueError: a value that is no number, or a name that the format needs.
    """
    numbers = {name: _number(name, value) for name, value in values.items()}
    if reserved := RESERVED & set(numbers):
        raise ValueError(f"metrics cannot be called {sorted(reserved)}")
    return numbers


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl that count: one per step, in order of steps.

    Rows of one step are joined (training and evaluation may write one each), the last value of a
    name counts; rows that a resumed run made void are left out, as is a torn last line.

    Raises:
      ValueError: a line that is no row, with its number.
    """
    by_step: dict[int, dict[str, Any]] = {}
    raw = pathlib.Path(path).read_bytes()
    for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
            resumed_step, step = row.get("resumed_step"), row.get("step")
            if not isinstance(step if resumed_step is None else resumed_step, int):
                raise KeyError("step")
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}:{number}: not a row of metrics: {error!r}") from error
        if resumed_step is not None:
            by_step = {key: kept for key, kept in by_step.items() if key <= resumed_step}
        else:
            nonfinite = row.pop("nonfinite", {})
            row |= {name: float(value) for name, value in nonfinite.items()}
            by_step.setdefault(step, {}).update(row)
    return [by_step[step] for step in sorted(by_step)]


def _number(name: str, value: Any) -> float:
    try:
        value = value.item() if hasattr(value, "item") else value
    except (ValueError, TypeError) as error:
        raise ValueError(f"metric '{name}' is not one number: {error}") from error
    if isinstance(value, int):
        return int(value)
    if not isinstance(value, float):
        raise ValueError(f"metric '{name}' is not a number: {value!r}")
    return float(f"{value:.9g}")


def _cut_torn_line(path: pathlib.Path) -> None:
    """Takes away a last line without its end: the run that wrote it was killed meanwhile."""
    if path.exists():
        raw = path.read_bytes()
        if (end := raw.rfind(b"\n") + 1) < len(raw):
            os.truncate(path, end)


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
    """The tracker that writes TensorBoard's event files, into `tensorboard/` of the run.

    Each row is written when it comes: tensorboardX's own writer does so in a thread, where a full
    disk would end that thread alone, and the run would wait for it.
    """

    def __init__(self) -> None:
        self._file: Any = None

    def start(
        self, folder: pathlib.Path, settings: Mapping[str, Any], resumed_step: int | None
    ) -> None:
        del settings
        folder = folder / run_folder.TENSORBOARD
        # TensorBoard reads files in the order of their names: of the time, to the nanosecond.
        now = time.time_ns()
        time_ns = f"{now // 10**9}.{socket.gethostname()}.{now % 10**9:09d}"
        path = folder / f"events.out.tfevents.{time_ns}"
        with atomic.writing(path):
            folder.mkdir(parents=True, exist_ok=True)
        first: list[dict[str, Any]] = [{"file_version": "brain.Event:2"}]
        first += [] if resumed_step is None else [_restart(resumed_step + 1)]
        self._file = atomic.GrowingFile(path, first=_events(first))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboardX import summary

        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        scalars = [summary.scalar(name, value) for name, value in finite.items()]
        self._file.append(_events([{"step": step, "summary": scalar} for scalar in scalars]))

    def log_files(self, step: int, evaluation: str, files: Sequence[pathlib.Path]) -> None:
        """Does nothing: the report of an evaluation is a page of its own."""

    def finish(self, status: str) -> None:
        del status
        self._file.close()


def _events(events: Sequence[Mapping[str, Any]]) -> bytes:
    from tensorboardX.proto import event_pb2

    now = time.time()
    made = [event_pb2.Event(wall_time=now, **event).SerializeToString() for event in events]
    return b"".join(map(_record, made))


def _restart(step: int) -> dict[str, Any]:
    """Returns the event that makes TensorBoard forget what was written of `step` and later."""
    from tensorboardX.proto import event_pb2

    status = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return {"step": step, "session_log": status}


def _record(data: bytes) -> bytes:
    """Returns bytes as a record of TFRecord: their length and themselves, each with a checksum."""
    from tensorboardX import record_writer

    length = struct.pack("<Q", len(data))
    sums = [struct.pack("<I", record_writer.masked_crc32c(part)) for part in (length, data)]
    return length + sums[0] + data + sums[1]


SERVICES = "paligemma_jax.reports.services"
# What the key `trackers` may name: the class, or (module, class) of one that is imported then.
TRACKERS: dict[str, Callable[[], Tracker] | tuple[str, str]] = {
    "tensorboard": TensorBoard,
    "wandb": (SERVICES, "Wandb"),
    "mlflow": (SERVICES, "Mlflow"),
}


def make(names: Sequence[str]) -> list[Tracker]:
    """Returns the trackers of these names, which follow nothing yet.

    Raises:
      ValueError: a name that is not known or given twice; a package, key or address is missing.
    """
    made = []
    for number, name in enumerate(names):
        if name not in TRACKERS:
            hint = phrases.did_you_mean(name, TRACKERS)
            known = f"Known: {', '.join(TRACKERS)}; metrics.jsonl is written anyway"
            raise ValueError(f"trackers: '{name}' is not known. {hint}{known}")
        if name in names[:number]:
            raise ValueError(f"trackers: '{name}' is there twice; keep one")
        one = TRACKERS[name]
        one = getattr(importlib.import_module(one[0]), one[1]) if isinstance(one, tuple) else one
        made.append(one())
    return made


class Trackers:
    """That of metrics.jsonl, which every run has, and some more, as one."""

    def __init__(self, more: Sequence[Tracker] = ()):
        self._all = [MetricsFile(), *more]
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
        numbers = to_numbers(values)
        for tracker in self._all:
            tracker.log(int(step), numbers)

    def log_files(self, step: int, evaluation: str, files: Sequence[pathlib.Path]) -> None:
        for tracker in self._all:
            tracker.log_files(step, evaluation, files)

    def finish(self, status: Status) -> None:
        """Finishes each, whether or not another one can; then raises the error of one."""
        self._status = status
        self._started.close()
