"""Two evaluations of one data set beside each other: scores, wins and losses, pictures.

One is what is looked at, as a fine-tuned model; the other is what it is held against, as the base
that it was trained from.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paligemma_jax.assembly import datasets
from paligemma_jax.console import say
from paligemma_jax.evaluation import report
from paligemma_jax.files import atomic, run_folder
from paligemma_jax.reports import drawing, page, sections, sheets
from paligemma_jax.tasks import task
from paligemma_jax.wording import phrases

PAGE, VALUES, PICTURES = "comparison.html", "comparison.json", "comparison.png"
NUM_SHOWN, NUM_PICTURES = 200, 24  # examples on the page, those that differ most first
MAX_TEXT = 300  # letters of an answer in a table
ALIKE = 1e-9  # scores of an example that differ by less are the same


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
      name: what it is called.
      folder: of its evaluation.
    """

    name: str
    folder: pathlib.Path

    def values(self) -> dict[str, Any]:
        return json.loads((self.folder / run_folder.scores()).read_text("utf-8"))

    def rows(self) -> list[dict[str, Any]]:
        path = self.folder / run_folder.PREDICTIONS
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What comes of it.

    Attributes:
      names: of what is held against, and of what is looked at.
      scores: name -> (of the first, of the second); None where one has no such score.
      wins, losses, ties: examples that the second answers better, worse, alike.
    """

    names: tuple[str, str]
    scores: Mapping[str, tuple[float | None, float | None]]
    wins: int
    losses: int
    ties: int

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Returns (header, rows) of the scores and how they differ."""
        rows = []
        for name, (first, second) in self.scores.items():
            difference = "" if first is None or second is None else f"{second - first:+.3f}"
            cells = (page.show(first), page.show(second), difference)
            rows.append((task.TITLES.get(name, name), *cells))
        return ("", *self.names, "difference"), rows

    def summary(self) -> str:
        """Returns the wins and losses in words."""
        return f"{self.wins:,} better, {self.losses:,} worse, {self.ties:,} alike"


def write(before: Side, after: Side, out: pathlib.Path) -> Comparison:
    """Writes a page, a picture and a JSON file of two evaluations, and returns what they say.

    Raises:
      ValueError: evaluations of different data.
    """
    pairs = _pair(before, after)
    made = _compare(before, after, pairs)
    pairs.sort(key=_how_different)
    drawn = _draw(pairs[:NUM_PICTURES], made.names, out / PICTURES)
    header, rows = made.table()
    parts: list[sections.Section] = [
        sections.Section("scores", "", (sections.Table(made.summary(), header, tuple(rows)),))
    ]
    if drawn:
        picture = sections.Picture(drawing.open_rgb(out / PICTURES), "")
        title = f"Left {made.names[0]}, right {made.names[1]}, then the truth"
        title = title if _has_boxes(pairs) else "Pictures"
        parts.append(sections.Section("pictures", title, (picture,)))
    parts.append(sections.Section("answers", "Answers", (_answers(pairs, made.names),)))
    title = f"{made.names[1]} against {made.names[0]}"
    atomic.write_text(out / PAGE, sections.to_html(title, parts))
    values = dataclasses.asdict(made) | {"data": after.values().get("data")}
    atomic.write_json(out / VALUES, values)
    return made


def say_result(made: Comparison, out: pathlib.Path) -> None:
    """Shows the table, and where the page is."""
    header, rows = made.table()
    say.info(f"\n{say.table(rows, header=header)}\n\n{made.summary()}: {out / PAGE}")


Pair = tuple[dict[str, Any], dict[str, Any]]


def _pair(before: Side, after: Side) -> list[Pair]:
    first = {row["index"]: row for row in before.rows()}
    pairs = [(first[row["index"]], row) for row in after.rows() if row["index"] in first]
    same = all(a["images"] == b["images"] and a["suffix"] == b["suffix"] for a, b in pairs)
    if not pairs or not same or len(pairs) != len(first):
        raise ValueError(
            f"{before.folder} and {after.folder} are evaluations of different data: evaluate both "
            f"on one file"
        )
    return pairs


def _compare(before: Side, after: Side, pairs: Sequence[Pair]) -> Comparison:
    # A class without an example has no score: JSON's null.
    values = [task.scalars(_known(side.values())) for side in (before, after)]
    names = [name for name in task.leading_scores() if any(name in one for one in values)]
    changes = [b["score"] - a["score"] for a, b in pairs if None not in (a["score"], b["score"])]
    wins, losses = (sum(sign * x > ALIKE for x in changes) for sign in (1, -1))
    return Comparison(
        (before.name, after.name),
        {name: (values[0].get(name), values[1].get(name)) for name in names},
        wins,
        losses,
        len(changes) - wins - losses,
    )


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested scores without those that are None."""
    return {
        key: _known(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }


def _how_different(pair: Pair) -> tuple[float, int]:
    """Orders pairs: the largest change of the score first, losses before gains of the same size."""
    before, after = (row["score"] or 0.0 for row in pair)
    return (-abs(after - before) - 1e-6 * (after < before), pair[1]["index"])


def _answers(pairs: Sequence[Pair], names: tuple[str, str]) -> sections.Table:
    rows = []
    for before, after in pairs[:NUM_SHOWN]:
        scores = (page.show(row["score"]) for row in (before, after))
        texts = (before["prediction"], after["prediction"], after["suffix"] or "")
        cells = [phrases.visible(text)[:MAX_TEXT] for text in texts]
        rows.append((after["source"], after["prefix"], *cells, *scores))
    header = ("", "prompt", *names, "truth", *(f"score of {name}" for name in names))
    left_out = len(pairs) - len(rows)
    title = f"The {len(rows):,} that differ most of {len(pairs):,}" if left_out else ""
    return sections.Table(title, header, tuple(rows))


def _has_boxes(pairs: Sequence[Pair]) -> bool:
    return any("detections" in row for pair in pairs for row in pair)


def _draw(pairs: Sequence[Pair], names: tuple[str, str], path: pathlib.Path) -> bool:
    """Draws pictures with what both answer and the truth; False where none can be read."""
    rows = []
    for before, after in pairs:
        if not after["images"]:
            continue
        try:
            pixels = np.asarray(datasets.open_image(after["images"][0]).convert("RGB"))
        except (OSError, ValueError):
            continue
        first, second = (page.show(row["score"]) for row in (before, after))
        title = f"{names[0]} {first}, {names[1]} {second}   {after['source']}"
        objects = [before.get("detections"), after.get("detections"), after.get("truths")]
        shown = objects if objects[1] is not None else [()]
        rows.append((title, [_picture(pixels, one or ()) for one in shown]))
    if rows:
        sheets.write_rows(path, rows)
    return bool(rows)


def _picture(pixels: np.ndarray, objects: Sequence[Mapping[str, Any]]) -> sheets.Picture:
    boxes = np.array([one["box_yxyx"] for one in objects], float).reshape(-1, 4)
    return sheets.Picture(pixels, boxes, tuple(one["label"] for one in objects))


def link(out: pathlib.Path) -> None:
    """Adds a link to the comparison to the report beside it."""
    path = out / run_folder.report()
    text = path.read_text("utf-8")
    added = page.render("link.html", name="this against another", address=PAGE).strip()
    first, end, rest = text.partition(report.END_OF_LINKS)
    if end and added not in first:
        atomic.write_text(path, f"{first}{added}\n{end}{rest}")
