"""A report on predictions: one HTML file that opens without network, worst examples first."""

import dataclasses
import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from paligemma_jax.files import atomic
from paligemma_jax.reports import diagnosis, drawing, page, plots

TEMPLATE = "gallery.html"
NUM_OPEN_PLOTS = 6  # the others are folded away
NUM_OPEN_GRIDS = 1
MAX_LEGEND = 40  # labels
MAX_SIDE, MIN_SIDE = 960, 480  # px of an embedded picture: of few, and of many
MANY_PICTURES = 60
CARD_WIDTH, CARD_HEIGHT = 320, 420  # px that a picture fills on the page
LINE_HEIGHT, LETTER_WIDTH = 15, 6.5  # px of a label on it
NOTHING_DRAWN: dict[str, Any] = {"truths": [], "predictions": []}
MAX_PICTURE_BYTES = 12 * 2**20  # of a page; examples beyond have no pictures
ALWAYS_SHOWN = ("all", "wrong", "invalid")
FILTERS = (*ALWAYS_SHOWN, "empty", "cut-off")
ORDERS = {
    "worst first": "score:1",
    "best first": "score:-1",
    "least sure first": "logp:1",
    "in order of the data": "index:1",
}


@dataclasses.dataclass(frozen=True)
class Lead:
    """What stands above everything else.

    Attributes:
      title: heading of the page.
      verdict: a sentence on how things are; None: nothing is known.
      facts: (name, text) of what was evaluated, as model, weights and data.
      links: (text, address) of other pages and files, relative to this one.
    """

    title: str
    verdict: diagnosis.Diagnosis | None = None
    facts: tuple[tuple[str, str], ...] = ()
    links: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class History:
    """How things came to be, in curves.

    Attributes:
      rows: of metrics.jsonl.
      sources: the data that a curve is of: {"": of training, "valid": of evals.valid}.
      of: what the other curves are of: the data set that is evaluated.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    of: str = ""


def write(
    path: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    lead: Lead,
    scores: Mapping[str, Any] | None = None,
    words: page.Words | None = None,
    cells: Sequence[Sequence[tuple[int, int]]] | None = None,
    classes: Iterable[str] = (),
    history: History | None = None,
    limit: int = 200,
    open_image: Callable[[str], Image.Image] = drawing.open_rgb,
) -> None:
    """Writes the gallery of evaluated rows, with scores and curves above it.

    Args:
      path: the .html file.
      rows: lines of predictions.jsonl, dictionaries with
          index: place in the data set. source: "file.jsonl:12". images: paths, may be none.
          prefix, prediction: texts. suffix: the true text, None if not known.
          logp: log-probability of the prediction (optional).
          score: 0..1, None without truth. correct: bool or None.
          stopped: False if the answer was cut off (optional).
        and for boxes, which are drawn on the first image,
          detections: [{"box_yxyx": [y1, x1, y2, x2] in 0..1, "label", "score"}], maybe with
            "mask": 64x64 bits in the box, as base64.
          truths: [{"box_yxyx", "label"}], maybe with "mask", or None. dropped: {reason: count}.
          matched: count or None. mean_iou: of the matched, or None.
      lead: what stands first.
      scores: of the data set; nested dictionaries of numbers; under "confusion" {"labels",
        "counts"}, under "pr_curves" {label: precision at recalls from 0 to 1}.
      words: what scores are called, and which of them lead.
      cells: of each row, the cells (truth, prediction) of the confusion matrix that it counts in;
        a truth of -1 is one that nobody knows.
      classes: all labels there are, so that each has the colour that it has elsewhere.
      history: for curves of the run.
      limit: how many rows are shown; the worst ones are. The page says of how many.
      open_image: path -> picture. One that cannot be read leaves its reason on the page.
    """
    scores, words, history = scores or {}, words or page.Words(), history or History()
    chosen = sorted(range(len(rows)), key=lambda number: _badness(rows[number]))[:limit]
    shown = [rows[number] for number in chosen]
    colors = drawing.choose_colors({*classes, *_labels(rows)})
    num_pictures = sum(len(row["images"]) for row in shown)
    side = MAX_SIDE if num_pictures <= MANY_PICTURES else MIN_SIDE
    pictures = _Pictures(open_image, side)
    cards = [
        _card(row, colors, pictures, cells[number] if cells else ())
        for number, row in zip(chosen, shown, strict=True)
    ]
    matrix = (scores.get(page.CONFUSION) or {}).get("labels", ()) if cells else ()
    text = page.render(
        TEMPLATE,
        title=lead.title,
        lead=lead,
        **page.scores(scores, words),
        num_open_grids=NUM_OPEN_GRIDS,
        curves=_plots(history, scores.get(page.PR_CURVES) or {}, colors, words),
        sources=_describe_sources(history),
        num_open_plots=NUM_OPEN_PLOTS,
        heading=_heading(len(shown), len(rows)),
        filters=_count_by_filter(cards),
        labels=_options(matrix, cells or ()),
        orders=ORDERS,
        layers=_layers(shown),
        has_confidence=any(row.get("detections") for row in shown),
        legend=_legend(shown, colors),
        cards=cards,
    )
    atomic.write_text(path, text)


def _labels(rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Returns the labels of truths, or where there is none those of predictions."""
    labels = {truth["label"] for row in rows for truth in row.get("truths") or ()}
    return labels or {each["label"] for row in rows for each in row.get("detections", ())}


def _badness(row: Mapping[str, Any]) -> tuple[float, int]:
    score = row.get("score")
    return (math.inf if score is None else score), row["index"]


def _flags(row: Mapping[str, Any]) -> list[str]:
    """Returns which filters show this row, beside "all"."""
    answer = row["detections"] if "detections" in row else row["prediction"].strip()
    flags = {
        "wrong": row.get("correct") is False,
        "invalid": row.get("dropped"),
        "empty": not answer,
        "cut-off": row.get("stopped") is False,
    }
    return [name for name, holds in flags.items() if holds]


def _heading(num_shown: int, num_rows: int) -> str:
    if num_shown < num_rows:
        return f"The {num_shown:,} worst of {num_rows:,} examples"
    return f"All {num_rows:,} examples" if num_rows != 1 else "The one example"


def _plots(
    history: History,
    pr_curves: Mapping[str, Sequence[float]],
    colors: Mapping[str, str],
    words: page.Words,
) -> list[plots.Plot]:
    """Returns the curves of the run and, where the scores have them, of precision over recall."""
    panels = plots.choose_panels(history.rows, list(dict.fromkeys(("loss", *words.first))))
    drawn = [
        plots.curves(
            history.rows,
            keys,
            title=words.title(title),
            labels={key: _curve_label(key, history.sources) for key in keys},
        )
        for title, keys in panels.items()
    ]
    if pr_curves:
        of = f" of {history.of}" if history.of else ""
        title = f"precision over recall{of}, IoU 0.5"
        drawn.insert(0, plots.precision_recall(pr_curves, colors=colors, title=title))
    return drawn


def _curve_label(key: str, sources: Mapping[str, str]) -> str:
    """Returns which data a curve is of: "training (train.jsonl)", "valid (valid.jsonl)"."""
    evaluation, slash, rest = key.partition("/")
    if not slash or evaluation not in sources:
        return (f"training ({sources['']})" if "" in sources else key) if not slash else rest
    return f"{evaluation} ({sources[evaluation]})"


def _describe_sources(history: History) -> str:
    """Returns a sentence on what the curves of a run are of, where the scores are of other data."""
    if not history.rows or not history.of or history.of in history.sources.values():
        return ""
    return f"Curves over steps are of the training run; none of them is of {history.of}."


def _count_by_filter(cards: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Returns how many cards each filter shows, without those that show none."""
    counts = {name: sum(name in card["flags"] for card in cards) for name in FILTERS}
    counts["all"] = len(cards)
    return {name: count for name, count in counts.items() if count or name in ALWAYS_SHOWN}


def _options(
    labels: Sequence[str], cells: Sequence[Sequence[tuple[int, int]]]
) -> dict[str, list[tuple[int, str]]]:
    """Returns (place, label) to choose from, of truths and of predictions: those that there are."""
    if not labels:
        return {}
    used = [{cell[side] for row in cells for cell in row} for side in (0, 1)]
    sides = zip(("truth", "prediction"), used, strict=True)
    return {
        side: [(place, label) for place, label in enumerate(labels) if place in places]
        for side, places in sides
    }


def _layers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what is drawn over pictures, and can be switched off."""
    objects = [
        each for row in rows for each in (*row.get("detections", ()), *(row.get("truths") or ()))
    ]
    layers = ["truth", "prediction"] if any("detections" in row for row in rows) else []
    return [*layers, *(["masks"] if any("mask" in each for each in objects) else [])]


def _legend(
    rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """Returns (name, colour, line) of the boxes, or nothing if rows have none."""
    if not any("detections" in row for row in rows):
        return []
    labels = [(label, color, "solid") for label, color in list(colors.items())[:MAX_LEGEND]]
    other = ("any other label", drawing.OTHER_COLOR, "solid")
    return [("truth", drawing.TRUTH_COLOR, "dashed"), *labels, other]


def _card(
    row: Mapping[str, Any],
    colors: Mapping[str, str],
    pictures: "_Pictures",
    cells: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """Returns what the template shows of a row; boxes are drawn on its first picture."""
    correct = row.get("correct")
    embedded = [pictures.embed(path) | NOTHING_DRAWN for path in row["images"]]
    for first in embedded[:1]:
        first |= _overlay(row, colors, (first["width"], first["height"]))
    return {
        "row": row,
        "state": "unknown" if correct is None else "right" if correct else "wrong",
        "flags": _flags(row),
        "score": _as_key(row.get("score")),
        "logp": _as_key(row.get("logp")),
        "cells": " ".join(f"{truth}:{prediction}" for truth, prediction in sorted(set(cells))),
        "pictures": embedded,
    }


def _as_key(value: float | None) -> str:
    """Returns a number that cards are ordered by."""
    return "" if value is None else f"{float(value):.6g}"


class _Pictures:
    """Makes pictures part of the page, as long as there is room."""

    def __init__(self, open_image: Callable[[str], Image.Image], side: int):
        self._open, self._side, self._room = open_image, side, MAX_PICTURE_BYTES

    def embed(self, path: str) -> dict[str, Any]:
        """Returns a picture's URL and its size on the page, or why there is none."""
        missing = {"url": "", "path": path, "width": CARD_WIDTH, "height": CARD_HEIGHT}
        if self._room <= 0:
            room = MAX_PICTURE_BYTES // 2**20
            reason = f"{path}: the pictures above fill the {room} MB of a page"
            return missing | {"reason": reason}
        try:
            image = self._open(path).convert("RGB")  # a copy
            image.thumbnail((self._side, self._side))
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=85)
        except Exception as error:  # a report is worth having without one of its pictures
            reason = f"{path} cannot be read: {type(error).__name__}: {error}"
            return missing | {"reason": reason}
        self._room -= buffer.tell()
        width = min(CARD_WIDTH, round(CARD_HEIGHT * image.width / image.height))
        height = round(width * image.height / image.width)
        url = page.embed(buffer.getvalue(), "image/jpeg")
        return {"url": url, "path": path, "width": width, "height": height}


def _overlay(
    row: Mapping[str, Any], colors: Mapping[str, str], size: tuple[int, int]
) -> dict[str, Any]:
    """Returns the boxes and masks to lay over a picture of (width, height) px."""
    return {
        "truths": [
            _place(truth, drawing.TRUTH_COLOR, truth["label"], is_below=True, size=size)
            | {"score": ""}
            for truth in row.get("truths") or ()
        ],
        "predictions": [
            _place(
                detection,
                colors.get(detection["label"], drawing.OTHER_COLOR),
                f"{detection['label']} {detection['score']:.2f}",
                is_below=False,
                size=size,
            )
            | {"score": f"{detection['score']:.4g}"}
            for detection in row.get("detections", ())
        ],
    }


def _place(
    marked: Mapping[str, Any], color: str, text: str, *, is_below: bool, size: tuple[int, int]
) -> dict[str, Any]:
    """Returns where a box goes, in percent of the picture, and its text: above it or below it.

    Where the picture ends the text is inside the box, and near the right edge it begins further to
    the left, as far as its length needs. `size`: (width, height) of the picture in px.
    """
    top, left, bottom, right = (100 * float(value) for value in marked["box_yxyx"])
    line = 100 * LINE_HEIGHT / size[1]
    above, below = -4, LINE_HEIGHT - 2
    y, dy = (bottom, below if bottom < 100 - line else above - 1) if is_below else (top, above)
    dy = below if not is_below and top < line else dy
    x = max(0.0, min(left + 0.5, 100 - 100 * LETTER_WIDTH * len(text) / size[0]))
    mask = drawing.mask_png(marked["mask"], color) if "mask" in marked else b""
    return {
        **{"left": left, "top": top, "width": right - left, "height": bottom - top},
        **{"text": text, "text_x": x, "text_y": y, "text_dy": dy},
        "color": color,
        "mask_url": page.embed(mask, "image/png") if mask else "",
    }
