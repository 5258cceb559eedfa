"""Train many settings of one config, and compare them in one table.

    python -m paligemma_jax.sweep --config configs/digits.py --workdir runs/sweep
    python -m paligemma_jax.sweep --config configs/digits.py --workdir runs/sweep --table

The config file says which settings, in a function beside get_config:

    def sweep(add):
        for lr in (3e-4, 1e-3, 3e-3):
            add(lr=lr)

Each is a run of its own in WORKDIR/lr=0.001 and so on, one after the other, as `train` would have
it. One process trains them, so that they share what is compiled. WORKDIR/sweep.html and sweep.json
hold the table. Given again, the command goes on: runs that ended are not begun again. A run that
fails does not keep the others from running.

For several machines or a cluster's queue: --commands prints a line for each run, for xargs -P or
parallel; --only N trains the N-th alone, from 0, as the number of a Slurm array's task.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from paligemma_jax.console import arguments, say
from paligemma_jax.files import run_folder
from paligemma_jax.runs import sweep_runs
from paligemma_jax.settings import schema, sweeps
from paligemma_jax.wording import phrases


def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = parse_args(argv)
    workdir = pathlib.Path(args.workdir)
    runs = sweeps.read(args.config, overrides["config"])
    if args.commands:
        own = {"source": args.config, "overrides": overrides["config"]}
        lines = sweep_runs.describe_commands(runs, workdir, **own)
        with say.results():
            sys.stdout.write("\n".join(lines) + "\n")
        return
    failed = {}
    if not args.table:
        failed = sweep_runs.train(runs, workdir, only=args.only, score=args.score)
    text = sweep_runs.report(runs, workdir, failed=failed, score=args.score)
    with say.results():
        sys.stdout.write(text)
    say.info(f"curves: {workdir / run_folder.SWEEP}")
    if failed:
        raise ValueError(
            f"{len(failed)} of {phrases.count(len(runs), 'runs')} failed, as said above: "
            f"{'; '.join(failed)}"
        )


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    parser = arguments.parser(__doc__)
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="with sweep(add)")
    parser.add_argument("--workdir", required=True, metavar="FOLDER", help="of all the runs")
    parser.add_argument(
        "--score", help="EVALUATION/SCORE to order by; default: keep_best, stop_at or the first one"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--only", type=int, metavar="N", help="train the N-th run alone, from 0")
    what.add_argument("--table", action="store_true", help="train nothing, compare what there is")
    what.add_argument("--commands", action="store_true", help="print each run's command alone")
    return arguments.parse(parser, argv, groups={"config": schema.names()})


if __name__ == "__main__":
    arguments.run(main)
