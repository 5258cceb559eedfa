"""Our own benchmarks that `compare` runs as they are: each prints lines of JSON."""

import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
FIRST = {"run_start": ["experiments/demo/make_data.py", "--out", "{folder}/demo"]}
# Relative to the root of the repository; {folder} is a temporary one.
SCRIPTS = {
    "input": ["experiments/benchmarks/input_time.py"],
    "run_start": ["experiments/benchmarks/first_step.py", "--data", "{folder}/demo"],
    "npz_io": ["experiments/benchmarks/npz_io.py", "--file", "{folder}/weights.npz"],
    "help": ["experiments/benchmarks/help_time.py"],
}
MAX_ROUNDS = {"input": 5, "run_start": 3, "npz_io": 3, "help": 10}


def run(name: str, folder: pathlib.Path, *, rounds: int) -> dict:
    """Returns {"rows": what a benchmark printed}, or {"left_out": why it could not run}."""
    made = {}
    timed = [*SCRIPTS[name], "--rounds", str(min(rounds, MAX_ROUNDS[name]))]
    for arguments in filter(None, (FIRST.get(name), timed)):
        told = [part.format(folder=folder) for part in arguments]
        if name == "input":
            told += ["--cores", *map(str, range(1, len(os.sched_getaffinity(0)) + 1))]
        made = subprocess.run([sys.executable, *told], cwd=ROOT, capture_output=True, text=True)
        if made.returncode:
            said = made.stderr.strip().splitlines() or [f"status {made.returncode}"]
            return {"left_out": said[-1][:200]}
    return {"rows": [json.loads(line) for line in made.stdout.splitlines() if line[:1] == "{"]}
