"""Start a command elsewhere: on a TPU that is made for it, as a job of Slurm, or on hosts.

    python -m paligemma_jax.launch --tpu v5e-8 --zone us-west4-a --spot -- \\
        train --config configs/mine.py --workdir gs://bucket/runs/mine
    python -m paligemma_jax.launch --slurm --nodes 2 --gpus 8 --time 4:00:00 -- \\
        train --config configs/mine.py --workdir /shared/runs/mine
    python -m paligemma_jax.launch --hosts alpha,beta -- \\
        train --config configs/mine.py --workdir /shared/runs/mine

--dry_run shows every command and calls none. A TPU is made, the code of this checkout is sent and
installed, the command is followed, and the TPU is deleted however that ends (--keep leaves it); one
that is taken (--spot) is made again, and the run goes on. On hosts, which ssh must reach without a
question, one process each is started, and when one fails the others end.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from paligemma_jax.console import arguments
from paligemma_jax.launching import clusters, shell, tpu

# Option -> the ways that know it.
KNOWN_BY = {
    **dict.fromkeys(("zone", "project", "spot", "keep", "attempts"), ("tpu",)),
    **dict.fromkeys(("nodes", "gpus", "time", "partition", "account"), ("slurm",)),
    **dict.fromkeys(("folder", "port", "extras"), ("hosts",)),
}


def main(argv: Sequence[str] | None = None) -> None:
    args, words = parse_args(argv)
    # Whatever ends this program, it first gives back what costs.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    run = shell.Shell(is_dry=args.dry_run, write=_show)
    name = args.name or f"training-{os.getpid()}"
    if args.tpu:
        if not args.zone:
            raise ValueError("--tpu needs --zone, as us-west4-a")
        given: dict[str, Any] = {"is_spot": args.spot, "is_kept": args.keep, "setup": args.setup}
        given |= {} if args.attempts is None else {"attempts": args.attempts}
        request = tpu.Request(args.tpu, name, args.zone, args.project, **given)
        status = tpu.launch(request, words, run)
    elif args.slurm:
        chosen = ("nodes", "gpus", "time", "partition", "account", "setup")
        clusters.submit(clusters.Job(name, **_given(args, chosen)), words, run)
        status = 0
    else:
        names = tuple(filter(None, args.hosts.split(",")))
        chosen = _given(args, ("folder", "port", "extras", "setup"))
        status = clusters.run_on(clusters.Hosts(names, **chosen), words, run)
    if status:
        sys.exit(status)


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Returns (the launcher's own arguments, the words behind --)."""
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    parser = arguments.parser(__doc__)
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--tpu", metavar="KIND", help="as v5e-8, v6e-16, v4-32")
    where.add_argument("--slurm", action="store_true", help="write and submit an sbatch file")
    where.add_argument("--hosts", metavar="A,B", help="names that ssh knows")
    add("--name", help="of the TPU or the job; default: one of its own")
    add("--setup", metavar="LINE", help="a shell's line for every machine, before the command")
    add("--zone", help="of the TPU")
    add("--project", help="that pays for the TPU; default: gcloud's")
    add("--spot", action="store_true", help="a TPU that may be taken, at a lower price")
    add("--keep", action="store_true", help="leave the TPU when the command has ended")
    add("--attempts", type=int, metavar="N", help="make a TPU that is taken so often; default: 10")
    add("--nodes", type=int, metavar="N", help="of Slurm; default: 1")
    add("--gpus", type=int, metavar="N", help="of each node; default: 1")
    add("--time", help="as Slurm has it, 4:00:00")
    add("--partition", help="of Slurm")
    add("--account", help="of Slurm")
    add("--folder", help="on the hosts, for the code; default: ~/paligemma_jax")
    add("--port", type=int, help="of the first host; default: 8476")
    add("--extras", help="of the package, on hosts; default: cuda12")
    add("--dry_run", action="store_true", help="show every command and call none")
    args, _ = arguments.parse(parser, given[:cut], groups={})
    way = "tpu" if args.tpu else "slurm" if args.slurm else "hosts"
    for option, ways in KNOWN_BY.items():
        if getattr(args, option) not in (None, False) and way not in ways:
            parser.error(f"--{option} is of --{ways[0]}, not of --{way}")
    return args, given[cut + 1 :]


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Returns the options that were given: the others have their defaults elsewhere."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _show(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    arguments.run(main)
