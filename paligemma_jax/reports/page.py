"""The parts of a report's page: style, script, tables. Everything is inside the one file."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --soft: #5b6773; --faint: #66727f;
  --page: #f6f7f9; --card: #fff; --line: #e1e5ea; --head: #f0f2f5; --invalid: #b42318; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #a9b4bf; --faint: #98a4b0;
  --page: #14181d; --card: #1e242b; --line: #38424d; --head: #29313a; --invalid: #ff8a80; } }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page);
  margin: 0; }
main { max-width: 1480px; margin: 0 auto; padding: 20px; }
h1 { font-size: 22px; margin: 0 0 14px; } h2 { font-size: 15px; margin: 22px 0 8px; }
.numbers { display: flex; flex-wrap: wrap; gap: 8px; margin: 0; }
.numbers div { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: 6px 12px; }
.numbers dt { color: var(--faint); font-size: 12px; } .numbers dd { margin: 0; font-size: 18px; }
.plots { display: flex; flex-wrap: wrap; gap: 10px; }
.plots img { width: 400px; max-width: 100%;
  background: #fff; border: 1px solid var(--line); border-radius: 6px; }
summary { cursor: pointer; padding: 6px 0; color: var(--soft); }
.tables { display: flex; flex-wrap: wrap; gap: 0 28px; } .tables section { max-width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); }
th, td { border: 1px solid var(--line); padding: 3px 10px; text-align: right; }
th { font-weight: 600; background: var(--head); } th:first-child { text-align: left; }
.bar { position: sticky; top: 0; z-index: 1; background: var(--page); padding: 10px 0;
  margin-top: 18px; }
.bar, .bar [role=group] { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; }
button, select, input[type=search] { font: inherit; border: 1px solid var(--faint);
  border-radius: 6px; background: var(--card); color: inherit; padding: 4px 12px; }
button, select { cursor: pointer; }
button[aria-pressed=true] { background: var(--ink); color: var(--page); border-color: var(--ink); }
:focus-visible { outline: 3px solid #3b82f6; outline-offset: 1px; }
.legend span { margin-right: 12px; white-space: nowrap; }
.chip { display: inline-block; width: 14px; height: 9px; border: 2px solid; margin-right: 4px; }
.cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr));
  align-items: start; }
.card { background: var(--card); border: 1px solid var(--line); border-left: 4px solid #16a34a;
  border-radius: 6px; padding: 10px 12px; overflow-wrap: anywhere; }
.card.wrong { border-left-color: #d97706; } .card.unknown { border-left-color: #9aa5b1; }
.card[hidden] { display: none; }
.facts { display: flex; flex-wrap: wrap; gap: 4px 12px; color: var(--soft); font-size: 12px;
  margin-bottom: 6px; } .facts b { color: var(--ink); } .facts .invalid { color: var(--invalid); }
figure { position: relative; margin: 0 auto 8px; max-width: 100%; }
figure img { display: block; width: 100%; }
figure svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: hidden; }
figure rect { fill: none; stroke-width: 2px; }
figure text { font: 600 11px system-ui, sans-serif; paint-order: stroke; stroke: #fff;
  stroke-width: 3px; }
.truth rect { stroke-dasharray: 6 4; }
.no-truth .truth, .no-prediction .prediction, .no-masks figure image { display: none; }
.missing { background: var(--head); color: var(--faint); padding: 24px 12px; margin-bottom: 8px; }
.text { display: grid; grid-template-columns: max-content 1fr; gap: 2px 10px; margin: 0; }
.text dt { color: var(--faint); font-size: 12px; padding-top: 2px; }
.text dd { margin: 0; font: 12px/1.5 ui-monospace, monospace; white-space: pre-wrap; }
.text dd.none { color: var(--faint); }
"""

SCRIPT = """
const cards = [...document.querySelectorAll('.card')];
const grid = document.querySelector('.cards');
const search = document.querySelector('#search');
let wanted = 'all';
function choose() {
  const words = search.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let count = 0;
  for (const card of cards) {
    const fits = wanted === 'all' || card.dataset.flags.split(' ').includes(wanted);
    const text = words.length ? card.textContent.toLowerCase() : '';
    card.hidden = !fits || !words.every(word => text.includes(word));
    count += !card.hidden;
  }
  document.querySelector('#count').textContent = `${count} shown`;
}
for (const button of document.querySelectorAll('button[data-filter]')) {
  button.onclick = () => {
    for (const other of document.querySelectorAll('button[data-filter]'))
      other.setAttribute('aria-pressed', other === button);
    wanted = button.dataset.filter;
    choose();
  };
}
search.oninput = choose;
document.querySelector('#sort').onchange = event => {
  const [key, sign] = event.target.value.split(':');
  const value = card => card.dataset[key] === '' ? Infinity : sign * card.dataset[key];
  cards.sort((a, b) => value(a) - value(b) || a.dataset.index - b.dataset.index);
  grid.append(...cards);
};
for (const box of document.querySelectorAll('input[data-hides]'))
  box.onchange = () => grid.classList.toggle(box.dataset.hides, !box.checked);
"""


PR_CURVES = "pr_curves"  # of scores: drawn, and too long for a table
NO_DOCS: Mapping[str, str] = {}


def layout(title: str, body: str, *, script: str = "") -> str:
    """Returns the whole page; `body` is HTML, `title` text, `script` what the page runs."""
    end = f"<script>{script}</script>\n" if script else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</main>\n{end}</body>\n</html>\n"
    )


def escape(text: object) -> str:
    """Returns any text as HTML text, fit for an attribute too."""
    return html.escape(str(text), quote=True)


def embed(data: bytes, mime_type: str) -> str:
    """Returns bytes as the URL of themselves."""
    return f"data:{mime_type};base64,{base64.b64encode(data).decode()}"


def show(value: object) -> str:
    """Returns a number as it is read best: counts whole, shares with three digits, nan a dash."""
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "–"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def scores_section(scores: Mapping[str, Any], docs: Mapping[str, str] = NO_DOCS) -> str:
    """Returns scores as HTML: numbers as tiles, dictionaries and the confusion matrix as tables.

    `docs` says what a number means: over its tile, and in a list that unfolds.
    """
    tiles = [
        key for key, value in scores.items() if value is None or isinstance(value, int | float)
    ]
    known = {key: docs[key] for key in tiles if key in docs}
    shown = "".join(
        f'<div title="{escape(known.get(key, key))}"><dt>{escape(key)}</dt>'
        f"<dd>{show(scores[key])}</dd></div>"
        for key in tiles
    )
    numbers = f'<dl class="numbers">{shown}</dl>' if shown else ""
    if known:
        lines = "".join(f"<dt>{escape(k)}</dt><dd>{escape(doc)}</dd>" for k, doc in known.items())
        numbers += (
            f'<details><summary>what they mean</summary><dl class="text">{lines}</dl></details>'
        )
    tables = []
    for key, value in scores.items():
        if not isinstance(value, Mapping) or not value or key == PR_CURVES:
            continue
        if "counts" in value and "labels" in value:
            heading = f"{key} (rows: truth, columns: prediction)"
            tables.append(_section(heading, _matrix(value["labels"], value["counts"])))
        else:
            tables.append(_section(key, _table(value)))
    return f'{numbers}\n<div class="tables">{"".join(tables)}</div>'


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{content}</section>"


def _table(values: Mapping[str, Any], limit: int = 100) -> str:
    """Returns {name: number} or {name: {column: number}} as a table, the first `limit` rows."""
    rows = {
        name: inner if isinstance(inner, Mapping) else {"count": inner}
        for name, inner in list(values.items())[:limit]
    }
    columns = list(dict.fromkeys(column for inner in rows.values() for column in inner))
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(f"<td>{escape(show(inner.get(column)))}</td>" for column in columns)
        + "</tr>"
        for name, inner in rows.items()
    )
    more = f"<p>Not shown: {len(values) - limit} more.</p>" if len(values) > limit else ""
    return f'<div class="scroll"><table><tr><td></td>{head}</tr>{body}</table></div>{more}'


def _matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Returns a table whose cells are darker the larger their share of the row."""
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)
    body = ""
    for label, row in zip(labels, counts, strict=True):
        total = max(sum(row), 1)
        cells = "".join(
            f'<td style="background:rgba(31,119,180,{0.5 * count / total:.2f})">{count or ""}</td>'
            for count in row
        )
        body += f"<tr><th>{escape(label)}</th>{cells}</tr>"
    return f'<div class="scroll"><table><tr><td></td>{head}</tr>{body}</table></div>'
