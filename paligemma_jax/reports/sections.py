"""What a check found, as sections: one list of parts that becomes text, HTML and JSON.

A section is a title and parts; a new section needs no code here. Findings come as dictionaries
(severity, kind, what, remedy, subject, count, places).
"""

import dataclasses
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from paligemma_jax.reports import page

Row = tuple[str, ...]

STYLE = """
table.left td, table.left th { text-align: left; vertical-align: top; white-space: pre-wrap; }
.finding { background: var(--card); border: 1px solid var(--line); border-left: 4px solid #9aa5b1;
  border-radius: 6px; padding: 8px 12px; margin-bottom: 8px; overflow-wrap: anywhere;
  white-space: pre-line; }
.finding.error { border-left-color: #b42318; } .finding.warning { border-left-color: #d97706; }
.findings { margin-top: 16px; } .finding b { margin-right: 8px; }
.finding small { color: var(--faint); display: block; }
.beside { display: flex; flex-wrap: wrap; gap: 20px; align-items: flex-start; }
.beside img { max-width: 100%; border: 1px solid var(--line); }
.prefix td { background: #3b82f61a; } .suffix td { background: #16a34a1a; }
.padding td { color: var(--faint); }
"""


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names with what is known of them."""

    pairs: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header.

    Attributes:
      title: above it.
      header: one name per column.
      rows: one text per column each.
      styles: a class per row for HTML ("prefix", "suffix", "padding"), or none.
      num_shown: how many rows a terminal shows; the page shows all, folded away where it is 0.
    """

    title: str
    header: Row
    rows: tuple[Row, ...]
    styles: tuple[str, ...] = ()
    num_shown: int = 20


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture, on the page only."""

    image: Image.Image
    caption: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report: `name` is its key in JSON."""

    name: str
    title: str
    parts: tuple[Facts | Table | Picture, ...]


def to_text(sections: Iterable[Section], findings: Sequence[Mapping[str, Any]]) -> str:
    """Returns the report for a terminal: the sections, then what was found, the worst first."""
    lines = []
    for section in sections:
        shown = [text for part in section.parts if (text := _part_text(part))]
        lines += [section.title, "=" * len(section.title)] if shown else []
        for text in shown:
            lines += [*text, ""]
    for found in findings:
        lines += _finding_text(found)
    return "\n".join(lines)


def to_html(title: str, sections: Iterable[Section], findings: Sequence[Mapping[str, Any]]) -> str:
    """Returns the report as one HTML file that opens without network: what was found first."""
    counts = dict.fromkeys(("error", "warning", "note"), 0)
    for found in findings:
        counts[found["severity"]] += 1
    body = [f"<style>{STYLE}</style>", page.scores_section({f"{k}s": n for k, n in counts.items()})]
    body.append(f'<div class="findings">{"".join(map(_finding_html, findings))}</div>')
    for section in sections:
        tables = [part for part in section.parts if not isinstance(part, Picture)]
        pictures = [part for part in section.parts if isinstance(part, Picture)]
        content = "".join(map(_part_html, tables))
        if pictures:
            shown = "".join(map(_picture_html, pictures))
            content = f'<div class="beside"><div>{content}</div><div>{shown}</div></div>'
        body.append(f"<section><h2>{page.escape(section.title)}</h2>{content}</section>")
    return page.layout(title, "\n".join(body))


def to_json(sections: Iterable[Section], findings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the report as dictionaries: {"findings": [...], "sections": {name: {...}}}."""
    shown: dict[str, dict[str, Any]] = {}
    for section in sections:
        shown[section.name] = {}
        for part in section.parts:
            if isinstance(part, Facts):
                shown[section.name] |= dict(part.pairs)
            elif isinstance(part, Table):
                rows = [dict(zip(part.header, row, strict=True)) for row in part.rows]
                shown[section.name][part.title] = rows
    return {"findings": list(findings), "sections": shown}


def _part_text(part: Facts | Table | Picture) -> list[str]:
    """Returns the lines of a part, none of one that is empty or no text."""
    if isinstance(part, Table):
        return _table_text(part)
    pairs = part.pairs if isinstance(part, Facts) else ()
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{name:<{width}}  {value}" for name, value in pairs]


def _table_text(table: Table) -> list[str]:
    rows = list(table.rows[: table.num_shown])
    if not rows:
        return []
    cells = [table.header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    more = len(table.rows) - len(rows)
    end = [f"... and {more} more: --out FOLDER writes all"] if more else []
    return [*filter(None, [table.title]), *lines, *end]


def _finding_text(found: Mapping[str, Any]) -> list[str]:
    subject = f"{found['subject']}: " if found["subject"] else ""
    times = f" ({found['count']})" if found["count"] > 1 else ""
    title = f"{found['severity'].upper()}  {subject}{found['kind']}{times}"
    inner = [*found["what"].splitlines(), _shown_places(found), f"-> {found['remedy']}"]
    return [title, *(f"    {line}" for line in inner if line), ""]


def _shown_places(found: Mapping[str, Any]) -> str:
    """Returns the places in a line, what they share said once: "x.jsonl:1, 2 (needs 7); 5"."""
    parts, last = [], None
    for (file, note), group in itertools.groupby(map(_cut_place, found["places"]), lambda p: p[:2]):
        lines = ", ".join(line for _, _, line in group)
        parts.append(f"{file if file != last else ''}{lines}{note}")
        last = file
    more = found["count"] - len(found["places"])
    return "; ".join(parts) + (f", and {more:,} more" if parts and more > 0 else "")


def _cut_place(place: str) -> tuple[str, str, str]:
    """Returns the parts of "x.jsonl:2 (needs 7)": "x.jsonl:", " (needs 7)", "2"; "" for none."""
    where, bracket, note = place.partition(" (")
    file, colon, line = where.rpartition(":")
    return (file + colon, bracket + note, line) if line.isdigit() else ("", "", place)


def _finding_html(found: Mapping[str, Any]) -> str:
    times = f" × {found['count']:,}" if found["count"] > 1 else ""
    places = page.escape(_shown_places(found))
    subject = f"{found['subject']}: " if found["subject"] else ""
    return (
        f'<div class="finding {page.escape(found["severity"])}">'
        f"<b>{page.escape(subject + found['kind'] + times)}</b>{page.escape(found['what'])}"
        f"<small>{places}</small><small>→ {page.escape(found['remedy'])}</small></div>"
    )


def _part_html(part: Facts | Table | Picture) -> str:
    if isinstance(part, Picture):
        return _picture_html(part)
    if isinstance(part, Facts):
        return table_html(Table("", (), part.pairs))
    table = table_html(part)
    title = page.escape(part.title)
    if not part.num_shown:
        return f"<details><summary>{title}</summary>{table}</details>"
    return f"<p>{title}</p>{table}" if title else table


def table_html(table: Table) -> str:
    """Returns all rows of a table, without its title."""
    head = "".join(f"<th>{page.escape(name)}</th>" for name in table.header)
    body = "".join(
        f'<tr class="{page.escape(table.styles[number]) if table.styles else ""}">'
        + "".join(f"<td>{page.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for number, row in enumerate(table.rows)
    )
    head = f"<tr>{head}</tr>" if head else ""
    return f'<div class="scroll"><table class="left">{head}{body}</table></div>'


def _picture_html(picture: Picture) -> str:
    buffer = io.BytesIO()
    picture.image.save(buffer, format="PNG")
    url, caption = page.embed(buffer.getvalue(), "image/png"), page.escape(picture.caption)
    return f'<p>{caption}</p><img src="{url}" alt="{caption}">'
