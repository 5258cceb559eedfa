"""Load and save npz weights side by side with numpy: time, extra memory, and the disk's own speed.

    python experiments/benchmarks/npz_io.py --file data/real_size/random.npz

Cases take turns, each in a process of its own: the bytes read alone (read: into one small buffer,
which also warms the page cache; read_fresh: into fresh memory); load (ours) and load_numpy
(dict(np.load), device_put of everything); save (ours), save_unsynced (without fsync), save_numpy
(np.savez); the bytes written alone (write, write_synced). Memory is anonymous memory, sampled every
5 ms. The result is one line of JSON; --out keeps it.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time
import unittest.mock
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from paligemma_jax.checkpoints import npz

CHUNK_BYTES = 2**20
RATIOS = (
    ("load", "load_numpy"),
    ("load", "read_fresh"),
    ("save", "save_numpy"),
    ("save_unsynced", "save_numpy"),
    ("save", "write"),
    ("save", "write_synced"),
)
Params = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--file", type=pathlib.Path, required=True, help="npz file, uncompressed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for the result")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--one", choices=CASES, help="runs one case (what all are run with)")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(CASES[args.one](args.file)))
        return
    found: dict[str, list[dict[str, float]]] = {case: [] for case in args.cases}
    for number in range(args.rounds):
        for case in args.cases:
            os.sync()
            command = [sys.executable, __file__, "--file", str(args.file), "--one", case]
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[case].append(json.loads(run.stdout))
            print(f"round {number + 1}, {case}: {run.stdout.strip()}", file=sys.stderr)
    result = summarize(args.file, found)
    print(json.dumps(result))
    if args.out:
        args.out.write_text(json.dumps({**result, "rounds": found}, indent=1) + "\n")


def summarize(path: pathlib.Path, found: Mapping[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Returns medians over the rounds, of times, of ratios within a round, and of memory."""
    arrays = npz.read_header(path).arrays.values()
    largest = max(math.prod(array.shape) * array.dtype.itemsize for array in arrays)

    def median(case: str, key: str) -> float:
        return round(statistics.median(row[key] for row in found[case]), 3)

    result: dict[str, Any] = {
        "gb": round(path.stat().st_size / 1e9, 3),
        "largest_array_gb": round(largest / 1e9, 3),
        "seconds": {case: median(case, "seconds") for case in found},
        "extra_memory_in_largest_arrays": {
            case: round(median(case, "extra_gb") * 1e9 / largest, 3)
            for case in found
            if "extra_gb" in found[case][0]
        },
    }
    for one, other in RATIOS:
        if one in found and other in found:
            pairs = zip(found[one], found[other], strict=True)
            ratios = [a["seconds"] / b["seconds"] for a, b in pairs]
            result[f"{one}_over_{other}"] = round(statistics.median(ratios), 3)
    return result


class Memory:
    """Samples this process's anonymous memory from `with` to its end."""

    def __enter__(self) -> "Memory":
        self.base = self.peak = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, anonymous_bytes())


def anonymous_bytes() -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def measure(work: Callable[[], Params | None]) -> dict[str, float]:
    """Returns the time of a function, and its memory beyond what it returns."""
    with Memory() as memory:
        start = time.monotonic()
        made = work()
        seconds = time.monotonic() - start
    stays = sum(array.nbytes for array in (made or {}).values())
    extra = memory.peak - memory.base - stays
    return {"seconds": round(seconds, 3), "extra_gb": round(extra / 1e9, 3)}


def read(path: pathlib.Path) -> dict[str, float]:
    """Reads all bytes into the same small buffer."""
    room = bytearray(CHUNK_BYTES)
    start = time.monotonic()
    with open(path, "rb", buffering=0) as file:
        while file.readinto(room):
            pass
    return {"seconds": round(time.monotonic() - start, 3)}


def read_fresh(path: pathlib.Path) -> dict[str, float]:
    """Reads all bytes into memory of their own, as whoever keeps them must."""
    start = time.monotonic()
    with open(path, "rb", buffering=0) as file:
        room = memoryview(np.empty(path.stat().st_size, np.uint8))
        for at in range(0, len(room), CHUNK_BYTES):
            file.readinto(room[at : at + CHUNK_BYTES])
    return {"seconds": round(time.monotonic() - start, 3)}


def place(name: str, array: np.ndarray) -> jax.Array:
    del name
    return jax.device_put(array)


def load(path: pathlib.Path) -> dict[str, float]:
    jax.devices()
    return measure(lambda: npz.read(path, place=place))


def load_numpy(path: pathlib.Path) -> dict[str, float]:
    jax.devices()
    return measure(lambda: jax.block_until_ready(jax.device_put(dict(np.load(path)))))


def save_with(write: Callable[[pathlib.Path, Params], None]) -> Callable[..., dict[str, float]]:
    """Returns the case that saves loaded arrays with a function."""

    def case(path: pathlib.Path) -> dict[str, float]:
        params = npz.read(path, place=place)
        target = path.with_name("npz_io_saved.npz")
        try:
            return measure(lambda: write(target, params))
        finally:
            target.unlink()

    return case


def save_unsynced(path: pathlib.Path, params: Params) -> None:
    with unittest.mock.patch("os.fsync"):
        npz.write(path, params)


def write(path: pathlib.Path, params: Params) -> None:
    """Writes the arrays' bytes alone."""
    with open(path, "wb", buffering=0) as file:
        for array in params.values():
            data = np.asarray(array).reshape(-1).view(np.uint8).data
            for at in range(0, len(data), CHUNK_BYTES):
                file.write(data[at : at + CHUNK_BYTES])


def write_synced(path: pathlib.Path, params: Params) -> None:
    write(path, params)
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


CASES = {
    "read": read,
    "read_fresh": read_fresh,
    "load": load,
    "load_numpy": load_numpy,
    "save": save_with(npz.write),
    "save_unsynced": save_with(save_unsynced),
    "save_numpy": save_with(lambda path, params: np.savez(path, **params)),
    "write": save_with(write),
    "write_synced": save_with(write_synced),
}

if __name__ == "__main__":
    main()
