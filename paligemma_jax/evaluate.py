"""Evaluate weights on a data set: predictions.jsonl, metrics.json and report.html.

The scores that are read first are printed too, as JSON.

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
import pathlib
import sys
import time
from collections.abc import Sequence

from paligemma_jax.build import assembly, evaluation
from paligemma_jax.build.process import command_line, terminal
from paligemma_jax.config import eval_keys
from paligemma_jax.tasks import score_docs, task


def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = parse_args(argv)
    config, source = assembly.open_run(args.run, args.config, overrides["config"])
    source = assembly.choose_weights(args.weights, source, chosen=args.checkpoint)
    assembly.set_evaluation(config, args.name, args.data, overrides["eval"])
    out = pathlib.Path(args.out or pathlib.Path(args.run or "runs") / f"evaluation-{args.name}")
    assembly.check_writable(out, option="--out")
    run = pathlib.Path(args.run) if args.run else None
    built = assembly.assemble(config)
    scores = evaluate(built, source, base=args.base, name=args.name, out=out, run=run)
    sys.stdout.write(json.dumps(score_docs.choose_first(scores)) + "\n")


def parse_args(
    argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    parser = command_line.parser(__doc__)
    command_line.add_source(parser)
    parser.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help=f"a JSONL file with answers, or '{eval_keys.INPUT}': what the settings train on",
    )
    parser.add_argument("--out", metavar="FOLDER", help="default: evaluation-NAME in the run")
    parser.add_argument("--name", default="test", help="of this evaluation")
    return command_line.parse(parser, argv, groups=["config", "eval"])


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
    one = evaluation.make(built, name)
    stored = assembly.find_weights(built.config, source, base)
    params = assembly.load_weights(built, stored)
    terminal.say(f"weights: {source or 'random'}, {assembly.parameter_counts(params)}")
    rows, scores = evaluation.run(built, one, params)
    summary = {"weights": source or "random", "data": one.settings["fname"], **scores}
    evaluation.write_report(out, rows, summary, title=str(out), run=run)
    terminal.say(
        f"{terminal.count(len(one.records), 'examples')} in {time.monotonic() - start:.0f} s: "
        f"all scores in {out / 'metrics.json'}, each example in {out / 'report.html'}"
    )
    return task.scalars(scores)


if __name__ == "__main__":
    command_line.run(main)
