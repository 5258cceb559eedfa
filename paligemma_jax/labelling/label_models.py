"""The models behind the labelling page: who proposes, in which order images come, and training."""

import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from paligemma_jax.labelling import (
    data_opening,
    label_rounds,
    proposals,
    row_store,
    served_images,
)
from paligemma_jax.wording import phrases

Row = dict[str, Any]

ORDERS = [["doubt", "in doubt first"]]
BY_DISAGREEMENT = ["disagreement", "where two disagree first"]


class Models:
    """Proposals of one run or two, and rounds of training that take the place of the first.

    Args:
      store: the data set.
      images: finds its images.
      runs: folders of none, one or two runs.
      prompt: (item) -> what it is asked.
      training: what rounds train; None: there are none.
    """

    def __init__(
        self,
        store: row_store.Store,
        images: served_images.Images,
        *,
        runs: Sequence[str],
        prompt: Callable[[row_store.Item], str],
        training: label_rounds.TrainOptions | None = None,
    ):
        self._store, self._images, self._prompt = store, images, prompt
        self._focus = 0
        self._lock = threading.Lock()
        self._beside = store.folder / data_opening.BESIDE
        self.rounds: label_rounds.Rounds | None = None
        if training:
            folder = self._beside / "rounds"
            self.rounds = label_rounds.Rounds(store, folder, training, self.swap)
            if latest := self.rounds.latest():
                runs = [latest, *runs[1:]]
        self._proposers = [self._open(run, number) for number, run in enumerate(runs)]

    def _open(self, run: str, number: int) -> proposals.Proposer:
        return proposals.Proposer(run, self._choose, self._beside / f"proposals-{number}.log")

    def swap(self, run: str) -> None:
        """Lets another run propose in place of the first, from the image on that is looked at."""
        with self._lock:
            before = self._proposers[:1]
            self._proposers[:1] = [self._open(run, 0)]
        for one in before:
            one.close()

    def focus(self, number: int) -> None:
        """Proposes for the images from a place on first."""
        if number != self._focus:
            self._focus = number
            for one in self._proposers:
                one.wake()

    def _choose(self, answered: set[str]) -> list[proposals.Question]:
        """Returns the next images to ask about: those without a label, from the focus on."""
        items = self._store.items()
        asked: list[proposals.Question] = []
        for item in [*items[self._focus :], *items[: self._focus]]:
            if item.key in answered or item.is_done or len(item.images) != 1:
                continue
            try:
                path = self._images.path(item.images[0])
            except ValueError:
                answered.add(item.key)  # the page says what is wrong with it
                continue
            asked.append(proposals.Question(item.key, path, self._prompt(item)))
            if len(asked) == proposals.BATCH_SIZE:
                break
        return asked

    def proposal(self, item: row_store.Item) -> Row | None:
        """Returns what the first model proposes for an item, with doubt and disagreement."""
        rows = [one.rows.get(item.key) for one in self._proposers]
        if not rows or rows[0] is None:
            return None
        try:
            objects = proposals.to_objects(rows[0], self._images.size(item.images[0]))
        except (ValueError, OSError):
            return None
        return {"objects": objects, "text": rows[0]["prediction"], **self._numbers(rows)}

    def numbers(self) -> dict[str, Row]:
        """Returns by item how much the first model doubts, and how much two disagree."""
        if not self._proposers:
            return {}
        others = self._proposers[1:]
        return {
            key: self._numbers([row, *(one.rows.get(key) for one in others)])
            for key, row in list(self._proposers[0].rows.items())
        }

    def _numbers(self, rows: Sequence[Row | None]) -> Row:
        first, *others = rows
        made: Row = {"doubt": proposals.doubt(first)} if first else {}
        if first and others and others[0]:
            made["disagreement"] = proposals.disagreement(first, others[0])
        return made

    def status(self) -> Row:
        """Returns how proposals and training go, for the page."""
        lines = []
        for one in self._proposers:
            total = sum(not item.is_done for item in self._store.items())
            name = pathlib.Path(one.run).name
            name = pathlib.Path(one.run).parent.name if name == "run" else name
            lines.append(one.problem or f"{name}: {len(one.rows):,} proposals, {total:,} to do")
        if self.rounds and (training := self.rounds.status()):
            lines.append(training)
        orders = [*ORDERS, *([BY_DISAGREEMENT] if len(self._proposers) > 1 else [])]
        first = self._proposers[0] if self._proposers else None
        return {
            "text": phrases.visible(" · ".join(lines)),
            "answered": f"{first.run}:{len(first.rows)}" if first else "",
            "orders": orders if first else [],
            "can_train": self.rounds is not None,
            "is_training": bool(self.rounds and self.rounds.is_training),
        }

    def train(self, task_name: str) -> None:
        """Begins a round of training."""
        if self.rounds is None:
            raise ValueError("nothing to train: start with --model NAME, or --run FOLDER")
        self.rounds.begin(task_name)

    def labelled(self, task_name: str) -> None:
        """Is told that a row was labelled: it may be time for a round."""
        if self.rounds:
            self.rounds.look(task_name)

    def close(self) -> None:
        if self.rounds:
            self.rounds.close()
        for one in self._proposers:
            one.close()
