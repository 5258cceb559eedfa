"""What a command of the Python door leaves, for a notebook: small objects that show themselves.

Each reads the files of a folder when it is asked, and holds none of them.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paligemma_jax.files import run_folder
from paligemma_jax.reports import page, plots, run_log, sections
from paligemma_jax.results import answers
from paligemma_jax.tasks import task
from paligemma_jax.wording import phrases

NUM_CURVES = 6  # panels that a notebook shows of a run
NUM_WORST = 6  # answers that it shows of an evaluation
NO_SCORES = ("weights", "data", "evaluation", "step")  # of metrics.json
UNREAD = answers.Answers()


@dataclasses.dataclass(frozen=True, repr=False)
class Run:
    """A training run. It may be given wherever a run's folder is asked for.

    Attributes:
      folder: with everything that it has written.
    """

    folder: pathlib.Path

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl that count, in order of steps."""
        path = self.folder / run_folder.METRICS
        return run_log.read_rows(path) if path.exists() else []

    @property
    def is_finished(self) -> bool:
        """Whether its final weights are there."""
        return (self.folder / run_folder.FINAL).exists()

    @property
    def reports(self) -> list[pathlib.Path]:
        """Its pages."""
        return sorted(self.folder.glob("report*.html"))

    @property
    def scores(self) -> dict[str, float]:
        """The last value of each score of its evaluations: {"val/map50": ..}; no classes."""
        last = {
            key: value
            for row in self.rows
            for key, value in row.items()
            if key.partition("/")[0] in self._evaluations() and key.count("/") == 1
        }
        return last

    def to_dataframe(self) -> Any:
        """Returns its rows as a table of pandas, by step."""
        with answers.needing("pandas"):
            import pandas
        rows = self.rows
        return pandas.DataFrame(rows).set_index("step") if rows else pandas.DataFrame()

    def plot(self, *names: str) -> Any:
        """Draws curves with matplotlib, and returns the figure.

        Args:
          names: of numbers in metrics.jsonl, a panel each: "loss", "val/map50"; without any, the
            loss and the main scores.
        """
        with answers.needing("matplotlib"):
            from matplotlib import pyplot
        rows, panels = self.rows, self._panels()
        if unknown := sorted(set(names) - {key for row in rows for key in row}):
            near = phrases.did_you_mean(unknown[0], {key for row in rows for key in row})
            raise ValueError(f"no row of {self.folder / run_folder.METRICS} has {unknown}. {near}")
        panels = {name: [name] for name in names} or dict(list(panels.items())[:NUM_CURVES])
        columns = max(1, min(3, len(panels)))
        height = -(-len(panels) // columns) or 1
        size = (4.5 * columns, 3 * height)
        figure, axes = pyplot.subplots(height, columns, figsize=size, squeeze=False)
        for place in axes.flat[len(panels) :]:
            place.set_axis_off()
        for (title, keys), place in zip(panels.items(), axes.flat, strict=False):
            for key in keys:
                points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
                place.plot(*zip(*points, strict=True), label=key, marker="." * (len(points) < 40))
            place.set_title(title)
            place.set_xlabel("step")
            if len(keys) > 1:
                place.legend()
        figure.tight_layout()
        return figure

    def __repr__(self) -> str:
        rows = self.rows
        state = "finished" if self.is_finished else "not finished"
        step = f"{phrases.count(rows[-1]['step'], 'steps')}, " if rows else ""
        return answers.one_line(f"Run({self.folder}: {step}{state}{_main_scores(self.scores)})")

    def _repr_html_(self) -> str:
        rows, tables = self.rows, []
        for name in self._evaluations():
            prefix = f"{name}/"
            last: dict[str, float] = {}
            for row in rows:
                last |= {k[len(prefix) :]: v for k, v in row.items() if k.startswith(prefix)}
            numbers = {key: value for key, value in last.items() if value is not None}
            header, lines, _ = task.score_rows(numbers)
            if lines:
                tables.append(((name, *header[1:]), lines))
        curves = [
            plots.curves(rows, keys, title=title)
            for title, keys in list(self._panels().items())[:NUM_CURVES]
        ]
        lines = [f"report: {path}" for path in self.reports]
        return page.render(
            "notebook.html", title=repr(self), lines=lines, tables=tables, curves=curves
        )

    def _evaluations(self) -> list[str]:
        try:
            return list(json.loads((self.folder / run_folder.CONFIG).read_text())["evals"])
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def _panels(self) -> dict[str, list[str]]:
        return plots.choose_panels(self.rows, ("loss", *task.leading_scores()))


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation:
    """Scores of weights on a data set, and their answers.

    Attributes:
      folder: with predictions.jsonl, metrics.json and report.html.
      open_image: opens a picture by its path.
    """

    folder: pathlib.Path
    open_image: Callable[[str], Any]

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    @property
    def report(self) -> pathlib.Path:
        """Its page."""
        return self.folder / run_folder.report()

    @property
    def values(self) -> dict[str, Any]:
        """Everything in metrics.json, classes and the confusion matrix among it."""
        return json.loads((self.folder / run_folder.scores()).read_text())

    @property
    def scores(self) -> dict[str, float]:
        """Its numbers: {"map50": .., "per_class/cat/map50": ..}."""
        values = {key: value for key, value in self.values.items() if key not in NO_SCORES}
        return task.scalars(_known(values))

    @property
    def predictions(self) -> answers.Answers:
        """The rows of predictions.jsonl, in the order of the data."""
        path = self.folder / run_folder.PREDICTIONS
        if not path.exists():
            return UNREAD
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        return answers.Answers(answers.Answer(row, _opener(row, self.open_image)) for row in rows)

    def worst(self, count: int = NUM_WORST) -> answers.Answers:
        """Returns the answers with the lowest scores."""
        known = [one for one in self.predictions if one.get("score") is not None]
        return answers.Answers(sorted(known, key=lambda one: one["score"])[:count])

    def to_dataframe(self) -> Any:
        """Returns its scores as a table of pandas: a row for all, and one for each class."""
        with answers.needing("pandas"):
            import pandas
        rows: dict[str, dict[str, float]] = {"all": {}}
        for key, value in self.scores.items():
            if key.startswith(task.PER_LABEL):
                label, _, name = key.partition("/")[2].rpartition("/")
                rows.setdefault(label, {})[name] = value
            else:
                rows["all"][key] = value
        return pandas.DataFrame.from_dict(rows, orient="index")

    def plot(self, count: int = NUM_WORST) -> Any:
        """Draws the worst answers with matplotlib, and returns the figure."""
        return self.worst(count).plot()

    def __repr__(self) -> str:
        return answers.one_line(f"Evaluation({self.folder}{_main_scores(self.scores, colon=True)})")

    def _repr_html_(self) -> str:
        header, rows, num_left_out = task.score_rows(self.scores)
        note = f"and {phrases.count(num_left_out, 'more classes')}" if num_left_out else ""
        return page.render(
            "notebook.html",
            title=repr(self),
            lines=[f"data: {self.values.get('data')}", f"report: {self.report}"],
            tables=[(header, rows)],
            answers=self.worst().shown(),
            alone=False,
            note=note,
        )


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """Two evaluations of one data set.

    Attributes:
      folder: of the second, with comparison.html and comparison.json.
      before, after: the evaluations.
      summary: how many examples got better and worse.
      header, rows: of the table of scores.
    """

    folder: pathlib.Path
    before: Evaluation
    after: Evaluation
    summary: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def report(self) -> pathlib.Path:
        """Its page."""
        return self.folder / "comparison.html"

    def to_dataframe(self) -> Any:
        """Returns the scores of both as a table of pandas."""
        with answers.needing("pandas"):
            import pandas
        names = [row[0] for row in self.rows]
        return pandas.DataFrame([row[1:] for row in self.rows], names, self.header[1:])

    def __repr__(self) -> str:
        return answers.one_line(f"Comparison({self.folder}: {self.summary})")

    def _repr_html_(self) -> str:
        lines, tables = [f"report: {self.report}"], [(self.header, self.rows)]
        return page.render("notebook.html", title=repr(self), lines=lines, tables=tables)


@dataclasses.dataclass(frozen=True, repr=False)
class Check:
    """What a check found.

    Attributes:
      findings: the worst first; each has severity, kind, what, remedy, subject, count, places.
      parts: the other sections of its report.
    """

    findings: Sequence[Mapping[str, Any]]
    parts: Sequence[sections.Section]

    @property
    def errors(self) -> list[Mapping[str, Any]]:
        """The findings that must be mended."""
        return [one for one in self.findings if one["severity"] == "error"]

    @property
    def is_ready(self) -> bool:
        """Whether nothing must be mended."""
        return not self.errors

    def to_dataframe(self) -> Any:
        """Returns its findings as a table of pandas."""
        with answers.needing("pandas"):
            import pandas
        columns = ["severity", "subject", "kind", "what", "remedy", "count", "places"]
        return pandas.DataFrame([dict(one) for one in self.findings], columns=columns)

    def __str__(self) -> str:
        return sections.to_text(self.parts, self.findings)

    def __repr__(self) -> str:
        verdict = "READY" if self.is_ready else phrases.count(len(self.errors), "errors")
        others = [
            phrases.count(n, f"{name}s")
            for name in ("warning", "note")
            if (n := sum(one["severity"] == name for one in self.findings))
        ]
        first = f": {self.errors[0]['kind']}" if self.errors else ""
        return answers.one_line(f"Check({', '.join([verdict + first, *others])})")

    def _repr_html_(self) -> str:
        header = ("", "where", "what", "to do")
        rows = [
            (one["severity"], f"{one['subject']} {one['kind']}", one["what"], one["remedy"])
            for one in self.findings
        ]
        facts = [
            (("", section.title), list(part.pairs))
            for section in self.parts
            for part in section.parts
            if isinstance(part, sections.Facts)
        ]
        tables = ([(header, rows)] if rows else []) + facts
        return page.render("notebook.html", title=repr(self), tables=tables)


@dataclasses.dataclass(frozen=True, repr=False)
class DataSet:
    """An imported data set. It may be given wherever its folder is asked for.

    Attributes:
      folder: with a JSONL file per split, and the images.
      summary: what was read, changed, dropped and written.
      sheet: a picture of some examples.
    """

    folder: pathlib.Path
    summary: Mapping[str, Any]
    sheet: pathlib.Path

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    @property
    def splits(self) -> dict[str, pathlib.Path]:
        """The file of each split."""
        return {name: self.folder / f"{name}.jsonl" for name in self.summary["rows"]}

    def __repr__(self) -> str:
        counts = [phrases.count(n, f"rows of {name}") for name, n in self.summary["rows"].items()]
        of = f"{self.summary['format']}, {self.summary['task']}"
        return answers.one_line(f"DataSet({self.folder}: {', '.join(counts)}; {of})")

    def _repr_html_(self) -> str:
        facts = []
        for name in ("read", "changed", "rows", "images"):
            if values := self.summary.get(name):
                facts.append((name, ", ".join(f"{key} {n:,}" for key, n in values.items())))
        for what, reasons in self.summary.get("dropped", {}).items():
            facts += [(f"dropped {what}", f"{reason}: {n:,}") for reason, n in reasons.items()]
        if classes := self.summary.get("classes"):
            facts.append(("classes", ", ".join(classes)))
        data = self.sheet.read_bytes() if self.sheet.exists() else b""
        picture = page.embed(data, "image/png") if data else ""
        tables = [(("", str(self.folder)), facts)]
        return page.render("notebook.html", title=repr(self), tables=tables, picture=picture)


@dataclasses.dataclass(frozen=True, repr=False)
class Weights:
    """Converted weights.

    Attributes:
      path: of the npz file or the folder.
      values: arrays, bytes and seconds; what a comparison measured.
    """

    path: pathlib.Path
    values: Mapping[str, float]

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __repr__(self) -> str:
        size = phrases.size(self.values["bytes"])
        count = phrases.count(int(self.values["arrays"]), "arrays")
        return answers.one_line(f"Weights({self.path}: {count}, {size})")


def _main_scores(scores: Mapping[str, float], *, colon: bool = False) -> str:
    """Returns ", val/map50 0.91", a few of the scores that are read first."""
    order = {name: place for place, name in enumerate(task.leading_scores())}
    named = [key for key in scores if key.rpartition("/")[2] in order and "per_" not in key]
    named.sort(key=lambda key: order[key.rpartition("/")[2]])
    values = [(key, scores[key]) for key in named if scores[key] is not None]
    shown = [f"{key} {value:.3f}" for key, value in values if math.isfinite(value)][:3]
    return f"{':' if colon else ','} {', '.join(shown)}" if shown else ""


def _known(values: Any) -> Any:
    """Returns values without null, which is how a file has what is no number."""
    if not isinstance(values, dict):
        return values
    return {key: _known(value) for key, value in values.items() if value is not None}


def _opener(row: Mapping[str, Any], open_image: Callable[[str], Any]) -> answers.OpenImages:
    return lambda: [open_image(path) for path in row.get("images", ())]
