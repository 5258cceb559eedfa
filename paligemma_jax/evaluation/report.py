"""What an evaluation leaves in a folder: predictions, scores, and the page that shows both."""

import dataclasses
import datetime
import os
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from paligemma_jax.assembly import datasets
from paligemma_jax.console import say
from paligemma_jax.files import atomic, run_folder
from paligemma_jax.reports import diagnosis, gallery, page, run_log
from paligemma_jax.settings import schema
from paligemma_jax.tasks import task
from paligemma_jax.wording import phrases

Rows = list[dict[str, Any]]
END_OF_LINKS = "</nav>"  # to other pages
OF_SUBJECT = ("weights", "data", "evaluation", "step")  # of metrics.json, and no scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What was evaluated.

    Attributes:
      title: of the page.
      name: of the evaluation; in the rows of metrics.jsonl too, where training evaluates.
      data: path of its data set, or "input".
      num_examples: of it.
      weights: what answered, in words.
      seconds: {what took time: how long}.
      settings: those that trained, whose evaluations curves are of; None: not known.
      classes: all labels of the run, so that each has its colour.
    """

    title: str
    name: str = ""
    data: str = ""
    num_examples: int | None = None
    weights: str = ""
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    settings: schema.Settings | None = None
    classes: Sequence[str] = ()


def write(
    folder: pathlib.Path,
    rows: Rows,
    scores: Mapping[str, Any],
    *,
    subject: Subject,
    run: pathlib.Path | None,
    now: Mapping[str, Any] | None = None,
    predictions: str = run_folder.PREDICTIONS,
    evaluation: str = "",
) -> list[pathlib.Path]:
    """Writes predictions, metrics.json and report.html into a folder, and returns their paths.

    The first process does, for all. Without rows (of the loss alone) there are no predictions.

    Args:
      folder: made if need be.
      rows, scores: of `evaluator.run`.
      subject: what they are of.
      run: the folder of a training run whose curves the report shows, if there is one.
      now: row of metrics.jsonl that is not written yet.
      predictions: name of the file of rows.
      evaluation: in the other two names, where a run has several.
    """
    if jax.process_index():
        return []
    folder.mkdir(parents=True, exist_ok=True)
    metrics = run / run_folder.METRICS if run else None
    history = run_log.read_rows(metrics) if metrics and metrics.exists() else []
    history += [now] if now else []
    names = (predictions, run_folder.scores(evaluation), run_folder.report(evaluation))
    predicted, values, report = (folder / name for name in names)
    if rows:
        atomic.write_jsonl(predicted, rows)
    numbers = {key: value for key, value in scores.items() if key != page.PR_CURVES}
    atomic.write_json(values, numbers)
    words = page.Words(task.leading_scores(), task.TITLES, task.all_score_docs())
    shares = [name for name in words.first if name != "loss"]
    verdict = diagnosis.diagnose(scores, history, evaluation=subject.name, first=shares)
    gallery.write(
        report,
        rows,
        lead=gallery.Lead(
            subject.title, verdict, _facts(subject), find_links(report, run, subject, predicted)
        ),
        scores={key: value for key, value in scores.items() if key not in OF_SUBJECT},
        words=words,
        cells=task.confusion_cells(rows, scores.get(page.CONFUSION)),
        classes=subject.classes,
        history=gallery.History(
            history, _sources(subject), ", ".join(map(os.path.basename, _data(subject)))
        ),
        open_image=datasets.open_image,
    )
    return [*([predicted] if rows else []), values, report]


def _facts(subject: Subject) -> tuple[tuple[str, str], ...]:
    """Returns (name, text) of all that is known of what was evaluated."""
    settings, facts = subject.settings, {}
    if settings:
        facts["model"] = describe_model(settings)
    if subject.weights:
        facts["weights"] = subject.weights
    if subject.data:
        facts["data"] = ", ".join(_data(subject))
        if subject.num_examples is not None:
            facts["data"] += f", {phrases.count(subject.num_examples, 'examples')}"
    if settings and (trained_on := _training_files(settings)):
        facts["trained on"] = ", ".join(trained_on)
    facts["date"] = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z").strip()
    if subject.seconds:
        took = [f"{what} {phrases.duration(seconds)}" for what, seconds in subject.seconds.items()]
        facts["duration"] = ", ".join(took)
    return tuple(facts.items())


def describe_model(settings: schema.Settings) -> str:
    """Returns "paligemma: So400m/14 and gemma_2b at 224 px, LoRA rank 8"."""
    towers = settings.model
    text = f"{towers.family}: {towers.img.variant} and {towers.llm.variant} at {settings.res} px"
    return f"{text}, LoRA rank {settings.lora.rank}" if settings.lora.targets else text


def _training_files(settings: schema.Settings) -> list[str]:
    mixture = [source.fname for source in settings.input.mixture.values()]
    return mixture or [settings.input.data.fname or ""][: bool(settings.input.data.fname)]


def _data(subject: Subject) -> list[str]:
    """Returns the files that were evaluated, none if they are not known."""
    if subject.data == schema.INPUT and subject.settings:
        return _training_files(subject.settings)
    return [subject.data] if subject.data else []


def _sources(subject: Subject) -> dict[str, str]:
    """Returns the names of the files that the curves of training and of evaluations are of."""
    if subject.settings is None:
        return {}
    trained_on = ", ".join(map(os.path.basename, _training_files(subject.settings)))
    sources = {"": trained_on} if trained_on else {}
    for name, one in subject.settings.evals.items():
        is_input = one.fname == schema.INPUT
        sources[name] = trained_on if is_input else os.path.basename(one.fname)
    return sources


def find_links(
    report: pathlib.Path, run: pathlib.Path | None, subject: Subject, predicted: pathlib.Path
) -> tuple[tuple[str, str], ...]:
    """Returns (text, address) of the pages and files beside a report, those that there are.

    The reports of a run's other evaluations are among them before they are written.
    """
    pages: dict[str, pathlib.Path] = {}
    if run:
        evals = subject.settings.evals if subject.settings else {}
        reports = {f"report of {n}": run / run_folder.report(n) for n in evals if len(evals) > 1}
        reports |= {
            f"evaluation of {each.parent.name.removeprefix(run_folder.evaluation(''))}": each
            for each in sorted(run.glob(f"{run_folder.evaluation('*')}/{run_folder.report()}"))
        }
        if (run / run_folder.report()).exists():
            reports["report of training"] = run / run_folder.report()
        sweep = run.parent / run_folder.SWEEP
        pages = reports | ({"sweep": sweep} if sweep.exists() else {})
        files = (run_folder.CONFIG, run_folder.METRICS)
        pages |= {name: run / name for name in files if (run / name).exists()}
    if predicted.exists():
        pages[predicted.name] = predicted
    here = os.path.abspath(report)
    return tuple(
        (text, address(path, report.parent))
        for text, path in pages.items()
        if os.path.abspath(path) != here
    )


def link_from_others(report: pathlib.Path, run: pathlib.Path, name: str) -> None:
    """Adds a link to a report that was written later to the other reports in a run's folder.

    The first process does, for all.
    """
    others = [*run.glob("report*.html"), *run.glob(f"{run_folder.evaluation('*')}/report.html")]
    for path in others if jax.process_index() == 0 else ():
        if os.path.abspath(path) == os.path.abspath(report):
            continue
        text, place = path.read_text("utf-8"), address(report, path.parent)
        link = page.render("link.html", name=f"evaluation of {name}", address=place).strip()
        # What a page quotes is escaped, so the first end of a list of links is that of its own.
        before, end, after = text.partition(END_OF_LINKS)
        if end and link not in before:
            atomic.write_text(path, f"{before}{link}\n{end}{after}")


def address(path: pathlib.Path, folder: pathlib.Path) -> str:
    """Returns how a page in a folder links to a file."""
    relative = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
    return urllib.parse.quote(pathlib.Path(relative).as_posix())


def score_table(title: str, scores: Mapping[str, float], *, with_classes: bool = True) -> str:
    """Returns `task.score_rows` as aligned text below a title; "" without any score."""
    header, rows, num_left_out = task.score_rows(scores, with_classes=with_classes)
    if not rows:
        return ""
    text = say.table(rows, header=(title, *header[1:]))
    return f"{text}\nand {phrases.count(num_left_out, 'more classes')}" if num_left_out else text
