"""Kill runs at random moments, resume each, compare with runs that nobody touched.

    python experiments/faults/kill.py --out runs/faults

Writes results.json beside this file, or into --results. Every run goes through the door, in a
process of its own, and is killed with SIGKILL: while it starts, while it trains, and while it
writes a checkpoint.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from paligemma_jax.checkpoints import npz
from paligemma_jax.data import tokens
from paligemma_jax.reports import run_log

HERE = pathlib.Path(__file__).parent
RUNS = {  # name: kind, devices
    f"{kind}-{devices}": (kind, devices)
    for kind, devices in (("sgd", 1), ("adam", 1), ("accumulation", 1), ("adam", 4), ("frozen", 4))
}
# When to kill, in turn: at some moment after a new checkpoint, while one is written after that,
# while the first one is written, or before the first step.
PHASES = ("training", "save", "first save", "save", "training", "start", "save")
# How long things took, and what a process that goes on compiles anew: not what was computed.
TIMINGS = {"seconds", "examples_per_s", "input_wait", "programs_compiled"}
TIMEOUT_S = 600


@dataclasses.dataclass(frozen=True)
class Kill:
    """Where a kill fell: `in_save` if a checkpoint was being written at that moment."""

    phase: str
    after_s: float
    last_row: int
    newest_checkpoint: str | None
    in_save: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="removed first")
    parser.add_argument("--kills", type=int, default=7, help="of each run")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="which of them")
    parser.add_argument("--steps", type=int, default=160, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=pathlib.Path, default=HERE, help="folder of results.json")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    make_data(args.out.absolute() / "data")
    chance, results = random.Random(args.seed), []
    for name in args.runs:
        result, kills = examine(name, args, chance)
        results.append(result | {"kills": [dataclasses.asdict(one) for one in kills]})
        print(json.dumps(result | {"in_save": sum(one.in_save for one in kills)}), flush=True)
    (args.results / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def examine(
    name: str, args: argparse.Namespace, chance: random.Random
) -> tuple[dict[str, Any], list[Kill]]:
    """Runs once straight and once with kills; returns what was equal, and the kills."""
    kind, devices = RUNS[name]
    config = f"{HERE}/config.py:data={args.out.absolute()}/data,kind={kind},steps={args.steps}"
    straight, killed = args.out / f"{name}-straight", args.out / f"{name}-killed"
    finish(start(config, straight, devices))
    kills = [
        kill(start(config, killed, devices), killed, PHASES[i % len(PHASES)], chance)
        for i in range(args.kills)
    ]
    finish(start(config, killed, devices))
    return {"run": kind, "devices": devices, **compare(straight, killed)}, kills


def make_data(folder: pathlib.Path) -> None:
    """Writes a data set of 12 images of noise, and a tokenizer."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        box = f"<loc{100 + number:04d}><loc0200><loc0500><loc0600>"
        rows.append({"image": f"{number}.png", "prefix": "detect cat", "suffix": f"{box} cat"})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens.train_tokenizer(["detect cat", "cat"], folder / "tokenizer.model", vocab_size=1500)


def start(config: str, workdir: pathlib.Path, devices: int) -> subprocess.Popen[str]:
    """Starts the run, or goes on with it: the command is the same."""
    strategy = [(".*", 'fsdp(axis="data", min_size_to_shard_mb=0)')]
    command = [
        *(sys.executable, "-m", "paligemma_jax.train"),
        f"--config={config}",
        f"--workdir={workdir.absolute()}",
        f"--config.sharding_strategy={strategy}",
    ]
    flags = os.environ.get("XLA_FLAGS", "")
    env = {
        **os.environ,
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(workdir.absolute().parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        command, env=env, cwd=HERE.parents[1], stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=TIMEOUT_S)
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}:\n{errors}")


def kill(
    process: subprocess.Popen[str], workdir: pathlib.Path, phase: str, chance: random.Random
) -> Kill:
    """Kills a process in that phase of its run, and says where it was."""
    began, checkpoints = time.time(), workdir / "checkpoints"
    before = newest(checkpoints)

    def wait_for(condition: Callable[[], bool]) -> None:
        while not condition() and process.poll() is None:
            time.sleep(0.0005)

    if phase == "start":
        time.sleep(chance.uniform(0.1, 5))
    if phase in ("training", "save"):
        wait_for(lambda: newest(checkpoints) != before)
    if phase == "training":
        time.sleep(chance.uniform(0, 0.6))
    if phase in ("save", "first save"):
        wait_for(lambda: is_saving(checkpoints, since=began))
        time.sleep(chance.uniform(0, 0.04))
    process.kill()
    process.communicate()
    if process.returncode != -9:
        raise RuntimeError(f"ended by itself, status {process.returncode}")
    rows = (
        run_log.read_rows(workdir / "metrics.jsonl") if (workdir / "metrics.jsonl").exists() else []
    )
    return Kill(
        phase=phase,
        after_s=round(time.time() - began, 2),
        last_row=rows[-1]["step"] if rows else 0,
        newest_checkpoint=newest(checkpoints),
        in_save=is_saving(checkpoints, since=began),
    )


def newest(checkpoints: pathlib.Path) -> str | None:
    """Returns the name of the last complete checkpoint."""
    names = sorted(path.name for path in checkpoints.glob("*") if path.name.isdecimal())
    return names[-1] if names else None


def is_saving(checkpoints: pathlib.Path, *, since: float) -> bool:
    """Whether a checkpoint lies there that is not complete, begun since a time."""
    for path in checkpoints.glob("*.*"):
        try:
            if path.stat().st_mtime >= since:
                return True
        except FileNotFoundError:  # it got its name meanwhile
            continue
    return False


def compare(straight: pathlib.Path, killed: pathlib.Path) -> dict:
    """Returns what was compared, all of it bit for bit; raises where something differs."""
    first, second = npz.read(straight / "final.npz"), npz.read(killed / "final.npz")
    assert list(first) == list(second)
    for name, array in first.items():
        assert array.dtype == second[name].dtype and array.tobytes() == second[name].tobytes(), name
    rows = [numbers(straight), numbers(killed)]
    assert rows[0] == rows[1], "metrics differ"
    predictions = sorted(path.name for path in straight.glob("predictions-*.jsonl"))
    for name in predictions:
        assert (straight / name).read_bytes() == (killed / name).read_bytes(), name
    return {
        "arrays_equal": len(first),
        "bytes_equal": sum(array.nbytes for array in first.values()),
        "rows_of_metrics_equal": len(rows[0]),
        "files_of_predictions_equal": len(predictions),
    }


def numbers(workdir: pathlib.Path) -> list[dict]:
    """Returns the rows of metrics.jsonl without times."""
    rows = run_log.read_rows(workdir / "metrics.jsonl")
    return [{key: row[key] for key in row if key not in TIMINGS} for row in rows]


if __name__ == "__main__":
    main()
