"""A report on predictions: one HTML file that opens without network, worst examples first."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from paligemma_jax.files import atomic
from paligemma_jax.reports import drawing, figures, page, plots

NUM_OPEN_PLOTS = 6  # the others are folded away
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
    known = {truth["label"] for row in rows for truth in row.get("truths") or ()}
    colors = drawing.choose_colors(
        known or {found["label"] for row in rows for found in row.get("detections", ())}
    )
    panels = plots.choose_panels(history) if panels is None else panels
    made = figures.Figures(open_image)
    body = [
        page.scores_section(scores, docs),
        _plots_section(history, panels, scores.get(page.PR_CURVES) or {}, colors),
        f"<h2>{_count_line(len(shown), len(rows))}</h2>",
        _toolbar(shown, colors),
        '<div class="cards">',
        *(_card(row, colors, made) for row in shown),
        "</div>",
    ]
    atomic.write_text(path, page.layout(title, "\n".join(body), script=page.SCRIPT))


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
        "cut-off": row.get("stopped") is False,
    }
    return [name for name, holds in flags.items() if holds]


def _count_line(num_shown: int, num_rows: int) -> str:
    if num_shown < num_rows:
        return f"The {num_shown:,} worst of {num_rows:,} examples"
    return f"All {num_rows:,} examples" if num_rows != 1 else "The one example"


def _plots_section(
    history: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]],
    pr_curves: Mapping[str, Sequence[float]],
    colors: Mapping[str, str],
) -> str:
    drawn = {title: plots.curves(history, keys, title=title) for title, keys in panels.items()}
    if pr_curves:
        title = "precision over recall, IoU 0.5"
        first = plots.precision_recall(pr_curves, colors=colors, title=title)
        drawn = {title: first, **drawn}
    images = [
        f'<img src="{page.embed(svg, "image/svg+xml")}" alt="curves of {page.escape(title)}">'
        for title, svg in drawn.items()
    ]
    if not images:
        return ""
    first, more = "".join(images[:NUM_OPEN_PLOTS]), "".join(images[NUM_OPEN_PLOTS:])
    section = f'<h2>Curves</h2>\n<div class="plots">{first}</div>'
    if more:
        section += f'<details><summary>more</summary><div class="plots">{more}</div></details>'
    return section


def _toolbar(rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str]) -> str:
    flags = [_flags(row) for row in rows]
    counts = {name: sum(name in row for row in flags) for name in FILTERS} | {"all": len(rows)}
    buttons = "".join(
        f'<button type="button" data-filter="{name}" aria-pressed="{str(name == "all").lower()}">'
        f"{name.replace('-', ' ')} ({count})</button>"
        for name, count in counts.items()
        if count or name in ALWAYS_SHOWN
    )
    options = "".join(f'<option value="{value}">{name}</option>' for name, value in ORDERS.items())
    parts = [
        f'<span role="group" aria-label="which examples">{buttons}</span>',
        f'<select id="sort" aria-label="order">{options}</select>',
        '<input type="search" id="search" placeholder="words in them" aria-label="search">',
        *_layers(rows),
        f'<span id="count" role="status">{len(rows)} shown</span>',
    ]
    if any("detections" in row for row in rows):
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


def _layers(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a switch for each thing that is drawn over pictures."""
    found = [
        one for row in rows for one in (*row.get("detections", ()), *(row.get("truths") or ()))
    ]
    layers = ["truth", "prediction"] if any("detections" in row for row in rows) else []
    layers += ["masks"] if any("mask" in one for one in found) else []
    return [
        f'<label><input type="checkbox" data-hides="no-{name}" checked> {name}</label>'
        for name in layers
    ]


def _card(
    row: Mapping[str, Any],
    colors: Mapping[str, str],
    made: figures.Figures,
) -> str:
    correct = row.get("correct")
    state = "unknown" if correct is None else "right" if correct else "wrong"
    shown = "".join(
        made.draw(image, row if number == 0 else {}, colors)
        for number, image in enumerate(row["images"])
    )
    texts = [("prompt", row["prefix"]), ("truth", row["suffix"]), ("prediction", row["prediction"])]
    return (
        f'<article class="card {state}" data-flags="{" ".join(_flags(row))}"'
        f' data-index="{int(row["index"])}" data-score="{_attribute(row.get("score"))}"'
        f' data-logp="{_attribute(row.get("logp"))}">\n'
        f'<div class="facts">{_facts(row)}</div>\n{shown}\n'
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
    if row.get("stopped") is False:
        facts.append('<span class="invalid">cut off</span>')
    for reason, count in (row.get("dropped") or {}).items():
        facts.append(f'<span class="invalid">{page.escape(reason)} × {int(count)}</span>')
    return "".join(f"<span>{fact}</span>" for fact in facts)


def _text(name: str, text: str | None) -> str:
    if text is None:
        return ""
    blank = not text.strip()
    style = ' class="none"' if blank else ""
    return f"<dt>{name}</dt><dd{style}>{'(empty)' if blank else page.escape(text)}</dd>"


def _attribute(value: float | None) -> str:
    return "" if value is None else f"{float(value):.6g}"
