"""A sweep's runs as commands, and what has become of them as one table."""

import contextlib
import dataclasses
import json
import math
import pathlib
import shlex
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from paligemma_jax.assembly import assembly
from paligemma_jax.checkpoints import train_checkpoint
from paligemma_jax.console import arguments, process, say, workers
from paligemma_jax.evaluation import report as report_pages
from paligemma_jax.files import atomic, run_folder
from paligemma_jax.reports import plots, run_log, sections
from paligemma_jax.runs import early_stopping, saving
from paligemma_jax.settings import load, sweeps
from paligemma_jax.tasks import task
from paligemma_jax.wording import phrases

WORKER = f"{__package__}.sweep_worker"  # a module
JSON = "sweep.json"
LOCK = ".sweep.lock"
FAILED = "failed"  # a state
MAX_CURVES = 8  # runs in one plot, the best ones


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What has become of a run.

    Attributes:
      run: of the sweep.
      state: "done", "at step 300", "not begun" or "failed".
      rows: of its metrics.jsonl.
    """

    run: sweeps.Run
    state: str
    rows: list[dict[str, Any]]

    @property
    def step(self) -> int:
        """The last step with a row; 0 where there is none."""
        return self.rows[-1]["step"] if self.rows else 0

    def last(self, metric: str) -> float:
        """Returns the last value of a metric; nan where there is none."""
        return next((row[metric] for row in reversed(self.rows) if metric in row), math.nan)

    def best(self, metric: str) -> tuple[float, int | None]:
        """Returns the best value of a metric and its step; (nan, None) where there is none."""
        values = [(row[metric], row["step"]) for row in self.rows if metric in row]
        values = [pair for pair in values if math.isfinite(pair[0])]
        if not values:
            return math.nan, None
        return min(values, key=lambda pair: (_rank(metric, pair[0]), pair[1]))


def command(run: sweeps.Run, workdir: pathlib.Path) -> list[str]:
    """Returns the words of the command that trains one run."""
    words = [*arguments.command("train"), "--config", run.source]
    overrides = [f"--config.{text}" for text in run.overrides]
    return [*words, "--workdir", str(workdir / run.name), *overrides]


def describe_commands(
    runs: Sequence[sweeps.Run], workdir: pathlib.Path, *, source: str, overrides: Sequence[str]
) -> list[str]:
    """Returns each run's command as one line for a shell, and for xargs before it.

    xargs takes quotes away before a shell sees the line, so a run whose values need them is called
    by its number. What needs quotes there too, as blanks in `workdir`, has them.

    Args:
      runs: of the sweep, all of them.
      workdir: of all of them.
      source, overrides: what the sweep was called with: its config, and "key=value" texts.
    """
    own = ["--config", source, "--workdir", str(workdir)]
    whole = [*arguments.command("sweep"), *own]
    lines = []
    for number, run in enumerate(runs):
        alone = [*whole, "--only", str(number), *(f"--config.{text}" for text in overrides)]
        choices = [shlex.join(words) for words in (command(run, workdir), alone)]
        lines.append(next((line for line in choices if "'" not in line), choices[0]))
    return lines


def is_done(run: sweeps.Run, workdir: pathlib.Path) -> bool:
    """Returns whether a run has ended.

    Raises:
      ValueError: it has, and with other settings.
    """
    folder = workdir / run.name
    if not (folder / run_folder.FINAL).exists():
        return False
    settings = load.load(run.source, run.overrides)
    saving.check_same_settings(saving.keep_remat(settings, folder), folder)
    return True


def train(
    runs: Sequence[sweeps.Run],
    workdir: pathlib.Path,
    *,
    only: int | None = None,
    score: str | None = None,
) -> dict[str, int]:
    """Trains runs one after the other; returns the exit statuses of those that failed, by name.

    One process trains them, and keeps the programs that they share; a new one goes on after a run
    that failed. Each run has its results from its settings alone, as if it had its own process.

    The table is there from the beginning, so that the runs' own reports can lead to it, and is
    written again before each run. Other processes may train other runs of it meanwhile.

    Args:
      runs: of the sweep.
      workdir: of all of them.
      only: number of the run to train, from 0; None: all.
      score: as in `report`.

    Raises:
      process.Preempted: it was asked to stop.
    """
    assembly.check_writable(workdir, option="--workdir")
    chosen, failed = _choose(runs, only), {}
    with workers.Worker(WORKER) as worker:
        for number, run in enumerate(chosen):
            report(runs, workdir, failed=failed, score=score, begins=(run.name,))
            which = f"run {number + 1} of {len(chosen)}: {run.name}"
            if is_done(run, workdir):
                say.info(f"{which}: done before")
                continue
            say.info(f"\n{which}")
            status, was_stopped = worker.call(make_job(run, workdir))
            if was_stopped or status == process.PREEMPTED:
                raise process.Preempted(
                    f"preempted in {which}. The same command goes on from there"
                )
            if status:
                failed[run.name] = status
    return failed


def make_job(run: sweeps.Run, workdir: pathlib.Path) -> workers.Job:
    """Returns what `sweep_worker.train` reads of a run."""
    folder = str(workdir / run.name)
    return {"source": run.source, "overrides": list(run.overrides), "workdir": folder}


def _choose(runs: Sequence[sweeps.Run], only: int | None) -> Sequence[sweeps.Run]:
    """Returns the runs to train."""
    if only is None:
        return runs
    if not 0 <= only < len(runs):
        raise ValueError(f"--only {only}: the sweep has runs 0 to {len(runs) - 1}")
    return [runs[only]]


def report(
    runs: Sequence[sweeps.Run],
    workdir: pathlib.Path,
    *,
    failed: Collection[str],
    score: str | None,
    begins: Collection[str] = (),
) -> str:
    """Writes sweep.json and sweep.html of what there is of each run, and returns it as text.

    Of several processes one at a time does, and reads all runs anew for it: the last one of them
    writes the whole. That a run failed is told by the process that trained it, and is kept until
    there is more of the run.

    Args:
      runs: of the sweep.
      workdir: of all of them.
      failed: names of those that failed.
      score: to order by; None: see `choose_score`.
      begins: names of those that are begun now: if they failed before, that is over.
    """
    assembly.check_writable(workdir, option="--workdir")
    with _alone(workdir):
        outcomes = collect(runs, workdir, failed=failed, begins=begins)
        chosen = choose_score(runs, outcomes, score)
        outcomes = order(outcomes, chosen)
        write(workdir, outcomes, chosen)
    title = f"{phrases.count(len(outcomes), 'runs')} by {chosen}"
    section = sections.Section("sweep", title, (table(outcomes, chosen),))
    return sections.to_text([section], []) + "\n"


@contextlib.contextmanager
def _alone(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other processes from writing the table meanwhile, where the disk knows locks."""
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as locked:
        with contextlib.suppress(OSError, NotImplementedError):
            locked.enter_context(atomic.exclusive(workdir / LOCK))
        yield


def collect(
    runs: Sequence[sweeps.Run],
    workdir: pathlib.Path,
    *,
    failed: Collection[str],
    begins: Collection[str] = (),
) -> list[Outcome]:
    """Reads what there is of each run. `failed`, `begins`: as in `report`."""
    failures = {name: step for name, step in _failures(workdir).items() if name not in begins}
    outcomes = [_read(run, workdir / run.name) for run in runs]
    return [
        dataclasses.replace(one, state=FAILED)
        if one.run.name in failed
        or (one.state != "done" and failures.get(one.run.name) == one.step)
        else one
        for one in outcomes
    ]


def _failures(workdir: pathlib.Path) -> dict[str, int]:
    """Returns the runs that the table says failed, with their last steps."""
    try:
        rows = json.loads((workdir / JSON).read_text())["runs"]
        return {row["name"]: row["step"] for row in rows if row["state"] == FAILED}
    except (OSError, ValueError, LookupError, TypeError):  # none, or one of before
        return {}


def _read(run: sweeps.Run, folder: pathlib.Path) -> Outcome:
    path = folder / run_folder.METRICS
    rows = run_log.read_rows(path) if path.exists() else []
    if (folder / run_folder.FINAL).exists():
        return Outcome(run, "done", rows)
    return Outcome(run, f"at step {rows[-1]['step']}" if rows else "not begun", rows)


def choose_score(runs: Sequence[sweeps.Run], outcomes: Sequence[Outcome], asked: str | None) -> str:
    """Returns what runs are ordered by: EVALUATION/SCORE, or "loss" where nothing is evaluated.

    It is what was asked for, else keep_best or stop_at of the first run, else the score of its
    first evaluation that is read first.

    Raises:
      ValueError: no evaluation of that name.
    """
    settings = load.load(runs[0].source, runs[0].overrides)
    if asked:
        early_stopping.check(asked, list(settings.evals), key="--score")
        return asked
    if settings.keep_best:
        return settings.keep_best
    if settings.stop_at:
        return settings.stop_at[0][0]
    known = {name for outcome in outcomes for row in outcome.rows for name in row}
    scores = [score for score in task.first_scores() if score != "loss"]
    names = [
        f"{evaluation}/{score}" for evaluation in settings.evals for score in [*scores, "loss"]
    ]
    return next((name for name in names if name in known), "loss")


def order(outcomes: Sequence[Outcome], score: str) -> list[Outcome]:
    """Returns the outcomes, the best last value of the score first, those without it at the end.

    Of equal ones that of the lower training loss goes first.
    """

    def rank(outcome: Outcome) -> tuple[float, float]:
        return _rank(score, outcome.last(score)), _rank("loss", outcome.last("loss"))

    return sorted(outcomes, key=rank)


def _rank(metric: str, value: float) -> float:
    if math.isnan(value):
        return math.inf
    return value if _is_loss(metric) else -value


def _is_loss(metric: str) -> bool:
    return metric == "loss" or train_checkpoint.best_is(metric) == "min"


def table(
    outcomes: Sequence[Outcome], score: str, workdir: pathlib.Path | None = None
) -> sections.Table:
    """Returns a row per run: what sets it apart, its state, the score's last and best value.

    `workdir`: of all runs, for links from it to their reports; None: without links.
    """
    keys = list(dict.fromkeys(key for outcome in outcomes for key in outcome.run.values))
    losses = [] if score == "loss" else ["loss"]
    header = (*keys, "state", score, "best", "at step", *losses)
    rows = []
    for outcome in outcomes:
        best, step = outcome.best(score)
        numbers = [outcome.last(score), best, step, *map(outcome.last, losses)]
        values = [str(outcome.run.values.get(key, "")) for key in keys]
        rows.append((*values, outcome.state, *map(_show, numbers)))
    links = tuple(_report_of(workdir, each.run) for each in outcomes) if workdir else ()
    return sections.Table("", header, tuple(rows), num_shown=len(rows), links=links)


def _report_of(workdir: pathlib.Path, run: sweeps.Run) -> str:
    """Returns the address of a run's first report, "" while it has none."""
    pages = sorted((workdir / run.name).glob("report*.html"))
    return report_pages.address(pages[0], workdir) if pages else ""


def _show(number: float | None) -> str:
    if number is None or math.isnan(number):
        return "-"
    return str(number) if isinstance(number, int) else f"{number:.4g}"


def write(workdir: pathlib.Path, outcomes: Sequence[Outcome], score: str) -> None:
    """Writes sweep.json and sweep.html: the table, and curves of the score and of the loss."""
    runs = [_to_json(outcome, workdir, score) for outcome in outcomes]
    atomic.write_json(workdir / JSON, {"score": score, "runs": runs})
    curves = []
    for metric in dict.fromkeys((score, "loss")):
        rows = [
            {"step": row["step"], outcome.run.name: row[metric]}
            for outcome in outcomes[:MAX_CURVES]
            for row in outcome.rows
            if metric in row
        ]
        if rows:
            names = [outcome.run.name for outcome in outcomes[:MAX_CURVES]]
            title = f"{metric} (training)" if "/" not in metric else metric
            curves.append(plots.curves(rows, names, title=title))
    title = f"{workdir}: {len(outcomes)} runs by {score}"
    parts = [sections.Section("runs", "", (table(outcomes, score, workdir),))]
    parts += [sections.Section("curves", "Curves", tuple(curves))] if curves else []
    atomic.write_text(workdir / run_folder.SWEEP, sections.to_html(title, parts))


def _to_json(outcome: Outcome, workdir: pathlib.Path, score: str) -> dict[str, Any]:
    best, step = outcome.best(score)
    return {
        "name": outcome.run.name,
        "folder": str(workdir / outcome.run.name),
        "values": outcome.run.values,
        "state": outcome.state,
        "step": outcome.step,
        "last": outcome.last(score),
        "best": best,
        "best_step": step,
        "loss": outcome.last("loss"),
    }
