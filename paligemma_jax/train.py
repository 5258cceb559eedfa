"""Fine-tune: a config in, a run's folder out.

    python -m paligemma_jax.train --config configs/fracture_224.py --workdir runs/fracture

Any config key may be set on the command line: --config.lr=0.03 --config.input.batch_size=4. The
run's folder gets config.json, metrics.jsonl (and TensorBoard events), predictions, metrics.json and
report.html of each evaluation, checkpoints, and final.npz.

A run that stopped, however it did, goes on when the same command is given again, and ends with the
numbers that it would have had. SIGTERM and SIGINT (Ctrl-C) end it after the running step with its
state saved and exit status 75; a second signal ends it at once.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from paligemma_jax.build import assembly, embedding_cache, optimizer, training_data
from paligemma_jax.build.process import command_line, compilation, signals, terminal
from paligemma_jax.build.runs import (
    fitting,
    planning,
    profiling,
    run_folder,
    run_state,
    training,
    training_log,
)
from paligemma_jax.config import settings

PROFILE = "profile"


def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = parse_args(argv)
    if args.distributed:
        command_line.join_processes()
    config = settings.load(args.config, overrides["config"])
    train(config, pathlib.Path(args.workdir), resume_anyway=args.resume_anyway)


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    parser = command_line.parser(__doc__)
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a Python file")
    parser.add_argument("--workdir", required=True, metavar="FOLDER", help="the run's folder")
    parser.add_argument(
        run_folder.ANYWAY,
        action="store_true",
        help="go on with the run of the folder although settings or data differ from its own",
    )
    command_line.add_processes(parser)
    return command_line.parse(parser, argv, groups=["config"])


def train(config: Any, workdir: pathlib.Path, *, resume_anyway: bool = False) -> None:
    """Runs a config to its end. Everything that can be wrong is looked at before weights load.

    Raises:
      signals.Preempted: it was asked to stop before; the state is saved.
    """
    compiled = compilation.start_counting()
    config = run_folder.keep_remat(config, workdir)
    run_folder.check(config, workdir, resume_anyway=resume_anyway)
    built = assembly.assemble(config)
    planned = training.plan(built)
    training_data.warn_of_task(config, planned.data.records)
    built, needed = fitting.plan_run(built, planned)
    if not config.allow_over_memory:
        fitting.require_fit(built, planned, needed)
    terminal.say(planning.describe(needed))
    state, about = run_state.start(
        built,
        planned.optimizer,
        planned.data.records,
        planned.base,
        workdir,
        total_steps=planned.total_steps,
        resume_anyway=resume_anyway,
    )
    terminal.say(optimizer.describe(state, planned.optimizer))
    assembly.write_run_files(built, workdir)
    examples = training.all_records(planned.data, planned.evaluations)
    read_images = embedding_cache.prepare(built, examples, state.params)
    train_step = profiling.trace(needed.train_step, config.profile_steps, workdir / PROFILE)
    total, every = planned.total_steps, config.log_training_steps
    measure = planning.meter(needed, compiled)
    log = training_log.Log(
        workdir, every=every, total_steps=total, done=int(state.step), measure=measure
    )
    with (
        log,
        run_state.Saver(planned.saving, about, workdir, total) as saver,
        signals.StopRequest(built.mesh) as stop,
    ):
        begun = built, planned, state, train_step, workdir
        state = training.run(*begun, log=log, saver=saver, stop=stop, read_images=read_images)
    terminal.say(compilation.describe(compiled))
    if not training.is_finished(planned, state):
        raise signals.Preempted(
            f"preempted: {stop.signal or 'another process'} after step {int(state.step)} of "
            f"{total}. The state is saved; the same command goes on from there"
        )
    training.save(built, planned, state, workdir / assembly.FINAL)
    for report in sorted(workdir.glob("report*.html")):
        terminal.say(f"report: {report}")


if __name__ == "__main__":
    command_line.run(main)
