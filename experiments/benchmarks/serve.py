"""What the sides of `compare` share: one line in, one run, one line of JSON out.

Needs nothing but numpy: some sides run in an environment of their own.
"""

import json
import pathlib
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np

WARM_UPS = 2  # runs that are not timed


def read_work() -> tuple[types.SimpleNamespace, dict[str, np.ndarray]]:
    """Returns (what to do, the batch) of the command line: a folder, and a case as JSON."""
    folder, case = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
    told = json.loads((folder / "work.json").read_text())
    with np.load(folder / "batch.npz") as file:
        arrays = {name: x[: case["batch_size"]] for name, x in file.items()}
    return types.SimpleNamespace(folder=folder, **(told | case)), arrays


def serve(
    run: Callable[[], dict[str, Any]], about: dict[str, Any], peak: Callable[[], int]
) -> None:
    """Answers every line with the numbers of a run, and the first one with `about` too.

    Args:
      run: does the work once; returns "seconds" by quantity, and what it found.
      about: device and versions.
      peak: returns the most bytes that were in use, on a CPU since the last warm-up.
    """
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries print
    for number, _ in enumerate(sys.stdin):
        answer = run() | {"peak_bytes": peak()}
        if number == 0:
            answer |= about
        if number == WARM_UPS - 1:
            reset_resident_peak()
        print(json.dumps(answer), file=out, flush=True)


def seconds(action: Callable[[], object]) -> float:
    """Returns how long an action takes that waits for its result."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def time_decoding(decode: Callable[[int], Any], new_tokens: int) -> dict[str, Any]:
    """Returns seconds up to the first token, and of each further one, and the tokens.

    `decode` takes how many tokens to add, and returns their ids, [B, tokens], when they are there.
    """
    start = time.perf_counter()
    decode(1)
    middle = time.perf_counter()
    tokens = decode(new_tokens)
    first, all_of_them = middle - start, time.perf_counter() - middle
    further = (all_of_them - first) / (new_tokens - 1)
    times = {"prefill": first, "further token": further}
    return {"seconds": times, "tokens": np.asarray(tokens).tolist()}


def time_checkpoint(load: Callable[[], object], save: Callable[[], object]) -> dict[str, Any]:
    """Returns the seconds of both; what was loaded is let go before it is saved anew."""
    return {"seconds": {"load": seconds(load), "save": seconds(save)}}


def resident_peak() -> int:
    """Returns the most bytes of memory that this process had, since the last reset."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def reset_resident_peak() -> None:
    """Makes `resident_peak` start again from what the process has now (proc(5), clear_refs)."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
