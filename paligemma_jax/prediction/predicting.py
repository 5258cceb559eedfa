"""What the predict door does: questions in; a line for each answer, and pictures, out."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from paligemma_jax.assembly import assembly, training_data
from paligemma_jax.console import say
from paligemma_jax.prediction import annotated, predictor, queries
from paligemma_jax.settings import load
from paligemma_jax.tasks import task
from paligemma_jax.wording import phrases

NOT_DECODING = ("fname", "image_dir", "num_examples", "decode", "scores")
BATCH_SIZE = 8
NAME = "predict"  # of the evaluation whose keys say how to answer


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """What to ask, whom, and how the answers are written.

    Attributes:
      images: files, folders, globs or addresses of images and videos, and JSONL files.
      prompt: the same for all; None: each row of a JSONL has its own, and images are asked what
        the run was trained to be asked.
      run, config: a run's folder or a config file; one of the two, or neither.
      weights: instead of those of `run` or `config`; "none": random ones. Alone: of a released
        model, which is asked as it is, or of a run.
      checkpoint: of the run: "best", "last" or a step; None: its final.npz.
      base: of weights that are trained arrays only, if it is not where it was.
      pictures: folder for annotated pictures; None: none are drawn.
      every: of a video every so many frames; None: one a second.
      frames: whether annotated frames are PNG files, not videos.
      together: whether all images belong to one question.
      as_json: whether a line is JSON, or what a person reads.
      config_overrides, eval_overrides: "key=value", of the settings and of how answers are made.
    """

    images: Sequence[str]
    prompt: str | None = None
    run: str | None = None
    config: str | None = None
    weights: str | None = None
    checkpoint: str | None = None
    base: str | None = None
    pictures: str | None = None
    every: int | None = None
    frames: bool = False
    together: bool = False
    as_json: bool = True
    config_overrides: Sequence[str] = ()
    eval_overrides: Sequence[str] = ()


def predict(options: PredictOptions) -> int:
    """Writes all answers to standard output as they come; returns how many failed.

    Raises:
      ValueError: options that contradict each other, or weights that do not fit.
    """
    overrides = list(options.config_overrides)
    if options.run is None and options.config is None and options.prompt:
        # Of weights alone: what is asked for tells how answers are read.
        overrides = [f"task={task.likely([options.prompt], [])}", *overrides]
    settings, source = assembly.open_run(
        options.run, options.config, overrides, weights_alone=options.weights
    )
    source = assembly.choose_weights(options.weights, source, chosen=options.checkpoint)
    check_decoding(options.eval_overrides)
    settings = load.with_evaluation(settings, NAME, "(command line)", list(options.eval_overrides))
    decoding = settings.evals[NAME]
    if options.pictures:
        assembly.check_writable(pathlib.Path(options.pictures), option="--pictures")
    asked = training_data.NOTHING_ASKED
    if options.run:
        asked = training_data.read_asked(pathlib.Path(options.run))
    chosen, rates = queries.find(
        options.images,
        settings,
        prompt=options.prompt,
        usual_prompt=asked.prompt,
        every=options.every,
        together=options.together,
    )
    most = max(query.num_images for query in chosen)
    if most > settings.input.max_images:
        say.warning(f"{most} images at once: in training there were {settings.input.max_images}")
    opened = predictor.open_predictor(
        assembly.assemble(settings, weights_of=source),
        source,
        decoding,
        base=options.base,
        batch_size=decoding.batch_size or min(BATCH_SIZE, len(chosen)),
        prompts=[query.record.prefix for query in chosen],
        asked=asked,
    )
    num_failed = _answer_and_draw(opened, chosen, {} if options.frames else rates, options)
    if num_failed:
        say.error(f"{num_failed} of {len(chosen)} could not be read, or not drawn")
    return num_failed


def check_decoding(overrides: Sequence[str]) -> None:
    """Raises a ValueError for keys of evaluations that say nothing about how to answer."""
    for override in overrides:
        key = override.partition("=")[0]
        if key in NOT_DECODING or key.startswith("log_"):
            raise ValueError(f"--eval.{key} has no effect on predictions; it is for evaluations")


def _answer_and_draw(
    opened: predictor.Predictor,
    chosen: Sequence[queries.Query],
    rates: Mapping[str, float],
    options: PredictOptions,
) -> int:
    """Does `answer`, with pictures if they are wanted; videos of `rates` become videos."""
    with contextlib.ExitStack() as stack:
        drawn = None
        if options.pictures:
            asked = opened.asked
            if not asked.classes:
                records = [query.record for query in chosen]
                asked = training_data.find_asked(opened.settings.task, records)
            folder = pathlib.Path(options.pictures)
            drawn = annotated.Annotator(folder, chosen, rates, classes=asked.classes)
            stack.enter_context(drawn)
        num_failed = answer(opened, chosen, drawn, as_json=options.as_json)
    if drawn:
        say.info(f"pictures: {phrases.count(drawn.num_files, 'files')} in {options.pictures}")
    return num_failed


def answer(
    opened: predictor.Predictor,
    chosen: Sequence[queries.Query],
    drawn: annotated.Annotator | None,
    *,
    as_json: bool,
) -> int:
    """Writes all answers as they come, and returns how many could not be made, or not drawn."""
    num_failed = 0
    with say.progress("answering", unit="examples", first="compiling") as report:
        for row in opened.iterate(chosen, progress=report):
            say.result(json.dumps(row, ensure_ascii=False) if as_json else f"{describe(row)}\n")
            if "error" in row:
                num_failed += 1
                if as_json:
                    say.warning(f"{row['source']}: {row['error']}")
            if drawn:
                try:
                    drawn.add(row)
                except ValueError as error:
                    num_failed += 1
                    say.warning(str(error))
    return num_failed


def describe(row: Mapping[str, Any]) -> str:
    """Returns a row as a person reads it: the answer, its boxes, and how sure it is."""
    if "error" in row:
        return f"{row['source']}\n  error: {row['error']}"
    lines = [row["source"], f"  {row['prediction'] or '(empty)'}"]
    if detections := row.get("detections"):
        table = [
            (one["label"], f"{one['score']:.2f}", *(f"{side:.3f}" for side in one["box_yxyx"]))
            for one in detections
        ]
        text = say.table(table, header=("label", "score", "top", "left", "bottom", "right"))
        lines += ["", *(f"  {line}" for line in text.splitlines()), ""]
    facts = [f"logp {row['logp']:.2f}", phrases.count(row["tokens"], "tokens")]
    if not row["stopped"]:
        facts[-1] += ", cut off there: --eval.max_new_tokens gives more room"
    facts += [f"left out: {n} {reason}" for reason, n in (row.get("dropped") or {}).items()]
    return "\n".join([*lines, f"  ({'; '.join(facts)})"])
