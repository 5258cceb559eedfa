"""Curves of a run as SVG."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
      rows: rows of metrics.jsonl (`runlog.read_rows`); those without a key are left out of its
        curve, nan breaks it.
      keys: the names to draw; one that no row has gets no curve.
      title: above the axes.
    """
    import matplotlib
    from matplotlib import figure

    rows = list(rows)
    with matplotlib.rc_context(_STYLE):
        picture = figure.Figure(figsize=(4.6, 2.7), layout="constrained")
        axes = picture.add_subplot()
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                steps, values = zip(*points, strict=True)
                marker = "." if len(points) <= 40 else None
                axes.plot(steps, values, label=key, marker=marker, linewidth=1.4)
        if axes.lines:
            axes.legend(frameon=False)
            axes.ticklabel_format(axis="y", style="plain", useOffset=False)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("step")
        buffer = io.BytesIO()
        picture.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


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
