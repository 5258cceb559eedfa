"""Curves of a run: what is drawn and where. `templates/plots.html` makes an SVG of it.

The SVG is part of the page, so that its colours are the page's, light or dark, and its letters
those of the reader.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from paligemma_jax.reports import drawing
from paligemma_jax.wording import phrases

WIDTH, HEIGHT = 420, 230  # of the SVG's own units: about a px on the page
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 34  # of them, around the axes
MAX_CURVES = 8  # of labels, beside their mean
NUM_COLORS = 8  # of curves without a colour of their own: --curve-1 and so on in style.css
MAX_DOTS = 40  # of a curve: with more it is a line alone
MAX_POINTS = 600  # of a curve: of more the lowest and the highest of each stretch are drawn
TICKS = 5  # about so many on an axis

WITHOUT_PANEL = ("per_class/", "per_group/", "dropped/", "epochs/", "lr/")

Point = tuple[float, float]
Tick = tuple[float, str]


@dataclasses.dataclass(frozen=True)
class Curve:
    """A curve where it is drawn.

    Attributes:
      label: in the legend.
      color: for CSS: "#rrggbb", or a variable of the page.
      width: of the line.
      path: "d" of an SVG path; a value that is no number breaks it.
      dots: (x, y, text) of every value, or none where there are many.
    """

    label: str
    color: str
    width: float
    path: str
    dots: tuple[tuple[float, float, str], ...]


@dataclasses.dataclass(frozen=True)
class Plot:
    """Axes with curves; places are in the SVG's units, y from the top.

    Attributes:
      title: above it.
      x_label: of the axis.
      curves: those that have a value.
      x_ticks, y_ticks: (place, text).
      width, height: of the SVG. left, right: where the axes begin and end.
    """

    title: str
    x_label: str
    curves: tuple[Curve, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT


def curves(
    rows: Iterable[Mapping[str, Any]],
    keys: Sequence[str],
    *,
    title: str = "",
    labels: Mapping[str, str] | None = None,
) -> Plot:
    """Returns values over steps, one curve per key, with a dot where a row has a value.

    Args:
      rows: rows of metrics.jsonl (`run_log.read_rows`); those without a key are left out of its
        curve, nan breaks it.
      keys: the names to draw; one that no row has gets no curve.
      title: above the axes.
      labels: what the legend calls a key; by default itself.
    """
    rows, labels = list(rows), labels or {}
    drawn = []
    for number, key in enumerate(keys):
        points = [(float(row["step"]), float(row[key])) for row in rows if row.get(key) is not None]
        color = f"var(--curve-{number % NUM_COLORS + 1})"
        drawn.append((labels.get(key, key), color, 1.6, points))
    return _plot(title, drawn, x_label="step")


def precision_recall(
    precisions: Mapping[str, Sequence[float]], *, colors: Mapping[str, str], title: str = ""
) -> Plot:
    """Returns precision over recall: the mean of all labels, and those of the worst.

    Args:
      precisions: label -> precision at recalls of 0 to 1 in equal steps, 0 where it is not reached.
      colors: "#rrggbb" by label.
      title: above the axes.
    """
    kept = {label: np.asarray(values) for label, values in precisions.items() if len(values)}
    worst = sorted(kept, key=lambda label: (kept[label].mean(), label))[:MAX_CURVES]
    shown = [(label, kept[label], colors.get(label, drawing.OTHER_COLOR), 1.6) for label in worst]
    if len(kept) > 1:
        mean = np.mean(list(kept.values()), axis=0)
        shown.append((f"mean of {len(kept)}", mean, "var(--ink)", 2.6))
    drawn = []
    for label, values, color, width in shown:
        recalls, reached = np.linspace(0, 1, len(values)), values > 0
        points = list(zip(recalls[reached].tolist(), values[reached].tolist(), strict=True))
        drawn.append((label, color, width, points))
    unit = (0.0, 1.0)
    return _plot(title, drawn, x_label="recall", x_range=unit, y_range=unit)


def choose_panels(
    rows: Iterable[Mapping[str, Any]], first: Sequence[str] = ()
) -> dict[str, list[str]]:
    """Returns {title: keys} worth a plot: every number, those of one last name together.

    `loss` and `val/loss` share the panel "loss", `update_norm` and its parts `update_norm/llm_attn`
    that of the whole. Values by class or by reason have none, nor have the passes over each source.
    First come the panels that `first` names, in its order, then those with several curves, then
    those of evaluations (`val/map50`), then the rest; what never changes is behind what does, and a
    whole and its parts come last.
    """
    seen: dict[str, set[float]] = {}
    for row in rows:
        for key, value in row.items():
            if key != "step" and value is not None and not math.isnan(value):
                seen.setdefault(key, set()).add(value)
    panels: dict[str, list[str]] = {}
    for key in seen:
        if not any(part in key for part in WITHOUT_PANEL):
            whole, _, _ = key.partition("/")
            panels.setdefault(whole if whole in seen else key.rsplit("/", 1)[-1], []).append(key)
    places = {title: place for place, title in enumerate(first)}

    def rank(title: str) -> tuple[int, bool, bool, int, bool]:
        keys = panels[title]
        has_parts = any(key.startswith(f"{title}/") for key in keys)
        never_changes = all(len(seen[key]) == 1 for key in keys)
        is_evaluated = any("/" in key for key in keys)
        place = places.get(title, len(places))
        return place, has_parts, never_changes, -len(keys), not is_evaluated

    return {title: panels[title] for title in sorted(panels, key=rank)}


def _plot(
    title: str,
    drawn: Sequence[tuple[str, str, float, Sequence[Point]]],
    *,
    x_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
) -> Plot:
    """Returns (label, color, width, points) each as curves on common axes."""
    drawn = [one for one in drawn if one[3]]
    points = [point for *_, each in drawn for point in each]
    x_low, x_high = x_range or _range([x for x, _ in points])
    y_low, y_high = y_range or _range([y for _, y in points])

    def place(point: Point) -> Point:
        x, y = (point[0] - x_low) / (x_high - x_low), (point[1] - y_low) / (y_high - y_low)
        inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return round(LEFT + inner_width * x, 1), round(HEIGHT - BOTTOM - inner_height * y, 1)

    def curve(label: str, color: str, width: float, each: Sequence[Point]) -> Curve:
        is_short = len(each) <= MAX_DOTS and x_label == "step"
        dots = [
            (*place(point), f"{x_label} {point[0]:g}: {point[1]:.4g}")
            for point in each
            if is_short and math.isfinite(point[1])
        ]
        shown = phrases.visible(label)
        return Curve(shown, color, width, _path([_where(place, p) for p in _thin(each)]), (*dots,))

    return Plot(
        title=phrases.visible(title),
        x_label=x_label,
        curves=tuple(curve(*one) for one in drawn),
        x_ticks=tuple((place((x, y_low))[0], _show(x)) for x in _ticks(x_low, x_high)),
        y_ticks=tuple((place((x_low, y))[1], _show(y)) for y in _ticks(y_low, y_high)),
    )


def _where(place: Any, point: Point) -> Point | None:
    return place(point) if math.isfinite(point[1]) else None


def _path(places: Sequence[Point | None]) -> str:
    """Returns lines from place to place; None lifts the pen."""
    words, is_down = [], False
    for place in places:
        if place is not None:
            words.append(f"{'L' if is_down else 'M'}{place[0]:g} {place[1]:g}")
        is_down = place is not None
    return "".join(words)


def _thin(points: Sequence[Point]) -> list[Point]:
    """Returns at most about MAX_POINTS: of each stretch the lowest and the highest value."""
    if len(points) <= MAX_POINTS:
        return list(points)
    length = -(-2 * len(points) // MAX_POINTS)
    kept: list[Point] = []
    for start in range(0, len(points), length):
        stretch = points[start : start + length]
        is_number = [point for point in stretch if math.isfinite(point[1])] or stretch[:1]
        ends = {
            min(is_number, key=lambda point: point[1]),
            max(is_number, key=lambda point: point[1]),
        }
        kept += sorted(ends)
    return kept


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Returns the ends of an axis with all finite values inside.

    A constant is in its middle; what may be shares, from 0 to 1, has no axis beyond these.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    if low >= 0 and high <= 1:
        return max(0.0, low - margin), min(1.0, high + margin)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Returns round numbers between the ends of an axis: steps of 1, 2 or 5 times a power of 10."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _show(value: float) -> str:
    """Returns a tick's number: 0.2, 150, 20k, 3M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):g}{unit}"
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"
