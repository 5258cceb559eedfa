"""Evaluate weights on a data set: predictions.jsonl, metrics.json and report.html.

The scores that are read first are printed too, as JSON. The files lie in evaluation-NAME of the
run; NAME is that of the data's file (test.jsonl: test), or --name. Without --data it is the
validation set of the run: evals.valid or evals.val of its settings, else their first.

    python -m paligemma_jax.evaluate --run runs/fracture
    python -m paligemma_jax.evaluate --run runs/fracture --data test.jsonl
    python -m paligemma_jax.evaluate --config configs/fracture_224.py --data test.jsonl
    python -m paligemma_jax.evaluate --run runs/fracture --data test.jsonl --against base

--run takes a run's own settings, tokenizer and final.npz, or another state of it: --checkpoint best
(by its keep_best), last, or a step. --config takes a config file; its weights are --weights, else
its model_init ("--weights none": random ones). --weights alone is a released model as it is, as
mix_448 or tiny_base. --against scores a second model on the same data, and writes comparison.html:
scores, examples that got better and worse, both answers beside the truth. Settings can be changed,
--config.compute_dtype=bfloat16, and how answers are made: --eval.sampler=beam --eval.beam_size=3
--eval.batch_size=32 --eval.constrain=task (docs/configs.md lists all as evals.NAME.*).
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence

from paligemma_jax.console import arguments, say
from paligemma_jax.evaluation import evaluating
from paligemma_jax.files import run_folder
from paligemma_jax.settings import schema


def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = parse_args(argv)
    if args.distributed:
        arguments.join_processes()
    with (
        run_folder.opened(args.run, checkpoints=args.checkpoint is not None) as run,
        run_folder.writing_to(args.out) as out,
    ):
        options = _options(args, overrides, run, out)
        if args.against:
            _, compared = evaluating.evaluate_against(options, args.against)
            with say.results():
                sys.stdout.write(json.dumps(dataclasses.asdict(compared)) + "\n")
            return
        scores = evaluating.evaluate(options)
    if scores is not None:
        with say.results():
            sys.stdout.write(json.dumps(scores) + "\n")


def _options(
    args: argparse.Namespace, overrides: dict[str, list[str]], run: str | None, out: str | None
) -> evaluating.EvaluateOptions:
    return evaluating.EvaluateOptions(
        data=args.data,
        run=run,
        config=args.config,
        weights=args.weights,
        checkpoint=args.checkpoint,
        base=args.base,
        name=args.name,
        out=out,
        config_overrides=overrides["config"],
        eval_overrides=overrides["eval"],
    )


def parse_args(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    parser = arguments.parser(__doc__)
    arguments.add_source(parser)
    parser.add_argument(
        "--data",
        metavar="FILE",
        help=f"a JSONL file with answers, or '{schema.INPUT}': what the settings train on; "
        "default: the validation set of the settings",
    )
    parser.add_argument("--out", metavar="FOLDER", help="default: evaluation-NAME in the run")
    parser.add_argument(
        "--against",
        metavar="WHAT",
        help="compare with 'base' (what it was trained from), another run, or weights",
    )
    parser.add_argument("--name", help="of this evaluation; default: as the file of --data")
    arguments.add_processes(parser)
    return arguments.parse(
        parser, argv, groups={"config": schema.names(), "eval": schema.eval_names()}
    )


if __name__ == "__main__":
    arguments.run(main)
