"""Fine-tune: a config in, a run's folder out.

    python -m paligemma_jax.train --config configs/fracture_224.py --workdir runs/fracture

Without a config file: paligemma-jax train --data FOLDER --model NAME, see paligemma_jax.finetune.
Any config key may be set on the command line: --config.lr=0.03 --config.input.batch_size=4. The
run's folder gets config.json, metrics.jsonl (and TensorBoard events), predictions, metrics.json and
report.html of each evaluation, checkpoints, and final.npz.

A run that stopped, however it did, goes on when the same command is given again, and ends with the
numbers that it would have had. SIGTERM and SIGINT (Ctrl-C) end it after the running step with its
state saved and exit status 75; a second signal ends it at once.

--workdir may be an address (gs:// s3://): the run is mirrored there while it trains, and goes on
from there on another machine.
"""

import argparse
from collections.abc import Sequence

from paligemma_jax.console import arguments
from paligemma_jax.files import run_folder
from paligemma_jax.runs import saving, whole_run
from paligemma_jax.settings import load, schema


def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = parse_args(argv)
    if args.distributed:
        arguments.join_processes()
    settings = load.load(args.config, overrides["config"])
    if args.distributed and run_folder.is_remote(args.workdir):
        raise ValueError(
            f"--workdir {args.workdir}: several processes write one run into a folder that all of "
            f"them see. Mount the bucket on every machine (gcsfuse, s3fs) and give that path"
        )
    with run_folder.working_in(args.workdir) as workdir:
        whole_run.train(settings, workdir, resume_anyway=args.resume_anyway)


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    parser = arguments.parser(__doc__)
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a Python file")
    parser.add_argument(
        "--workdir", required=True, metavar="FOLDER", help="the run's folder, or its address"
    )
    parser.add_argument(
        saving.ANYWAY,
        action="store_true",
        help="go on with the run of the folder although settings or data differ from its own",
    )
    arguments.add_processes(parser)
    return arguments.parse(parser, argv, groups={"config": schema.names()})


if __name__ == "__main__":
    arguments.run(main)
