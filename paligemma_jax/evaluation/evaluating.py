"""What the evaluate door does: weights scored on a data set, into a folder of their own."""

import dataclasses
import itertools
import json
import os
import pathlib
import re
import time
from collections.abc import Sequence

import jax

from paligemma_jax.assembly import assembly, datasets, training_data
from paligemma_jax.console import process, say
from paligemma_jax.data import jsonl
from paligemma_jax.evaluation import comparison, evaluator, report
from paligemma_jax.files import run_folder
from paligemma_jax.settings import load, schema
from paligemma_jax.tasks import task
from paligemma_jax.wording import phrases

BASE, AGAINST = "base", "against"
NUM_READ = 1000  # rows that tell what answers are
VALIDATION = ("valid", "val", "validation")  # what evaluations on validation sets are called


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate, on what, and where the results go.

    Attributes:
      data: path of a JSONL file with answers, or "input": what the settings train on; None: what
        they evaluate on while they train.
      run, config: a run's folder or a config file; one of the two, or neither.
      weights: instead of those of `run` or `config`; "none": random ones. Alone: of a released
        model as it is, or of a run.
      checkpoint: of the run: "best", "last" or a step; None: its final.npz.
      base: of weights that are trained arrays only, if it is not where it was.
      name: of the evaluation; None: that of the data's file, or that which it has in training.
      out: folder of the results; None: evaluation-NAME in the run.
      config_overrides, eval_overrides: "key=value", of the settings and of `evals.NAME`.
    """

    data: str | None = None
    run: str | None = None
    config: str | None = None
    weights: str | None = None
    checkpoint: str | None = None
    base: str | None = None
    name: str | None = None
    out: str | None = None
    config_overrides: Sequence[str] = ()
    eval_overrides: Sequence[str] = ()


def evaluate(options: EvaluateOptions) -> dict[str, float] | None:
    """Does `evaluate_into`, and returns the scores that are read first.

    Of several processes the first one returns them, the others None.
    """
    _, scores = evaluate_into(options)
    return task.choose_first_scores(scores) if jax.process_index() == 0 else None


def evaluate_into(options: EvaluateOptions) -> tuple[pathlib.Path, dict[str, float]]:
    """Writes predictions, scores and report; returns their folder and all scores.

    Raises:
      ValueError: options that contradict each other, weights or data that do not fit, or a folder
        that holds the scores of something else.
    """
    trained, source = assembly.open_run(
        options.run, options.config, _overrides(options), weights_alone=options.weights
    )
    source = assembly.choose_weights(options.weights, source, chosen=options.checkpoint)
    name, settings = choose_data(trained, options)
    data = settings.evals[name].fname
    run = pathlib.Path(options.run) if options.run else None
    out = pathlib.Path(options.out or (run or pathlib.Path("runs")) / run_folder.evaluation(name))
    places = {"--out": os.path.abspath(out), "weights": source, "--base": options.base}
    process.require_same(
        "settings, folder, code or packages",
        lambda: {**json.loads(load.to_json(settings)), **places, "versions": process.versions()},
    )
    assembly.check_writable(out, option="--out")
    check_same_data(out, data)
    built = assembly.assemble(settings, weights_of=source)
    scores = evaluate_weights(
        built, source, base=options.base, name=name, out=out, run=run, trained=trained
    )
    return out, scores


def _overrides(options: EvaluateOptions) -> list[str]:
    """Returns what is asked of the settings; of weights alone, data tell which task it is."""
    overrides = list(options.config_overrides)
    if options.run or options.config or not options.data:
        return overrides
    parsed = (jsonl.parse_line(line)[0] for _, line in jsonl.read_lines(options.data))
    rows = [row for row in itertools.islice(parsed, NUM_READ) if row is not None]
    texts = [[str(row.get(key) or "") for row in rows] for key in ("prefix", "suffix")]
    return [f"task={task.likely(*texts)}", *overrides]


def evaluate_against(
    options: EvaluateOptions, against: str
) -> tuple[pathlib.Path, comparison.Comparison]:
    """Does `evaluate_into`, does it for another model, and writes how the two compare.

    Args:
      options: of what is looked at.
      against: "base", what a run or a config started from; or a run, or weights of a released
        model. Its evaluation lies in the folder "against" of the first one.

    Returns:
      (folder of the first evaluation with the page, the comparison).

    Raises:
      ValueError: as of `evaluate_into`; or a run from nothing has no base.
    """
    other = _options_of_other(options, against)  # what is wrong with it is said first
    out, _ = evaluate_into(options)
    data = json.loads((out / run_folder.scores()).read_text())["data"]
    beside = out / AGAINST
    other = dataclasses.replace(other, data=data, name=AGAINST, out=str(beside))
    evaluate_into(other)
    own = pathlib.Path(options.run or options.config or options.weights or "").name
    before = comparison.Side(pathlib.Path(against).name, beside)
    made = comparison.write(before, comparison.Side(own, out), out)
    comparison.link(out)
    comparison.say_result(made, out)
    return out, made


def _options_of_other(options: EvaluateOptions, against: str) -> EvaluateOptions:
    if against != BASE:
        is_run = (pathlib.Path(against) / run_folder.CONFIG).exists()
        source = {"run": against} if is_run else {"weights": against}
        alone = {"run": None, "config": None, "weights": None, "checkpoint": None, "base": None}
        return dataclasses.replace(options, **{**alone, **source})
    trained, _ = assembly.open_run(options.run, options.config, list(options.config_overrides))
    if trained.model_init is None:
        raise ValueError(
            f"--against {BASE}: {options.run or options.config} starts from random weights, and "
            f"has no base. Name another run, or weights"
        )
    overrides = list(options.config_overrides)
    overrides += ["lora.targets=None"] if trained.lora.targets else []
    return dataclasses.replace(
        options,
        weights=trained.model_init,
        checkpoint=None,
        base=trained.model_init_base,
        config_overrides=overrides,
    )


def choose_data(trained: schema.Settings, options: EvaluateOptions) -> tuple[str, schema.Settings]:
    """Returns (name, settings with that evaluation alone), on the data that the options name.

    Where they name none it is the validation set of the settings: the evaluation called valid or
    val, else the first one, answered as in training.

    Raises:
      ValueError: neither names data, or an override of something that an evaluation has not.
    """
    overrides = list(options.eval_overrides)
    if options.data is not None:
        name = options.name or name_of(options.data)
        return name, load.with_evaluation(trained, name, options.data, overrides)
    if not trained.evals:
        raise ValueError("--data is missing, and the settings have no evals to take it from")
    usual = next((name for name in VALIDATION if name in trained.evals), next(iter(trained.evals)))
    chosen, name = trained.evals[usual], options.name or usual
    only = schema.replace(trained, {"evals": {name: chosen}})
    say.info(f"data: {chosen.fname}, evals.{usual} of the settings (--data names another)")
    return name, load.change(only, [f"evals.{name}.{text}" for text in overrides])


def name_of(data: str) -> str:
    """Returns the name of an evaluation on a file: its own, in letters that names of files have.

    Roboflow's "_annotations.test.jsonl" is "test".
    """
    stem = pathlib.Path(data).name.removesuffix(".jsonl").removeprefix("_annotations.")
    return re.sub(r"[^\w-]+", "-", stem).strip("-") or "data"


def check_same_data(out: pathlib.Path, data: str) -> None:
    """Raises a ValueError if the folder has scores on other data; says what is replaced."""
    try:
        before = json.loads((out / run_folder.scores()).read_text())
    except (OSError, ValueError):
        return
    if "data" not in before:
        raise ValueError(f"{out} holds the scores of a training run: choose another --out")
    if os.path.abspath(before["data"]) != os.path.abspath(data):
        raise ValueError(
            f"{out} holds the evaluation on {before['data']}, this one is on {data}: give it "
            f"another --name, or another --out"
        )
    say.warning(f"{out}: replaces the evaluation of {before['weights']} on {before['data']}")


def evaluate_weights(
    built: assembly.Assembly,
    source: str | None,
    *,
    base: str | None,
    name: str,
    out: pathlib.Path,
    run: pathlib.Path | None = None,
    trained: schema.Settings | None = None,
) -> dict[str, float]:
    """Evaluates the weights of `source` and returns the scores that are numbers.

    Args:
      built: from `assembly.assemble`, with the evaluation `name` in its settings.
      source: weights; None: random ones.
      base: of weights that are trained arrays only, if it is not where it was.
      name: of the evaluation.
      out: folder for predictions, scores and report.
      run: the training run whose curves the report shows.
      trained: its settings, all of its evaluations among them.
    """
    start, settings = time.monotonic(), built.settings
    one = evaluator.make(built, name)
    stored = assembly.find_weights(settings, source, base)
    fingerprint = stored.fingerprint if stored else ""
    process.require_same(
        "data or weights",
        lambda: {**datasets.digest(one.records, built.tokenizer), "fingerprint": fingerprint},
    )
    params = assembly.load_weights(built, stored)
    say.info(f"weights: {source or 'random'}, {assembly.parameter_counts(params)}")
    rows, scores = evaluator.run(built, one, params)
    summary = {"weights": source or "random", "data": settings.evals[name].fname, **scores}
    seconds = time.monotonic() - start
    report.write(
        out,
        rows,
        summary,
        subject=report.Subject(
            title=f"{run.name}: {name}" if run else name,
            name=name,
            data=settings.evals[name].fname,
            num_examples=len(one.records),
            weights=source or "random",
            seconds={"evaluation": seconds},
            settings=trained or settings,
            classes=training_data.read_asked(run).classes if run else (),
        ),
        run=run,
    )
    if run and out.resolve().is_relative_to(run.resolve()):
        report.link_from_others(out / run_folder.report(), run, name)
    numbers = task.scalars(scores)
    if jax.process_index() == 0 and (table := report.score_table(name, numbers)):
        say.info(f"\n{table}\n")
    say.info(
        f"{phrases.count(len(one.records), 'examples')} in {phrases.duration(seconds)}: "
        f"all scores in {out / run_folder.scores()}, each example in {out / run_folder.report()}"
    )
    return numbers
