"""A report's page: templates filled in, as one HTML file that needs no other and no network.

The templates are files in `templates/`. What is put into them is text, whatever it holds: only a
template makes HTML, and letters that steer a text instead of being read are written as their code.
"""

import base64
import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from paligemma_jax.wording import phrases

TEMPLATES = pathlib.Path(__file__).parent / "templates"
PR_CURVES, CONFUSION = "pr_curves", "confusion"  # of scores: drawn, and no tables
MAX_ROWS = 100  # of a table of scores
MAX_FIRST = 5  # scores that lead
MAX_SHADE = 0.75  # of the cell with the most
WHAT_TABLES_HOLD = {
    "per_class": "by class",
    "per_group": "by group",
    "per_count": "by true count",
    "dropped": "malformed parts of answers, left out",
    "unknown_labels": "labels that no prompt and no truth has",
}


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table with names above and at the left.

    Attributes:
      heading: above it.
      columns: their names.
      rows: (name, a text per column) each.
      num_left_out: rows that there are beside these.
    """

    heading: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    num_left_out: int = 0


@dataclasses.dataclass(frozen=True)
class Count:
    """A cell of a confusion matrix: how many, and how dark it is, from 0 to 1."""

    number: int
    shade: float


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A confusion matrix: labels, of truths at the left and of predictions above, and counts."""

    labels: tuple[str, ...]
    rows: tuple[tuple[Count, ...], ...]


@dataclasses.dataclass(frozen=True)
class Words:
    """What scores are called and what they mean.

    Attributes:
      first: names of the scores that lead, in their order.
      titles: name -> what people call it; `in_words` of others.
      docs: name -> what it means, in a line.
    """

    first: tuple[str, ...] = ()
    titles: Mapping[str, str] = dataclasses.field(default_factory=dict)
    docs: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def title(self, name: str) -> str:
        return self.titles.get(name) or in_words(name)


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


def in_words(name: str) -> str:
    """Returns "mean_tokens" as "mean tokens"."""
    return name.replace("_", " ")


def _visible(value: Any) -> Any:
    """Returns text with its hidden letters shown; the HTML of a macro, and no text, as they are."""
    return phrases.visible(value) if type(value) is str else value


def scores(values: Mapping[str, Any], words: Words) -> dict[str, Any]:
    """Returns scores as a template takes them: those that lead, the others, grids and a matrix.

    Args:
      values: numbers, None, and dictionaries: {name: number}, {name: {column: number}}, or the
        confusion matrix {"labels", "counts"}.
      words: what they are called.

    Returns:
      first, others: [(title, value, what it means)]; grids; matrix (None: there is none).
    """
    numbers = [
        key for key, value in values.items() if value is None or isinstance(value, int | float)
    ]
    first = [name for name in words.first if name in numbers and values[name] is not None]
    first = first[:MAX_FIRST] or numbers[:MAX_FIRST]
    tables = [
        (key, value)
        for key, value in values.items()
        if isinstance(value, Mapping) and value and key not in (PR_CURVES, CONFUSION)
    ]
    # Those of classes and groups come before counts of what is odd.
    tables.sort(key=lambda one: not all(isinstance(row, Mapping) for row in one[1].values()))
    confusion = values.get(CONFUSION)

    def described(names: Sequence[str]) -> list[tuple[str, Any, str]]:
        return [(words.title(name), values[name], words.docs.get(name, "")) for name in names]

    return {
        "first": described(first),
        "others": described([name for name in numbers if name not in first]),
        "grids": [_table(*one, words) for one in tables],
        "matrix": _matrix(confusion) if confusion and any(map(any, confusion["counts"])) else None,
    }


def _table(heading: str, values: Mapping[str, Any], words: Words) -> Grid:
    """Returns the first rows of {name: number} or {name: {column: number}}."""
    rows = {
        name: inner if isinstance(inner, Mapping) else {"count": inner}
        for name, inner in list(values.items())[:MAX_ROWS]
    }
    columns = tuple(dict.fromkeys(column for inner in rows.values() for column in inner))
    cells = tuple(
        (name, tuple(show(inner.get(column)) for column in columns)) for name, inner in rows.items()
    )
    return Grid(
        WHAT_TABLES_HOLD.get(heading, in_words(heading)),
        tuple(words.title(column) for column in columns),
        cells,
        num_left_out=len(values) - len(rows),
    )


def _matrix(values: Mapping[str, Sequence[Any]]) -> Matrix:
    """Returns a confusion matrix: one scale for all cells, whose root lets few be seen too."""
    most = max(max(counts) for counts in values["counts"])
    rows = tuple(
        tuple(Count(int(count), MAX_SHADE * math.sqrt(count / most)) for count in counts)
        for counts in values["counts"]
    )
    return Matrix(tuple(values["labels"]), rows)


@functools.cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
    )
    environment.filters["show"] = show
    return environment
