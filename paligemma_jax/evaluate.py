"""Evaluate weights on a data set: predictions.jsonl, metrics.json and report.html.

The scores that are read first are printed too, as JSON. The files lie in evaluation-NAME of the
run; NAME is that of the data's file (test.jsonl: test), or --name.

    python -m paligemma_jax.evaluate --run runs/fracture --data test.jsonl
    python -m paligemma_jax.evaluate --config configs/fracture_224.py --data test.jsonl

--run takes a run's own settings, tokenizer and final.npz, or another state of it: --checkpoint best
(by its keep_best), last, or a step. --config takes a config file; its weights are --weights, else
its model_init ("--weights none": random ones). Settings can be changed:
--config.compute_dtype=bfloat16; and how answers are made: --eval.sampler=beam --eval.beam_size=3
--eval.batch_size=32 --eval.constrain=task (configs/README.md lists all as evals.NAME.*).
"""

import argparse
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Sequence

import jax

from paligemma_jax.assembly import assembly
from paligemma_jax.console import arguments, say
from paligemma_jax.evaluation import evaluator
from paligemma_jax.files import run_folder
from paligemma_jax.settings import load, schema
from paligemma_jax.tasks import score_docs, task
from paligemma_jax.wording import quantities


def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = parse_args(argv)
    if args.distributed:
        arguments.join_processes()
    settings, source = assembly.open_run(args.run, args.config, overrides["config"])
    source = assembly.choose_weights(args.weights, source, chosen=args.checkpoint)
    name = args.name or name_of(args.data)
    settings = load.with_evaluation(settings, name, args.data, overrides["eval"])
    out = pathlib.Path(args.out or pathlib.Path(args.run or "runs") / run_folder.evaluation(name))
    assembly.check_writable(out, option="--out")
    check_same_data(out, args.data)
    run = pathlib.Path(args.run) if args.run else None
    built = assembly.assemble(settings)
    scores = evaluate(built, source, base=args.base, name=name, out=out, run=run)
    if jax.process_index() == 0:
        sys.stdout.write(json.dumps(score_docs.choose_first(scores)) + "\n")


def parse_args(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    parser = arguments.parser(__doc__)
    arguments.add_source(parser)
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help=f"a JSONL file with answers, or '{schema.INPUT}': what the settings train on",
    )
    parser.add_argument("--out", metavar="FOLDER", help="default: evaluation-NAME in the run")
    parser.add_argument("--name", help="of this evaluation; default: as the file of --data")
    arguments.add_processes(parser)
    return arguments.parse(
        parser, argv, groups={"config": schema.names(), "eval": schema.eval_names()}
    )


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


def evaluate(
    built: assembly.Assembly,
    source: str | None,
    *,
    base: str | None,
    name: str,
    out: pathlib.Path,
    run: pathlib.Path | None = None,
) -> dict[str, float]:
    """Evaluates the weights of `source` and returns the scores that are numbers.

    Args:
      built: from `assembly.assemble`, with the evaluation `name` in its settings.
      source: weights; None: random ones.
      base: of weights that are trained arrays only, if it is not where it was.
      name: of the evaluation.
      out: folder for predictions, scores and report.
      run: the training run whose curves the report shows.
    """
    start = time.monotonic()
    one = evaluator.make(built, name)
    stored = assembly.find_weights(built.settings, source, base)
    params = assembly.load_weights(built, stored)
    say.info(f"weights: {source or 'random'}, {assembly.parameter_counts(params)}")
    rows, scores = evaluator.run(built, one, params)
    summary = {"weights": source or "random", "data": one.settings.fname, **scores}
    evaluator.write_report(out, rows, summary, title=str(out), run=run)
    say.info(
        f"{quantities.count(len(one.records), 'examples')} in {time.monotonic() - start:.0f} s: "
        f"all scores in {out / run_folder.scores()}, each example in {out / run_folder.report()}"
    )
    return task.scalars(scores)


if __name__ == "__main__":
    arguments.run(main)
