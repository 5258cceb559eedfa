"""A report on predictions: one HTML file that opens without network, worst examples first."""

import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from paligemma_jax.reports import drawing, files, page, plots

MAX_SIDE = 480  # px of an embedded picture
CARD_WIDTH, CARD_HEIGHT = 320, 420  # px that a picture fills on the page
NUM_OPEN_PLOTS = 6  # the others are folded away
FILTERS = ("all", "wrong", "invalid", "empty")
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
        and for boxes, which are drawn on the first image,
          detections: [{"box_yxyx": [y1, x1, y2, x2] in 0..1, "label", "score"}], maybe with
            "mask": 64x64 bits in the box, as base64.
          truths: [{"box_yxyx", "label"}], maybe with "mask", or None. dropped: {reason: count}.
          matched: count or None. mean_iou: of the matched, or None.
      title: heading of the page.
      scores: of the data set; nested dictionaries of numbers, {"labels", "counts"} is a matrix.
      history: rows of metrics.jsonl, for the curves.
      panels: {title: keys of history}; by default what `plots.choose_panels` finds.
      limit: how many rows are shown; the worst ones are. The page says of how many.
      open_image: path -> picture. One that cannot be read leaves its reason on the page.
    """
    history = list(history)
    shown = sorted(rows, key=_badness)[:limit]
    known = {truth["label"] for row in rows for truth in row.get("truths") or ()}
    colors = drawing.choose_colors(
        known or {found["label"] for row in rows for found in row.get("detections", ())}
    )
    panels = plots.choose_panels(history) if panels is None else panels
    body = [
        page.scores_section(scores or {}),
        _plots_section(history, panels),
        f"<h2>{_count_line(len(shown), len(rows))}</h2>",
        _toolbar(shown, colors, has_boxes=any("detections" in row for row in rows)),
        '<div class="cards">',
        *(_card(row, colors, open_image) for row in shown),
        "</div>",
    ]
    files.write_text(path, page.layout(title, "\n".join(body), script=page.SCRIPT))


def _badness(row: Mapping[str, Any]) -> tuple[float, int]:
    score = row.get("score")
    return (math.inf if score is None else score), row["index"]


def _flags(row: Mapping[str, Any]) -> list[str]:
    """Returns which filters show this row, beside "all"."""
    found = row["detections"] if "detections" in row else row["prediction"].strip()
    flags = {
        "wrong": row.get("correct") is False,
        "invalid": row.get("dropped"),
        "empty": not found,
    }
    return [name for name, holds in flags.items() if holds]


def _count_line(num_shown: int, num_rows: int) -> str:
    if num_shown < num_rows:
        return f"The {num_shown:,} worst of {num_rows:,} examples"
    return f"All {num_rows:,} examples"


def _plots_section(
    history: Sequence[Mapping[str, Any]], panels: Mapping[str, Sequence[str]]
) -> str:
    images = []
    for title, keys in panels.items():
        url = page.embed(plots.curves(history, keys, title=title), "image/svg+xml")
        images.append(f'<img src="{url}" alt="{page.escape(title)}">')
    if not images:
        return ""
    first, more = "".join(images[:NUM_OPEN_PLOTS]), "".join(images[NUM_OPEN_PLOTS:])
    section = f'<h2>Curves</h2>\n<div class="plots">{first}</div>'
    if more:
        section += f'<details><summary>more</summary><div class="plots">{more}</div></details>'
    return section


def _toolbar(
    rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str], *, has_boxes: bool
) -> str:
    flags = [_flags(row) for row in rows]
    buttons = "".join(
        f'<button data-filter="{name}" aria-pressed="{"true" if name == "all" else "false"}">'
        f"{name} ({sum(name == 'all' or name in row for row in flags)})</button>"
        for name in FILTERS
    )
    options = "".join(f'<option value="{value}">{name}</option>' for name, value in ORDERS.items())
    parts = [buttons, f'<select id="sort" aria-label="order">{options}</select>']
    if has_boxes:
        parts += [
            f'<label><input type="checkbox" data-hides="no-{name}" checked> {name}</label>'
            for name in ("truth", "prediction")
        ]
        chips = [("truth", drawing.TRUTH_COLOR, "dashed")]
        chips += [(label, color, "solid") for label, color in list(colors.items())[:40]]
        chips += [("any other label", drawing.OTHER_COLOR, "solid")]
        legend = "".join(
            f'<span><i class="chip" style="border:2px {line} {color}"></i>'
            f"{page.escape(label)}</span>"
            for label, color, line in chips
        )
        parts.append(f'<span class="legend">{legend}</span>')
    return f'<div class="bar">{"".join(parts)}</div>'


def _card(
    row: Mapping[str, Any],
    colors: Mapping[str, str],
    open_image: Callable[[str], Image.Image],
) -> str:
    correct = row.get("correct")
    state = "unknown" if correct is None else "right" if correct else "wrong"
    pictures = []
    for number, image in enumerate(row["images"]):
        pictures.append(_figure(image, _overlay(row, colors) if number == 0 else "", open_image))
    texts = [("prompt", row["prefix"]), ("truth", row["suffix"]), ("prediction", row["prediction"])]
    return (
        f'<article class="card {state}" data-flags="{" ".join(_flags(row))}"'
        f' data-index="{int(row["index"])}" data-score="{_attribute(row.get("score"))}"'
        f' data-logp="{_attribute(row.get("logp"))}">\n'
        f'<div class="facts">{_facts(row)}</div>\n{"".join(pictures)}\n'
        f'<dl class="text">{"".join(_text(name, text) for name, text in texts)}</dl>\n</article>'
    )


def _facts(row: Mapping[str, Any]) -> str:
    facts = [f"<b>#{int(row['index'])}</b>", page.escape(row["source"])]
    if row.get("score") is not None:
        facts.append(f"score <b>{page.show(float(row['score']))}</b>")
    if row.get("matched") is not None:
        num_truths, num_found = len(row["truths"]), len(row["detections"])
        facts.append(f"matched <b>{row['matched']}</b> of {num_truths} true, {num_found} predicted")
    if row.get("mean_iou") is not None:
        facts.append(f"IoU {float(row['mean_iou']):.2f}")
    if row.get("logp") is not None:
        facts.append(f"logp {float(row['logp']):.2f}")
    for reason, count in (row.get("dropped") or {}).items():
        facts.append(f'<span class="invalid">{page.escape(reason)} × {int(count)}</span>')
    return "".join(f"<span>{fact}</span>" for fact in facts)


def _text(name: str, text: str | None) -> str:
    if text is None:
        return ""
    blank = not text.strip()
    style = ' class="none"' if blank else ""
    return f"<dt>{name}</dt><dd{style}>{'(empty)' if blank else page.escape(text)}</dd>"


def _figure(path: str, overlay: str, open_image: Callable[[str], Image.Image]) -> str:
    try:
        image = open_image(path).convert("RGB")  # a copy
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=85)
    except Exception as error:  # a report is worth having without one of its pictures
        reason = f"{path} cannot be read: {type(error).__name__}: {error}"
        return f'<div class="missing">{page.escape(reason)}</div>'
    width = min(CARD_WIDTH, round(CARD_HEIGHT * image.width / image.height))
    url = page.embed(buffer.getvalue(), "image/jpeg")
    return (
        f'<figure style="width:{width}px"><img src="{url}" alt="{page.escape(path)}">'
        f"<svg>{overlay}</svg></figure>"
    )


def _overlay(row: Mapping[str, Any], colors: Mapping[str, str]) -> str:
    """Returns the boxes in percent of the picture: sharp at any size, text of one size."""
    truths = "".join(
        _mask(found, drawing.TRUTH_COLOR)
        + _box(found["box_yxyx"], drawing.TRUTH_COLOR, found["label"], below=True)
        for found in row.get("truths") or ()
    )
    predictions = "".join(
        _mask(found, colors.get(found["label"], drawing.OTHER_COLOR))
        + _box(
            found["box_yxyx"],
            colors.get(found["label"], drawing.OTHER_COLOR),
            f"{found['label']} {found['score']:.2f}",
            below=False,
        )
        for found in row.get("detections", ())
    )
    return f'<g class="prediction">{predictions}</g><g class="truth">{truths}</g>'


def _mask(found: Mapping[str, Any], color: str) -> str:
    """Returns an object's mask, stretched to its box, or nothing if it has none."""
    if "mask" not in found:
        return ""
    y1, x1, y2, x2 = (100 * float(value) for value in found["box_yxyx"])
    url = page.embed(drawing.mask_png(found["mask"], color), "image/png")
    return (
        f'<image href="{url}" x="{x1:.3f}%" y="{y1:.3f}%" width="{x2 - x1:.3f}%"'
        f' height="{y2 - y1:.3f}%" preserveAspectRatio="none"/>'
    )


def _box(box_yxyx: Sequence[float], color: str, text: str, *, below: bool) -> str:
    """Returns one box, its text above it or below it, or inside where the picture ends."""
    y1, x1, y2, x2 = (100 * float(value) for value in box_yxyx)
    if below:
        y, offset = y2, (13 if y2 < 94 else -5)
    else:
        y, offset = y1, (-4 if y1 > 6 else 13)
    # Near the right edge the text ends at the box's edge instead of starting there.
    x, anchor = (x1 + 0.5, "start") if x1 < 65 else (x2 - 0.5, "end")
    return (
        f'<rect x="{x1:.3f}%" y="{y1:.3f}%" width="{x2 - x1:.3f}%" height="{y2 - y1:.3f}%"'
        f' stroke="{color}"/><text x="{x:.3f}%" y="{y:.3f}%" dy="{offset}" fill="{color}"'
        f' text-anchor="{anchor}">{page.escape(text)}</text>'
    )


def _attribute(value: float | None) -> str:
    return "" if value is None else f"{float(value):.6g}"
