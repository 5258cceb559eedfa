"""The names of the files in a run's folder, and which process works in it.

config.json                      the settings, every key resolved
prompt.json                      what it is asked, and the classes that it knows
tokenizer.model, mask_codec.npz  copies: the folder works without the files it was started from
metrics.jsonl                    a row of numbers per logged step
train.log                        what the terminal showed, each line with its time
tensorboard/                     the same rows, as event files
trackers.json                    the runs of Weights & Biases and MLflow that follow this one
checkpoints/000200/              to resume from
predictions-val-000200.jsonl     the answers of an evaluation at a step
metrics.json, report.html        the scores and the report of the last evaluation; of several
                                 evaluations metrics-val.json, report-val.html
pictures-val.png                 its worst answers, drawn: what trackers send to a service
final.npz                        the weights, written last: its presence ends the run
in-use.lock, in-use.json         while a training works in it: see `claimed`
evaluation-val/                  what `evaluate` writes later: predictions.jsonl, metrics.json
                                 and report.html
"""

import contextlib
import dataclasses
import datetime
import importlib
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

from paligemma_jax.files import atomic

OWNER = "in-use.json"
HERE = "{run}/"  # begins a path in config.json that leads into the folder itself
CONFIG = "config.json"
TOKENIZER = "tokenizer.model"
PROMPT = "prompt.json"
MASK_CODEC = "mask_codec.npz"
METRICS = "metrics.jsonl"
LOG = "train.log"
TENSORBOARD = "tensorboard"
TRACKERS = "trackers.json"
CHECKPOINTS = "checkpoints"
FINAL = "final.npz"
PREDICTIONS = "predictions.jsonl"
SWEEP = "sweep.html"  # of a sweep, in the folder above its runs


def keep_path(path: str, run: pathlib.Path) -> str:
    """Returns a path as config.json holds it: whole, or from the run's folder on if it is in it."""
    whole, root = os.path.abspath(os.path.expanduser(path)), os.path.abspath(run)
    is_inside = whole.startswith(root + os.sep)
    return HERE + pathlib.Path(os.path.relpath(whole, root)).as_posix() if is_inside else whole


def find_path(path: str, run: pathlib.Path) -> str:
    """Returns where a path of config.json leads to now.

    Runs of before have paths from the folder that they were started in: if that is not the one of
    this process, it is likely one that the run's folder lies in.
    """
    if path.startswith(HERE):
        return os.path.join(os.path.abspath(run), path.removeprefix(HERE))
    if os.path.isabs(path) or os.path.exists(path):
        return path
    above = (parent / path for parent in pathlib.Path(os.path.abspath(run)).parents)
    return next((str(place) for place in above if place.exists()), path)


def predictions(evaluation: str, step: int) -> str:
    """Returns the file of an evaluation's answers after a step."""
    return f"predictions-{evaluation}-{step:06d}.jsonl"


def scores(evaluation: str = "") -> str:
    """Returns the file of scores; named after the evaluation where there are several."""
    return f"metrics-{evaluation}.json" if evaluation else "metrics.json"


def report(evaluation: str = "") -> str:
    """Returns the file of the report; named after the evaluation where there are several."""
    return f"report-{evaluation}.html" if evaluation else "report.html"


def pictures(evaluation: str) -> str:
    """Returns the file of an evaluation's answers, drawn."""
    return f"pictures-{evaluation}.png"


def evaluation(name: str) -> str:
    """Returns the folder of what `evaluate` writes."""
    return f"evaluation-{name}"


# Places that may be addresses: gs://bucket/run, s3://..., what fsspec opens. What reads and writes
# there is imported where a place is one.


def is_remote(place: object) -> bool:
    """Whether a place is an address; a scheme of one letter is a disk of Windows."""
    scheme, separator, _ = str(place).partition("://")
    return bool(separator) and len(scheme) > 1 and scheme != "file"


@contextlib.contextmanager
def working_in(place: str) -> Iterator[pathlib.Path]:
    """Yields the folder of a run to work in: of an address, its mirror here (`files.mirror`)."""
    if not is_remote(place):
        yield pathlib.Path(place)
        return
    with _of_addresses("mirror").mirrored(place) as folder:
        yield folder


@contextlib.contextmanager
def opened(run: str | None, *, checkpoints: bool = True) -> Iterator[str | None]:
    """Yields the folder of a run that ended: of an address, a copy; what is written there is sent.

    `checkpoints`: whether they are needed, besides the final weights.
    """
    if run is None or not is_remote(run):
        yield run
        return
    leave_out = "" if checkpoints else f"{CHECKPOINTS}/"
    with _of_addresses("remote").opened(run, leave_out=leave_out) as folder:
        yield str(folder)


@contextlib.contextmanager
def writing_to(place: str | None) -> Iterator[str | None]:
    """Yields a folder to write into: of an address, one whose files are sent there at the end."""
    if place is None or not is_remote(place):
        yield place
        return
    with _of_addresses("remote").sending(place) as folder:
        yield str(folder)


def fetch(place: str) -> str:
    """Returns where a file is here, fetched if it is at an address."""
    return str(_of_addresses("remote").fetch(place)) if is_remote(place) else place


def _of_addresses(module: str) -> Any:
    return importlib.import_module(f"paligemma_jax.files.{module}")


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that works in a folder."""

    host: str
    pid: int
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


@contextlib.contextmanager
def claimed(folder: pathlib.Path) -> Iterator[Owner | None]:
    """Keeps other processes that ask for the same folder out of it, while the block runs.

    Two files lie in it meanwhile: one is locked, the other says by whom. Whoever is killed leaves
    both, and the system releases the lock. A folder that was not there, and is empty at the end, is
    removed.

    Yields:
      who had it before and was killed, or None.

    Raises:
      ValueError: another process has it; the text says which.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock_file, owner_file = folder / atomic.LOCK, folder / OWNER
    lock = place = None
    # On a disk that knows no locks nobody is kept out.
    with contextlib.suppress(OSError, NotImplementedError):
        lock = atomic.try_lock(lock_file)
        if lock is None:
            owner = _read_owner(owner_file) or "another process"
            raise ValueError(
                f"{folder} is in use by {owner}: wait until it ends, or choose another folder"
            )
        place = os.stat(lock_file)
    try:
        before = _read_owner(owner_file)
        _write_owner(owner_file)
        yield before
    finally:
        if lock:
            # Of a folder that took the place of ours, the files are not ours.
            with contextlib.suppress(OSError):
                if place and os.path.samestat(os.stat(lock_file), place):
                    owner_file.unlink(missing_ok=True)
                    lock_file.unlink(missing_ok=True)
            lock.release()
        if is_new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _read_owner(path: pathlib.Path) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write_owner(path: pathlib.Path) -> None:
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    owner = Owner(socket.gethostname(), os.getpid(), since)
    path.write_text(json.dumps(dataclasses.asdict(owner)) + "\n", "utf-8")
