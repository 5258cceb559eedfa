"""Fine-tune: a config in, a run's folder out.

    python -m paligemma_jax.train --config configs/fracture_224.py --workdir runs/fracture

Any config key may be set on the command line: --config.lr=0.03 --config.input.batch_size=4. The
run's folder gets config.json, metrics.jsonl (and TensorBoard events), predictions, metrics.json and
report.html of each evaluation, and final.npz.
"""

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

from paligemma_jax.build import assembly, command_line, optimizer, terminal, training
from paligemma_jax.config import settings


def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = parse_args(argv)
    if args.distributed:
        command_line.join_processes()
    config = settings.load(args.config, overrides["config"])
    train(config, pathlib.Path(args.workdir))


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    parser = command_line.parser(__doc__)
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a Python file")
    parser.add_argument("--workdir", required=True, metavar="FOLDER", help="the run's folder")
    command_line.add_processes(parser)
    return command_line.parse(parser, argv, groups=["config"])


def train(config: Any, workdir: pathlib.Path) -> None:
    """Runs a config to its end. Everything that can be wrong is looked at before weights load."""
    training.check_workdir(workdir)
    built = assembly.assemble(config)
    planned = training.plan(built)
    state = training.init_state(built, planned)
    terminal.say(optimizer.describe(state, planned.optimizer))
    assembly.write_run_files(built, workdir)
    with training.Log(
        workdir, every=config.log_training_steps, total_steps=planned.total_steps
    ) as log:
        state = training.run(built, planned, state, workdir, log)
    training.save(built, planned, state, workdir / assembly.FINAL)


if __name__ == "__main__":
    command_line.run(main)
