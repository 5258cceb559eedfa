"""A report's page: templates filled in, as one HTML file that needs no other and no network.

The templates are files in `templates/`. What is put into them is text, whatever it holds: only a
template makes HTML.
"""

import base64
import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

TEMPLATES = pathlib.Path(__file__).parent / "templates"
PR_CURVES = "pr_curves"  # of scores: drawn, and too long for a table
NO_DOCS: Mapping[str, str] = {}
MAX_ROWS = 100  # of a table of scores


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a grid: its text, and how dark it is, from 0 to 1."""

    text: str
    shade: float = 0.0


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table with names above and at the left.

    Attributes:
      heading: above it.
      columns: their names.
      rows: (name, a cell per column) each.
      num_left_out: rows that there are beside these.
    """

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    num_left_out: int = 0


def render(template: str, **values: Any) -> str:
    """Returns a template with values filled in."""
    return _environment().get_template(template).render(**values)


def embed(data: bytes, mime_type: str) -> str:
    """Returns bytes as the URL of themselves."""
    return f"data:{mime_type};base64,{base64.b64encode(data).decode()}"


def show(value: object) -> str:
    """Returns a number as it is read best: counts whole, shares with three digits, nan a dash."""
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "–"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def scores(values: Mapping[str, Any], docs: Mapping[str, str] = NO_DOCS) -> dict[str, Any]:
    """Returns scores as a template takes them: numbers, what they mean, and grids.

    Args:
      values: numbers, None, and dictionaries: {name: number}, {name: {column: number}}, or the
        confusion matrix {"labels", "counts"}.
      docs: what a number means.
    """
    is_number = {
        key: value is None or isinstance(value, int | float) for key, value in values.items()
    }
    tables = [
        (key, value)
        for key, value in values.items()
        if isinstance(value, Mapping) and value and key != PR_CURVES
    ]
    return {
        "numbers": {key: value for key, value in values.items() if is_number[key]},
        "docs": docs,
        "grids": [
            _matrix(*one) if "counts" in one[1] and "labels" in one[1] else _table(*one)
            for one in tables
        ],
    }


def _table(heading: str, values: Mapping[str, Any]) -> Grid:
    """Returns the first rows of {name: number} or {name: {column: number}}."""
    rows = {
        name: inner if isinstance(inner, Mapping) else {"count": inner}
        for name, inner in list(values.items())[:MAX_ROWS]
    }
    columns = tuple(dict.fromkeys(column for inner in rows.values() for column in inner))
    cells = tuple(
        (name, tuple(Cell(show(inner.get(column))) for column in columns))
        for name, inner in rows.items()
    )
    return Grid(heading, columns, cells, num_left_out=len(values) - len(rows))


def _matrix(heading: str, values: Mapping[str, Sequence[Any]]) -> Grid:
    """Returns a confusion matrix: a cell is darker the larger its share of the row."""
    rows = []
    for label, counts in zip(values["labels"], values["counts"], strict=True):
        total = max(sum(counts), 1)
        cells = [Cell(str(count or ""), shade=0.5 * count / total) for count in counts]
        rows.append((label, tuple(cells)))
    heading = f"{heading} (rows: truth, columns: prediction)"
    return Grid(heading, tuple(values["labels"]), tuple(rows))


@functools.cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["show"] = show
    return environment
