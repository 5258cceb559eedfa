"""What a check has to report, as sections: one list of parts that becomes text, HTML and JSON.

A section is a title and parts; a new section needs no code here. Findings come as dictionaries
(severity, kind, what, remedy, subject, count, places).
"""

import dataclasses
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from paligemma_jax.reports import page, plots

Row = tuple[str, ...]
TEMPLATE = "sections.html"
SEVERITIES = ("error", "warning", "note")
BAR_LETTERS = 40  # of a bar on a terminal


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
      links: a page per row that its first cell leads to, relative to this one; "" for none.
    """

    title: str
    header: Row
    rows: tuple[Row, ...]
    styles: tuple[str, ...] = ()
    num_shown: int = 20
    links: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of Pillow, on the page only."""

    image: Image.Image
    caption: str


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar of several colours against what there is room for.

    Attributes:
      label: before it.
      segments: (name, size, style) of what it is made of; the style is a class of the page.
      capacity: where the room ends, in the unit of the sizes.
      note: behind it: the sizes in words.
    """

    label: str
    segments: tuple[tuple[str, float, str], ...]
    capacity: float
    note: str

    @property
    def total(self) -> float:
        """All segments together."""
        return sum(size for _, size, _ in self.segments)

    def shares(self) -> list[tuple[str, float, str]]:
        """Returns (name, share of the drawn width, style); with what is over, it all fits in."""
        scale = max(self.capacity, self.total)
        return [(name, size / scale, style) for name, size, style in self.segments]

    @property
    def limit_share(self) -> float:
        """Where on the drawn width the room ends."""
        return self.capacity / max(self.capacity, self.total)


@dataclasses.dataclass(frozen=True)
class Bars:
    """Bars under a title, with one legend."""

    title: str
    bars: tuple[Bar, ...]

    def legend(self) -> list[tuple[str, str]]:
        """Returns (name, style) of all segments, in order."""
        return list(
            {style: (n, style) for bar in self.bars for n, _, style in bar.segments}.values()
        )


Part = Facts | Table | Picture | Bars | plots.Plot


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report: `name` is its key in JSON, `title` may be "".

    On the page pictures are beside the tables, with captions, or in rows where there is none.
    """

    name: str
    title: str
    parts: tuple[Part, ...]


def to_text(sections: Iterable[Section], findings: Sequence[Mapping[str, Any]]) -> str:
    """Returns the report for a terminal: the sections, then the findings, the worst first."""
    lines = []
    for section in sections:
        shown = [text for part in section.parts if (text := _part_text(part))]
        lines += [section.title, "=" * len(section.title)] if shown else []
        for text in shown:
            lines += [*text, ""]
    for finding in findings:
        lines += _finding_text(finding)
    return "\n".join(lines)


def to_html(
    title: str,
    sections: Iterable[Section],
    findings: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """Returns the report as one HTML file that opens without network: the findings first.

    `findings`: None where there is nothing to find, so that the page does not count them.
    """
    counts = {f"{name}s": 0 for name in SEVERITIES} if findings is not None else {}
    for finding in findings or ():
        counts[f"{finding['severity']}s"] += 1
    return page.render(
        TEMPLATE,
        title=title,
        counts=[(name, count, "") for name, count in counts.items()],
        findings=[_finding_values(finding) for finding in findings or ()],
        sections=[_section_values(section) for section in sections],
    )


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
            elif isinstance(part, Bars):
                shown[section.name][part.title] = [_bar_values(bar) for bar in part.bars]
    return {"findings": list(findings), "sections": shown}


def _bar_values(bar: Bar) -> dict[str, Any]:
    sizes = {name: size for name, size, _ in bar.segments}
    return {"label": bar.label, **sizes, "capacity": bar.capacity}


def _part_text(part: Part) -> list[str]:
    """Returns the lines of a part, none of one that is empty or no text."""
    if isinstance(part, Table):
        return _table_text(part)
    if isinstance(part, Bars):
        return _bars_text(part)
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


def _bars_text(part: Bars) -> list[str]:
    """Returns bars of letters: "TTFFFFA.....|", the line being where the room ends."""
    width = max((len(bar.label) for bar in part.bars), default=0)
    lines = []
    for bar in part.bars:
        drawn = "".join(
            name[:1].upper() * round(share * BAR_LETTERS) for name, share, _ in bar.shares()
        )[:BAR_LETTERS].ljust(BAR_LETTERS, ".")
        limit = round(bar.limit_share * BAR_LETTERS)
        drawn = f"{drawn[:limit]}|{drawn[limit:]}"
        lines.append(f"{bar.label:<{width}}  {drawn}  {bar.note}")
    letters = ", ".join(f"{name[:1].upper()} {name}" for name, _ in part.legend())
    return [part.title, *lines, f"({letters})"] if lines else []


def _finding_text(finding: Mapping[str, Any]) -> list[str]:
    subject = f"{finding['subject']}: " if finding["subject"] else ""
    times = f" ({finding['count']})" if finding["count"] > 1 else ""
    title = f"{finding['severity'].upper()}  {subject}{finding['kind']}{times}"
    inner = [*finding["what"].splitlines(), _shown_places(finding), f"-> {finding['remedy']}"]
    return [title, *(f"    {line}" for line in inner if line), ""]


def _shown_places(finding: Mapping[str, Any]) -> str:
    """Returns the places in a line, what they share written once: "x.jsonl:1, 2 (needs 7); 5"."""
    parts, last = [], None
    for (file, note), group in itertools.groupby(
        map(_cut_place, finding["places"]), lambda p: p[:2]
    ):
        lines = ", ".join(line for _, _, line in group)
        parts.append(f"{file if file != last else ''}{lines}{note}")
        last = file
    more = finding["count"] - len(finding["places"])
    return "; ".join(parts) + (f", and {more:,} more" if parts and more > 0 else "")


def _cut_place(place: str) -> tuple[str, str, str]:
    """Returns the parts of "x.jsonl:2 (needs 7)": "x.jsonl:", " (needs 7)", "2"; "" for none."""
    where, bracket, note = place.partition(" (")
    file, colon, line = where.rpartition(":")
    return (file + colon, bracket + note, line) if line.isdigit() else ("", "", place)


def _finding_values(finding: Mapping[str, Any]) -> dict[str, str]:
    """Returns the texts of a finding for the template."""
    subject = f"{finding['subject']}: " if finding["subject"] else ""
    times = f" × {finding['count']:,}" if finding["count"] > 1 else ""
    return {
        **{key: finding[key] for key in ("severity", "what", "remedy")},
        "title": f"{subject}{finding['kind']}{times}",
        "places": _shown_places(finding),
    }


def _section_values(section: Section) -> dict[str, Any]:
    """Returns a section for the template: its tables, and its pictures as (URL, caption)."""
    tables = [
        Table("", (), part.pairs) if isinstance(part, Facts) else part for part in section.parts
    ]
    return {
        "title": section.title,
        "bars": [part for part in section.parts if isinstance(part, Bars)],
        "tables": [part for part in tables if isinstance(part, Table)],
        "pictures": [
            (_embed(part.image), part.caption)
            for part in section.parts
            if isinstance(part, Picture)
        ],
        "plots": [part for part in section.parts if isinstance(part, plots.Plot)],
    }


def _embed(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return page.embed(buffer.getvalue(), "image/png")
