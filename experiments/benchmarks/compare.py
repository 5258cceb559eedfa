"""One command, one table, one plot: our speed and memory beside the peers' on this machine.

    python experiments/benchmarks/compare.py --size mid --torch_python .../bin/python \
        --keras_python .../bin/python

The same work with the same random weights: big_vision (the checkout that BIG_VISION_DIR names),
transformers and KerasHub, each in a process of its own, with an interpreter that has it. A side
that cannot run, or that does not find our loss or our tokens, is left out and named with the
reason. Every side may use all the cores that this process may use, or --cores of them: what wins
on one core need not win on all. Prints the table, and writes it with the plot and all times to a
results folder; a folder of the same machine and arguments that is there already gets the new cases.
With --before, a checkout of an earlier commit, its own side takes turns with ours like the others.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import prepare
import report
import scripts
import sides
import work

from paligemma_jax.console import say

HERE = pathlib.Path(__file__).parent
KINDS = ("step", "decode", "checkpoint", "start")
# May differ between commands that add to the same results.
NOT_RECORDED = ("what", "sides", "torch_python", "keras_python", "before", "out", "keep")
START_ROUNDS = 3  # at most: each starts every side twice


def main() -> None:
    args = parse_args()
    pin(args.cores)
    say.info(f"every side may use {report.cpu()}")
    cases = {name: case for name, case in work.CASES.items() if {name, case.what} & set(args.what)}
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": "",
        "size": args.size,
        "arguments": {k: v for k, v in vars(args).items() if k not in NOT_RECORDED},
    }
    shown = ""
    with working_folder(args) as folder:
        write_inputs(folder, args)
        for part in measure_all(cases, folder, args):
            results["machine"] = results["machine"] or machine(part["cases"])
            out = pathlib.Path(args.out or HERE / "results" / report.folder_name(results))
            shown = report.write(out, results | part)
            say.info(f"written: {out}")
    print(shown)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--size", default="mid", choices=work.SIZES, help="of the model")
    parser.add_argument(
        "--what",
        nargs="+",
        default=[*KINDS, "input"],
        choices=[*KINDS, *scripts.SCRIPTS, *work.CASES],
        metavar="WHAT",
        help=f"kinds of cases ({', '.join(KINDS)}), single ones by name ({'; '.join(work.CASES)}), "
        f"or our own benchmarks ({', '.join(scripts.SCRIPTS)})",
    )
    parser.add_argument("--sides", nargs="+", default=list(sides.NAMES), choices=sides.NAMES)
    parser.add_argument(
        "--before", type=pathlib.Path, metavar="CHECKOUT", help="of an earlier commit of ours"
    )
    parser.add_argument("--torch_python", default=sys.executable, help="has torch, transformers")
    parser.add_argument("--keras_python", default=sys.executable, help="has keras-hub, jax")
    parser.add_argument(
        "--cores",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="that every side may use, on a CPU and beside a GPU; the default is all there are",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=5,
        help="timed runs of each side; our own benchmarks have as many at most",
    )
    parser.add_argument("--batch_size", type=int, help="of steps; None: that of the size")
    parser.add_argument(
        "--remat",
        default="dots_with_no_batch_dims_saveable",
        help="policy of our steps; the default is what a run chooses where memory allows",
    )
    parser.add_argument("--attention", default="xla", help="what computes it in our steps")
    parser.add_argument("--img_attention", default="xla", help="likewise in the vision tower")
    parser.add_argument(
        "--checkpointing", action="store_true", help="transformers: gradient checkpointing"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="folder of weights and batch, found again next time")
    parser.add_argument("--out", help="results folder; None: by date, machine and size")
    args = parser.parse_args()
    check_args(parser, args)
    args.before = args.before and args.before.resolve()
    return args


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the process with a message if arguments make no comparison."""
    if sides.OURS not in args.sides:
        parser.error(f"--sides {' '.join(args.sides)}: {sides.OURS} is what the others are beside")
    if args.before and not (args.before / sides.OUR_FILE).exists():
        parser.error(f"--before {args.before}: no checkout of ours, it lacks {sides.OUR_FILE}")
    if not 0 < args.cores <= parser.get_default("cores"):
        parser.error(f"--cores {args.cores}: this process may use {parser.get_default('cores')}")


def pin(cores: int) -> None:
    """Lets this process, and those that it starts, use so many of the cores that it may use."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


@contextlib.contextmanager
def working_folder(args: argparse.Namespace) -> Iterator[pathlib.Path]:
    """Yields the folder that sides read: the one to keep, or one that is removed afterwards."""
    if args.keep:
        yield pathlib.Path(args.keep)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield pathlib.Path(folder)


def write_inputs(folder: pathlib.Path, args: argparse.Namespace) -> None:
    """Writes weights and batch, unless the folder has what the same arguments wrote."""
    rows = max(batch_size(case, args) for case in work.CASES.values())
    told = {"size": args.size, "seed": args.seed, "rows": rows}
    written = folder / prepare.WORK
    if written.exists() and told.items() <= json.loads(written.read_text()).items():
        return
    say.info(f"writing random weights and a batch: {folder}")
    command = [sys.executable, str(HERE / "prepare.py"), str(folder), json.dumps(told)]
    subprocess.run(command, check=True)


def measure_all(
    cases: dict[str, work.Case], folder: pathlib.Path, args: argparse.Namespace
) -> Iterator[dict]:
    """Yields what is added to the results, case by case: what was measured is never lost."""
    for name, case in cases.items():
        found = {name: measure(name, case, folder, args)}
        versions = report.pop_versions(found)
        if sides.BEFORE in versions:
            versions[sides.BEFORE]["commit"] = commit(args.before)
        yield {"versions": versions, "cases": found, "scripts": {}}
    for name in args.what:
        if name in scripts.SCRIPTS:
            say.info(f"running {name}")
            made = scripts.run(name, folder, rounds=args.rounds)
            yield {"versions": {}, "cases": {}, "scripts": {name: made}}


def batch_size(case: work.Case, args: argparse.Namespace) -> int:
    size = work.SIZES[args.size]
    return case.batch_size or args.batch_size or size.batch_size


def measure(name: str, case: work.Case, folder: pathlib.Path, args: argparse.Namespace) -> dict:
    """Returns what each side took, and why others are left out."""
    rows = batch_size(case, args)
    told = dataclasses.asdict(case) | {"batch_size": rows}
    chosen = ("remat", "attention", "img_attention", "checkpointing")
    told |= {name: getattr(args, name) for name in chosen}
    commands = {
        side: sides.command(side, torch_python=args.torch_python, keras_python=args.keras_python)
        for side in sides.NAMES
        if side in args.sides
    }
    if args.before:
        commands[sides.BEFORE] = sides.command_before(args.before)
    if case.what == "start":
        outcome = sides.time_starts(
            commands,
            folder,
            told | {"what": "step"},
            rounds=min(args.rounds, START_ROUNDS),
            label=name,
        )
    else:
        alone = [{side: command} for side, command in commands.items()]
        groups = [commands] if work.SIZES[args.size].takes_turns else alone
        outcome = sides.time_runs(groups, folder, told, rounds=args.rounds, label=name)
    for side, reason in outcome.left_out.items():
        say.info(f"{name}: {side} is left out: {reason}")
    return {"batch_size": rows, "sides": outcome.found, "left_out": outcome.left_out}


def commit(checkout: pathlib.Path) -> str:
    """Returns the commit that a folder of git has checked out; "" of another folder."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def machine(found: dict[str, dict]) -> str:
    """Returns what the figures were taken on: the device, or the cores of a CPU."""
    devices = {side["device"] for case in found.values() for side in case["sides"].values()}
    return ", ".join(sorted(devices - {"cpu"})) or report.cpu()


if __name__ == "__main__":
    main()
