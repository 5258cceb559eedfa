"""Trackers that are programs of their own, named in the key `trackers`: Weights & Biases, MLflow.

Both follow a run as metrics.jsonl does: settings, rows, and of every evaluation its files and a
sheet of pictures. `trackers.json` of the run's folder says which run of theirs it is, so a run that
is resumed goes on in it, on whichever machine. Rows that a resume made void stay there, beside
those that took their place. Keys come from the environment, and nothing of ours writes them.
"""

import importlib.util
import json
import logging
import netrc
import os
import pathlib
import queue
import re
import shutil
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from paligemma_jax.files import atomic, run_folder
from paligemma_jax.reports import sheets
from paligemma_jax.wording import phrases

PROJECT = "paligemma_jax"  # where the environment names no project or experiment
MAX_PICTURES = 12  # of an evaluation, the worst first
CONNECT_S = 10.0
WAITS_S = (1.0, 2.0, 4.0, 8.0, 15.0)  # between two tries, the last one from then on
LOOK_S = 0.05
AT_END_S = 60.0  # that a run waits for a service that does not answer
MAX_VALUE, MAX_PARAMS, MAX_METRICS = 6000, 100, 1000  # of MLflow: letters, and a request's rows
ENDINGS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

LOGGER = logging.getLogger(PROJECT)


class Wandb:
    """The tracker (`run_log.Tracker`) that sends a run to Weights & Biases.

    Its own variables say where to: WANDB_API_KEY, WANDB_PROJECT, WANDB_ENTITY, WANDB_BASE_URL,
    WANDB_MODE=offline (then `wandb sync` sends what lies in wandb/ of the run's folder), and so on.
    Sending, and trying again, is done by a process of its own.

    Raises:
      ValueError: its package or the key is missing.
    """

    def __init__(self) -> None:
        _require("wandb")
        address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        is_online = os.environ.get("WANDB_MODE", "online") in ("online", "shared")
        has_key = os.environ.get("WANDB_API_KEY") or _has_login(address)
        if is_online and not has_key:
            raise ValueError(
                f"trackers: wandb has no key for {address}: set WANDB_API_KEY, or call "
                f"`wandb login` once; WANDB_MODE=offline keeps all in the run's folder"
            )
        self._run: Any = None
        self._wandb: Any = None

    def start(
        self, folder: pathlib.Path, settings: Mapping[str, Any], resumed_step: int | None
    ) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        del resumed_step
        known = _known_runs(folder)
        name = folder.absolute().name
        try:
            self._run = wandb.init(
                dir=folder,
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=os.environ.get("WANDB_NAME", name),
                id=known.get("wandb", {}).get("id"),
                resume="allow",
                config=dict(settings),
                allow_val_change=True,
                settings=wandb.Settings(console="off", silent=True),
            )
        except (wandb.Error, OSError) as error:
            raise ValueError(f"trackers: wandb cannot begin: {error}") from error
        _keep_run(folder, known, "wandb", {"id": self._run.id, "project": self._run.project})
        # Its own count of steps goes up alone: a run that is resumed would lose rows.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self._wandb, self._folder = wandb, folder

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def log_files(self, step: int, evaluation: str, files: Sequence[pathlib.Path]) -> None:
        """Sends the files, each in place of the last of its name, and a sheet of pictures."""
        for file in files:
            copied = shutil.copy(file, self._run.dir)
            self._run.save(copied, base_path=self._run.dir, policy="now")
        if sheet := _write_sheet(self._folder, evaluation, files):
            picture = self._wandb.Image(str(sheet))
            self._run.log({f"{evaluation}/pictures": picture, "step": step})

    def finish(self, status: str) -> None:
        self._run.summary["status"] = status
        self._run.finish(exit_code=int(status == "failed"))


class Mlflow:
    """The tracker (`run_log.Tracker`) that sends a run to MLflow.

    MLFLOW_TRACKING_URI says where to, MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID into which
    experiment. Rows are sent by a thread, in order; a server that is away is tried again, and
    training goes on meanwhile.

    Raises:
      ValueError: the package or the address is missing, or nobody answers there.
    """

    def __init__(self) -> None:
        _require("mlflow")
        self._address = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not self._address:
            raise ValueError(
                "trackers: mlflow has no address: set MLFLOW_TRACKING_URI to that of a server "
                "(http://host:5000)"
            )
        _require_answer("mlflow", self._address)
        self._client: Any = None
        self._run = ""
        self._sender = _Sender(f"MLflow at {self._address}")

    def start(
        self, folder: pathlib.Path, settings: Mapping[str, Any], resumed_step: int | None
    ) -> None:
        from mlflow import entities, exceptions, tracking  # pyright: ignore[reportMissingImports]

        self._client, self._entities = tracking.MlflowClient(self._address), entities
        self._folder, known = folder, _known_runs(folder)
        stored = known.get("mlflow", {}).get("id")
        try:
            if stored is None:
                name = os.environ.get("MLFLOW_RUN_NAME", folder.absolute().name)
                made = self._client.create_run(self._experiment(), run_name=name)
                self._run, then = made.info.run_id, {}
            else:
                then = self._client.get_run(stored).data.params
                self._client.update_run(stored, status="RUNNING")
                self._run = stored
        except exceptions.MlflowException as error:
            where = f" ({folder / run_folder.TRACKERS} names the run {stored})" if stored else ""
            raise ValueError(
                f"trackers: mlflow at {self._address} cannot begin{where}: {error}"
            ) from error
        _keep_run(folder, known, "mlflow", {"id": self._run, "address": self._address})
        now = dict(_flat(settings))
        # Its settings cannot be changed: those of a resumed run stand beside them.
        changed = {name: text for name, text in now.items() if then.get(name, text) != text}
        new = [entities.Param(name, text) for name, text in now.items() if name not in then]
        for start in range(0, len(new), MAX_PARAMS):
            self._batch(params=new[start : start + MAX_PARAMS])
        if changed:
            text = json.dumps(changed, ensure_ascii=False)[:MAX_VALUE]
            self._batch(tags=[entities.RunTag(f"changed_at_step_{resumed_step}", text)])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        rows = [
            self._entities.Metric(_name(name), float(value), now, step)
            for name, value in values.items()
        ]
        for start in range(0, len(rows), MAX_METRICS):
            self._batch(metrics=rows[start : start + MAX_METRICS])

    def log_files(self, step: int, evaluation: str, files: Sequence[pathlib.Path]) -> None:
        """Sends the files and a sheet of pictures; those of the step before are replaced."""
        del step
        # What stands in the folder may be replaced by the time that it is sent: then that is.
        sheet = _write_sheet(self._folder, evaluation, files)
        for file in [*files, *([sheet] if sheet else [])]:
            self._sender.add(self._client.log_artifact, self._run, str(file))

    def finish(self, status: str) -> None:
        self._sender.add(self._client.set_terminated, self._run, ENDINGS[status])
        self._sender.close(AT_END_S)

    def _batch(self, **rows: Any) -> None:
        self._sender.add(self._client.log_batch, self._run, **rows)

    def _experiment(self) -> str:
        if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return number
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        there = self._client.get_experiment_by_name(name)
        return there.experiment_id if there else self._client.create_experiment(name)


class _Sender:
    """A thread that makes calls in order, and each again until it succeeds."""

    def __init__(self, whom: str):
        self._whom = whom
        self._calls: queue.Queue[Callable[[], object]] = queue.Queue()
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, call: Callable[..., object], *args: Any, **rest: Any) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._send, daemon=True)
            self._thread.start()
        self._calls.put(lambda: call(*args, **rest))

    def wait(self, timeout_s: float) -> bool:
        """Returns whether all calls were made within a time."""
        end = time.monotonic() + timeout_s
        while self._calls.unfinished_tasks and time.monotonic() < end:
            time.sleep(LOOK_S)
        return not self._calls.unfinished_tasks

    def close(self, timeout_s: float) -> None:
        """Waits for what is left, and says how much was not sent by then."""
        if not self.wait(timeout_s):
            left = phrases.count(self._calls.unfinished_tasks, "messages")
            LOGGER.warning(
                f"{self._whom} did not take {left} within {timeout_s:g} s of the run's end; "
                f"{run_folder.METRICS} has every row"
            )
        self._is_over.set()

    def _send(self) -> None:
        while not self._is_over.is_set():
            try:
                call = self._calls.get(timeout=1)
            except queue.Empty:
                continue
            num_failures = 0
            while not self._is_over.is_set():
                try:
                    call()
                    break
                except Exception as error:  # of its client, of the network, of the server
                    if num_failures == 0:
                        LOGGER.warning(f"{self._whom} is tried again: {str(error)[:300]}")
                    self._is_over.wait(WAITS_S[min(num_failures, len(WAITS_S) - 1)])
                    num_failures += 1
            self._calls.task_done()


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"trackers: '{package}' needs its package: pip install 'paligemma-jax[{package}]'"
        )


def _has_login(address: str) -> bool:
    """Whether `wandb login` has left a key for a server."""
    host = urllib.parse.urlsplit(address).hostname or address
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _require_answer(tracker: str, address: str) -> None:
    """Raises a ValueError if nobody answers at an http address; its client would try for long."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=CONNECT_S).close()
    except OSError as error:
        raise ValueError(f"trackers: {tracker}: nobody answers at {address}: {error}") from error


def _known_runs(folder: pathlib.Path) -> dict[str, dict[str, str]]:
    """Returns service -> the run there that follows this one, as an earlier start noted it."""
    path = folder / run_folder.TRACKERS
    try:
        known = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return {service: dict(run) for service, run in known.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): remove it, and services begin a new run"
        ) from error


def _keep_run(
    folder: pathlib.Path, known: Mapping[str, Any], service: str, run: Mapping[str, str]
) -> None:
    atomic.write_json(folder / run_folder.TRACKERS, {**known, service: run})


def _write_sheet(
    folder: pathlib.Path, evaluation: str, files: Sequence[pathlib.Path]
) -> pathlib.Path | None:
    """Writes a sheet of an evaluation's pictures, the worst answers first; returns its path.

    None where it has no pictures that lie in files.
    """
    cells = [cell for file in files if file.suffix == ".jsonl" for cell in _cells(file)]
    if not cells:
        return None
    path = folder / run_folder.pictures(evaluation)
    with atomic.new_file(path) as unfinished:
        sheets.write_contact_sheet(unfinished, cells)
    return path


def _cells(predictions: pathlib.Path) -> list[sheets.Cell]:
    rows = [json.loads(line) for line in predictions.read_text("utf-8").splitlines()]
    rows = [row for row in rows if row["images"] and os.path.isfile(row["images"][0])]
    rows.sort(key=lambda row: 1.0 if row.get("score") is None else row["score"])
    return [
        sheets.Cell(
            image=row["images"][0],
            prompt=row["prefix"],
            answer=row["prediction"],
            boxes_yxyx=np.array([one["box_yxyx"] for one in row.get("detections") or ()]),
            labels=tuple(one["label"] for one in row.get("detections") or ()),
        )
        for row in rows[:MAX_PICTURES]
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted key, its value as text) of nested settings."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield _name(f"{prefix}{key}"), text[:MAX_VALUE]


def _name(text: str) -> str:
    """Returns a name as MLflow takes it: it refuses some signs that labels may hold."""
    return re.sub(r"[^/\w.\- ]", "_", text).strip("/.") or "_"
