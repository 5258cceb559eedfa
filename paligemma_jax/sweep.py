"""Train many settings of one config, and compare them in one table.

    python -m paligemma_jax.sweep --config configs/digits.py --workdir runs/sweep
    python -m paligemma_jax.sweep --config configs/digits.py --workdir runs/sweep --table

The config file says which settings, in a function beside get_config:

    def sweep(add):
        for lr in (3e-4, 1e-3, 3e-3):
            add(lr=lr)

Each is a run of its own in WORKDIR/lr=0.001 and so on, one after the other, as `train` would have
it. WORKDIR/sweep.html and sweep.json hold the table. Given again, the command goes on: runs that
ended are not begun again. A run that fails does not keep the others from running.

For several machines or a cluster's queue: --commands prints a line for each run, for xargs -P or
parallel; --only N trains the N-th alone, from 0, as the number of a Slurm array's task.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from paligemma_jax.assembly import assembly
from paligemma_jax.console import arguments, say, signals
from paligemma_jax.reports import sections
from paligemma_jax.runs import sweep_runs
from paligemma_jax.settings import schema, sweeps
from paligemma_jax.wording import quantities


def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = parse_args(argv)
    workdir = pathlib.Path(args.workdir)
    runs = sweeps.read(args.config, overrides["config"])
    if args.commands:
        lines = [sweep_runs.describe_command(run, workdir) for run in runs]
        sys.stdout.write("\n".join(lines) + "\n")
        return
    assembly.check_writable(workdir, option="--workdir")
    failed = {} if args.table else train(choose(runs, args.only), workdir)
    outcomes = sweep_runs.collect(runs, workdir, failed=failed)
    score = sweep_runs.choose_score(runs, outcomes, args.score)
    outcomes = sweep_runs.order(outcomes, score)
    sweep_runs.write(workdir, outcomes, score)
    sys.stdout.write(sections.to_text([compare(outcomes, score)], []) + "\n")
    say.info(f"curves: {workdir / sweep_runs.PAGE}")
    if failed:
        raise ValueError(
            f"{len(failed)} of {quantities.count(len(runs), 'runs')} failed, as said above: "
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


def choose(runs: Sequence[sweeps.Run], only: int | None) -> Sequence[sweeps.Run]:
    """Returns the runs to train."""
    if only is None:
        return runs
    if not 0 <= only < len(runs):
        raise ValueError(f"--only {only}: the sweep has runs 0 to {len(runs) - 1}")
    return [runs[only]]


def train(runs: Sequence[sweeps.Run], workdir: pathlib.Path) -> dict[str, int]:
    """Trains runs one after the other; returns the exit statuses of those that failed, by name.

    Raises:
      signals.Preempted: it was asked to stop.
    """
    failed = {}
    for number, run in enumerate(runs):
        which = f"run {number + 1} of {len(runs)}: {run.name}"
        if sweep_runs.is_done(run, workdir):
            say.info(f"{which}: done before")
            continue
        say.info(f"\n{which}")
        status, was_stopped = signals.call(sweep_runs.command(run, workdir))
        if was_stopped or status == signals.PREEMPTED:
            raise signals.Preempted(f"preempted in {which}. The same command goes on from there")
        if status:
            failed[run.name] = status
    return failed


def compare(outcomes: Sequence[sweep_runs.Outcome], score: str) -> sections.Section:
    """Returns the table of all runs, the best one first."""
    title = f"{quantities.count(len(outcomes), 'runs')} by {score}"
    return sections.Section("sweep", title, (sweep_runs.table(outcomes, score),))


if __name__ == "__main__":
    arguments.run(main)
