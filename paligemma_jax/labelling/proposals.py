"""What models propose for images without a label, and how much they doubt and disagree.

Each model answers in a process of its own, image by image, those first that somebody looks at: the
page never waits for it, and a model that fails costs nothing but its proposals.
"""

import dataclasses
import json
import pathlib
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from paligemma_jax.console import say
from paligemma_jax.data import objects as data_objects
from paligemma_jax.tasks import answer_metrics, geometry

Row = dict[str, Any]

COMMAND = ("-m", "paligemma_jax.labelling.proposing")
BATCH_SIZE = 8  # images that are asked about at a time
MATCH_IOU = 0.5
STOP_S = 5.0


@dataclasses.dataclass(frozen=True)
class Question:
    """An image that a model is asked about."""

    key: str
    path: str
    prompt: str


class Proposer:
    """A run's answers, as they come.

    Args:
      run: folder of the run.
      choose: (keys that are answered) -> the next questions, at most BATCH_SIZE; [] for now none.
      log: file for what the process says.
    """

    def __init__(
        self, run: str, choose: Callable[[set[str]], Sequence[Question]], log: pathlib.Path
    ):
        self.run, self.log = run, log
        self.rows: dict[str, Row] = {}
        self.failed: dict[str, str] = {}
        self.problem: str | None = None
        self._choose = choose
        self._wake = threading.Event()
        self._is_over = False
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Looks again what there is to ask."""
        self._wake.set()

    def close(self) -> None:
        """Ends the process; what it answered stays."""
        self._is_over = True
        self._wake.set()
        if self._process:
            self._process.terminate()
        self._thread.join(STOP_S)

    def _work(self) -> None:
        try:
            with open(self.log, "w", encoding="utf-8") as log:
                words = [sys.executable, *COMMAND, self.run]
                with subprocess.Popen(
                    words,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    encoding="utf-8",
                ) as self._process:
                    self._ask_on(self._process)
                    self._process.terminate()
        except (OSError, ValueError) as error:
            self.problem = str(error)
        if self.problem and not self._is_over:
            say.warning(f"no more proposals of {self.run}: {self.problem}; see {self.log}")

    def _ask_on(self, process: Any) -> None:
        while not self._is_over:
            asked = self._choose({*self.rows, *self.failed})
            if not asked:
                self._wake.wait(1.0)
                self._wake.clear()
                continue
            process.stdin.write(json.dumps([dataclasses.asdict(one) for one in asked]) + "\n")
            process.stdin.flush()
            for _ in asked:
                line = process.stdout.readline()
                if not line:
                    self.problem = f"its process ended: {_last_line(self.log)}"
                    return
                answer = json.loads(line)
                if "error" in answer:
                    self.failed[answer["key"]] = answer["error"]
                else:
                    self.rows[answer["key"]] = answer["row"]


def _last_line(path: pathlib.Path) -> str:
    lines = path.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def doubt(row: Mapping[str, Any]) -> float:
    """Returns 0..1: one minus the geometric mean of the probabilities of an answer's tokens."""
    count = max(int(row.get("tokens") or 0), 1)
    return round(1 - float(np.exp(float(row.get("logp") or 0.0) / count)), 4)


def disagreement(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Returns 0..1: one minus the F1 of two answers to an image.

    Objects agree where labels are the same and boxes have IoU 0.5, one with one; texts share words.
    """
    if "detections" not in one or "detections" not in other:
        same = answer_metrics.word_f1(str(one["prediction"]), [str(other["prediction"])])
        return round(1 - same, 4)
    first, second = one["detections"], other["detections"]
    if not first and not second:
        return 0.0
    if not first or not second:
        return 1.0
    ious = geometry.iou(_boxes(first), _boxes(second))
    labels = [[a["label"] == b["label"] for b in second] for a in first]
    ious = np.where(labels, ious, 0.0)
    matched = 0
    while ious.size and ious.max() >= MATCH_IOU:
        row, column = np.unravel_index(ious.argmax(), ious.shape)
        ious[row, :] = ious[:, column] = 0
        matched += 1
    return round(1 - 2 * matched / (len(first) + len(second)), 4)


def _boxes(detections: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.array([one["box_yxyx"] for one in detections], np.float64).reshape(-1, 4)


def to_objects(row: Mapping[str, Any], size: tuple[int, int]) -> list[Row] | None:
    """Returns what a model found as objects of a row with their scores; None for words.

    Args:
      row: its answer.
      size: (width, height) of the image in pixels.
    """
    if "detections" not in row:
        return None
    width, height = size
    shown = []
    for one in row["detections"]:
        box = np.clip(np.array(one["box_yxyx"], np.float64), 0, 1) * [height, width, height, width]
        top, left, bottom, right = np.round(box, data_objects.DIGITS).tolist()
        if right <= left or bottom <= top or not str(one["label"]).strip():
            continue
        found_here: Row = {"label": one["label"], "box": [left, top, right, bottom]}
        if "mask" in one:
            mask = np.where(geometry.unpack_mask(one["mask"]), 1.0, -1.0)
            pasted = geometry.paste_mask(mask, np.array(one["box_yxyx"]), height, width)
            counts = data_objects.encode_bitmap(pasted)
            found_here["segmentation"] = {"size": [height, width], "counts": counts}
        shown.append(found_here | {"score": float(one.get("score", 1.0))})
    return shown
