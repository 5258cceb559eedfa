"""Rounds of training on what is labelled so far, in the background: `train` in its own process.

A round's folder, `.labelling/rounds/003`, holds the rows that it was trained on and kept out, what
the command said, and its run. An image is in the same part in every round.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from paligemma_jax.console import say
from paligemma_jax.files import atomic, run_folder
from paligemma_jax.labelling import row_store
from paligemma_jax.tasks import task

COMMAND = ("-m", "paligemma_jax.finetune")
KEPT_OUT = 5  # one row of so many is evaluated and not trained on
FEWEST = 5  # rows that are trained on


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What a round trains, as options of `train --data`.

    Attributes:
      model: what every round starts from.
      method, epochs, res: None: as `train` chooses.
      every: rows that are labelled anew between rounds; None: rounds begin when they are asked for.
    """

    model: str
    method: str | None = None
    epochs: float | None = None
    res: int | None = None
    every: int | None = None


class Rounds:
    """Trains one round after the other.

    Args:
      store: the data set.
      folder: of all rounds.
      options: what is trained.
      on_run: called with the folder of a run that ended well.
    """

    def __init__(
        self,
        store: row_store.Store,
        folder: pathlib.Path,
        options: TrainOptions,
        on_run: Callable[[str], None],
    ):
        self.options = options
        self._store, self._folder, self._on_run = store, folder, on_run
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._is_over = False
        self._told = ""
        done = sorted(folder.glob("[0-9]*")) if folder.exists() else []
        self.number = int(done[-1].name) if done else 0
        self._rows_then = len(self._done())

    @property
    def is_training(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def latest(self) -> str | None:
        """Returns the run of the last round that ended well, of this process or one before."""
        ended = sorted(self._folder.glob(f"[0-9]*/run/{run_folder.FINAL}"))
        return str(ended[-1].parent) if ended else None

    def begin(self, task_name: str) -> None:
        """Begins a round, or raises a ValueError where one goes on or there is too little."""
        with self._lock:
            if self.is_training:
                raise ValueError(f"round {self.number} is training: wait for its end")
            rows = self._done()
            if len(rows) < FEWEST:
                raise ValueError(
                    f"{len(rows)} rows are done, and a round needs {FEWEST}: press Enter on images"
                )
            self.number += 1
            self._rows_then = len(rows)
            folder = self._folder / f"{self.number:03d}"
            words = self._write(folder, rows, task_name)
            self._thread = threading.Thread(target=self._train, args=(folder, words), daemon=True)
            self._thread.start()

    def look(self, task_name: str) -> None:
        """Begins a round if so many rows were labelled since the last one."""
        every = self.options.every
        if every and not self.is_training:
            done = len(self._done())
            if done - self._rows_then >= every and done >= FEWEST:
                self.begin(task_name)

    def status(self) -> str:
        """Returns how training goes, in a line; "" before the first round."""
        if self.is_training:
            log = self._folder / f"{self.number:03d}" / "train.log"
            text = log.read_text("utf-8", "replace").strip() if log.exists() else ""
            last = text.splitlines()[-1][:100] if text else "starting"
            return f"round {self.number}, on {self._rows_then} rows: {last}"
        return self._told

    def close(self) -> None:
        """Ends a round that goes on; the same rows are trained on when it is asked for again."""
        self._is_over = True
        if self._process:
            self._process.terminate()
        if self._thread:
            self._thread.join()

    def _done(self) -> list[row_store.Item]:
        return [item for item in self._store.items() if item.is_done]

    def _write(
        self, folder: pathlib.Path, items: Sequence[row_store.Item], task_name: str
    ) -> list[str]:
        """Writes a round's rows; returns the words of the command that trains on them."""
        folder.mkdir(parents=True)
        parts: dict[str, list[Any]] = {"train": [], "valid": []}
        for item in items:
            is_out = zlib.crc32(" ".join(item.images).encode()) % KEPT_OUT == 0
            row = {key: value for key, value in (item.row or {}).items() if key != row_store.ABOUT}
            parts["valid" if is_out else "train"].append(row)
        if not parts["train"] or not parts["valid"]:  # then `train` divides them
            parts = {"train": [*parts["train"], *parts["valid"]]}
        for name, rows in parts.items():
            atomic.write_jsonl(folder / f"{name}.jsonl", rows)
        words = ["--data", str(folder / "train.jsonl"), "--images", str(self._store.folder)]
        words += ["--model", self.options.model, "--workdir", str(folder / "run")]
        words += ["--task", task.trained_as(task_name).name]
        for name in ("method", "epochs", "res"):
            if (value := getattr(self.options, name)) is not None:
                words += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
        return words

    def _train(self, folder: pathlib.Path, words: Sequence[str]) -> None:
        command = [sys.executable, *COMMAND, *words]
        try:
            with (
                open(folder / "train.log", "w", encoding="utf-8") as log,
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True
                ) as self._process,
            ):
                status = self._process.wait()
        except OSError as error:
            self._told = f"round {self.number} did not start: {error}"
            return
        if self._is_over:
            return
        run = folder / "run"
        if status or not (run / run_folder.FINAL).exists():
            self._told = f"round {self.number} failed: see {folder / 'train.log'}"
            say.error(self._told)
            return
        self._told = f"round {self.number}, on {self._rows_then} rows: {read_scores(run)}"
        say.info(self._told)
        self._on_run(str(run))


def read_scores(run: pathlib.Path) -> str:
    """Returns the first scores of a run's last evaluation, as "map50 0.812, loss 0.41"."""
    files = sorted(run.glob("metrics*.json"))
    if not files:
        return "no scores"
    scores = task.scalars(json.loads(files[0].read_text("utf-8")))
    shown = [name for name in task.leading_scores() if name in scores][:2]
    return ", ".join(f"{task.TITLES.get(name, name)} {scores[name]:.3f}" for name in shown)
