"""Curves of a run as SVG."""

import contextlib
import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from paligemma_jax.reports import drawing

MAX_CURVES = 8  # of labels, beside their mean

_STYLE: Any = {
    "svg.fonttype": "path",  # letters as outlines: the same picture where the font is missing
    "svg.hashsalt": "paligemma_jax",  # the same rows give the same bytes
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def curves(rows: Iterable[Mapping[str, Any]], keys: Sequence[str], *, title: str = "") -> bytes:
    """Returns an SVG of values over steps, one curve per key, with a dot where a row has a value.

    Args:
      rows: rows of metrics.jsonl (`run_log.read_rows`); those without a key are left out of its
        curve, nan breaks it.
      keys: the names to draw; one that no row has gets no curve.
      title: above the axes.
    """
    rows = list(rows)
    with _axes(title, xlabel="step") as (axes, buffer):
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                marker = "." if len(points) <= 40 else None
                axes.plot(steps, values, label=_plain(key), marker=marker, linewidth=1.4)
        if axes.lines:
            axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    return buffer.getvalue()


def precision_recall(
    precisions: Mapping[str, Sequence[float]], *, colors: Mapping[str, str], title: str = ""
) -> bytes:
    """Returns an SVG of precision over recall: the mean of all labels, and those of the worst.

    Args:
      precisions: label -> precision at recalls of 0 to 1 in equal steps, 0 where it is not reached.
      colors: "#rrggbb" by label.
      title: above the axes.
    """
    drawn = {label: np.asarray(values) for label, values in precisions.items() if len(values)}
    worst = sorted(drawn, key=lambda label: (drawn[label].mean(), label))[:MAX_CURVES]
    shown = [(label, drawn[label], colors.get(label, drawing.OTHER_COLOR), 1.4) for label in worst]
    if len(drawn) > 1:
        mean = np.mean(list(drawn.values()), axis=0)
        shown.append((f"mean of {len(drawn)}", mean, drawing.INK, 2.4))
    with _axes(title, xlabel="recall") as (axes, buffer):
        for label, values, color, width in shown:
            recalls = np.linspace(0, 1, len(values))
            reached = values > 0
            axes.plot(
                recalls[reached], values[reached], label=_plain(label), color=color, linewidth=width
            )
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel("precision")
    return buffer.getvalue()


@contextlib.contextmanager
def _axes(title: str, *, xlabel: str) -> Iterator[tuple[Any, io.BytesIO]]:
    """Yields (axes to draw into, what holds the SVG behind the `with`)."""
    import matplotlib
    from matplotlib import figure

    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Letters that matplotlib's font lacks are drawn as boxes; there is nothing to do about it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        picture = figure.Figure(figsize=(4.6, 2.7), layout="constrained")
        axes = picture.add_subplot()
        yield axes, buffer
        if axes.lines:
            axes.legend(frameon=False)
        axes.set_title(_plain(title), loc="left", fontsize=10)
        axes.set_xlabel(xlabel)
        picture.savefig(buffer, format="svg", metadata={"Date": None})


def _plain(text: str) -> str:
    """Returns text that is drawn as it is: not as a formula, and not left out of a legend."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


WITHOUT_PANEL = ("per_class/", "dropped/", "epochs/")


def choose_panels(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns {title: keys} worth a plot: values that change, those of one last name together.

    `loss` and `val/loss` share the panel "loss", `update_norm` and its parts `update_norm/llm_attn`
    that of the whole. Values by class or by reason have none, nor have the passes over each source.
    First come the panels with several curves, then those of evaluations (`val/map50`), then the
    rest; a whole and its parts come last.
    """
    seen: dict[str, set[float]] = {}
    for row in rows:
        for key, value in row.items():
            if key != "step" and value is not None and not math.isnan(value):
                seen.setdefault(key, set()).add(value)
    panels: dict[str, list[str]] = {}
    for key, values in seen.items():
        if len(values) > 1 and not any(part in key for part in WITHOUT_PANEL):
            first, _, _ = key.partition("/")
            panels.setdefault(first if first in seen else key.rsplit("/", 1)[-1], []).append(key)

    def rank(title: str) -> tuple[bool, int, bool]:
        has_parts = any(key.startswith(f"{title}/") for key in panels[title])
        return has_parts, -len(panels[title]), not any("/" in key for key in panels[title])

    return {title: panels[title] for title in sorted(panels, key=rank)}
