"""A report on predictions: one HTML file that opens without network, worst examples first."""

import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from paligemma_jax.files import atomic
from paligemma_jax.reports import drawing, page, plots

TEMPLATE = "gallery.html"
NUM_OPEN_PLOTS = 6  # the others are folded away
MAX_LEGEND = 40  # labels
MAX_SIDE = 480  # px of an embedded picture
CARD_WIDTH, CARD_HEIGHT = 320, 420  # px that a picture fills on the page
MAX_PICTURE_BYTES = 12 * 2**20  # of a page; examples beyond have no pictures
ALWAYS_SHOWN = ("all", "wrong", "invalid")
FILTERS = (*ALWAYS_SHOWN, "empty", "cut-off")
ORDERS = {
    "worst first": "score:1",
    "best first": "score:-1",
    "least sure first": "logp:1",
    "in order of the data": "index:1",
}


def write(
    path: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    scores: Mapping[str, Any] | None = None,
    docs: Mapping[str, str] = page.NO_DOCS,
    history: Iterable[Mapping[str, Any]] = (),
    panels: Mapping[str, Sequence[str]] | None = None,
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
      title: heading of the page.
      scores: of the data set; nested dictionaries of numbers, {"labels", "counts"} is a matrix,
        under "pr_curves" are {label: precision at recalls from 0 to 1}.
      docs: {score: what it means}.
      history: rows of metrics.jsonl, for the curves.
      panels: {title: keys of history}; by default what `plots.choose_panels` finds.
      limit: how many rows are shown; the worst ones are. The page says of how many.
      open_image: path -> picture. One that cannot be read leaves its reason on the page.
    """
    history, scores = list(history), scores or {}
    shown = sorted(rows, key=_badness)[:limit]
    labels = {truth["label"] for row in rows for truth in row.get("truths") or ()}
    labels = labels or {each["label"] for row in rows for each in row.get("detections", ())}
    colors = drawing.choose_colors(labels)
    panels = plots.choose_panels(history) if panels is None else panels
    pictures = _Pictures(open_image)
    cards = [_card(row, colors, pictures) for row in shown]
    text = page.render(
        TEMPLATE,
        title=title,
        **page.scores(scores, docs),
        curves=_draw_curves(history, panels, scores.get(page.PR_CURVES) or {}, colors),
        num_open_plots=NUM_OPEN_PLOTS,
        heading=_heading(len(shown), len(rows)),
        filters=_count_by_filter(cards),
        orders=ORDERS,
        layers=_layers(shown),
        legend=_legend(shown, colors),
        cards=cards,
    )
    atomic.write_text(path, text)


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


def _draw_curves(
    history: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]],
    pr_curves: Mapping[str, Sequence[float]],
    colors: Mapping[str, str],
) -> list[tuple[str, str]]:
    """Returns (title, URL) of each plot."""
    drawn = {title: plots.curves(history, keys, title=title) for title, keys in panels.items()}
    if pr_curves:
        title = "precision over recall, IoU 0.5"
        first = plots.precision_recall(pr_curves, colors=colors, title=title)
        drawn = {title: first, **drawn}
    return [(title, page.embed(svg, "image/svg+xml")) for title, svg in drawn.items()]


def _count_by_filter(cards: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Returns how many cards each filter shows, without those that show none."""
    counts = {name: sum(name in card["flags"] for card in cards) for name in FILTERS}
    counts["all"] = len(cards)
    return {name: count for name, count in counts.items() if count or name in ALWAYS_SHOWN}


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
    row: Mapping[str, Any], colors: Mapping[str, str], pictures: "_Pictures"
) -> dict[str, Any]:
    """Returns what the template shows of a row; boxes are drawn on its first picture."""
    correct = row.get("correct")
    drawn = [_overlay(row, colors)] + [{"truths": [], "predictions": []}] * len(row["images"])
    return {
        "row": row,
        "state": "unknown" if correct is None else "right" if correct else "wrong",
        "flags": _flags(row),
        "score": _as_key(row.get("score")),
        "logp": _as_key(row.get("logp")),
        "pictures": [
            pictures.embed(path) | drawn[number] for number, path in enumerate(row["images"])
        ],
    }


def _as_key(value: float | None) -> str:
    """Returns a number that cards are ordered by."""
    return "" if value is None else f"{float(value):.6g}"


class _Pictures:
    """Makes pictures part of the page, as long as there is room."""

    def __init__(self, open_image: Callable[[str], Image.Image]):
        self._open, self._room = open_image, MAX_PICTURE_BYTES

    def embed(self, path: str) -> dict[str, Any]:
        """Returns a picture's URL and width, or the reason why there is none."""
        missing = {"url": "", "path": path}
        if self._room <= 0:
            room = MAX_PICTURE_BYTES // 2**20
            reason = f"{path}: the pictures above fill the {room} MB of a page"
            return missing | {"reason": reason}
        try:
            image = self._open(path).convert("RGB")  # a copy
            image.thumbnail((MAX_SIDE, MAX_SIDE))
            buffer = io.BytesIO()
            image.save(buffer, format="JPEG", quality=85)
        except Exception as error:  # a report is worth having without one of its pictures
            reason = f"{path} cannot be read: {type(error).__name__}: {error}"
            return missing | {"reason": reason}
        self._room -= buffer.tell()
        width = min(CARD_WIDTH, round(CARD_HEIGHT * image.width / image.height))
        url = page.embed(buffer.getvalue(), "image/jpeg")
        return {"url": url, "path": path, "width": width}


def _overlay(row: Mapping[str, Any], colors: Mapping[str, str]) -> dict[str, Any]:
    """Returns the boxes and masks to lay over a picture."""
    return {
        "truths": [
            _place(truth, drawing.TRUTH_COLOR, truth["label"], is_below=True)
            for truth in row.get("truths") or ()
        ],
        "predictions": [
            _place(
                detection,
                colors.get(detection["label"], drawing.OTHER_COLOR),
                f"{detection['label']} {detection['score']:.2f}",
                is_below=False,
            )
            for detection in row.get("detections", ())
        ],
    }


def _place(marked: Mapping[str, Any], color: str, text: str, *, is_below: bool) -> dict[str, Any]:
    """Returns where a box goes, in percent of the picture, and its text: above it or below it.

    Where the picture ends the text is inside the box, and near the right edge it ends at the box's
    edge instead of starting there.
    """
    top, left, bottom, right = (100 * float(value) for value in marked["box_yxyx"])
    y, dy = (bottom, 13 if bottom < 94 else -5) if is_below else (top, -4 if top > 6 else 13)
    x, anchor = (left + 0.5, "start") if left < 65 else (right - 0.5, "end")
    mask = drawing.mask_png(marked["mask"], color) if "mask" in marked else b""
    return {
        **{"left": left, "top": top, "width": right - left, "height": bottom - top},
        **{"text": text, "text_x": x, "text_y": y, "text_dy": dy, "text_anchor": anchor},
        "color": color,
        "mask_url": page.embed(mask, "image/png") if mask else "",
    }
