"""The processes that `compare` times: one for each side, started, asked in turn, and checked."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import prepare
import serve

from paligemma_jax.console import say

HERE = pathlib.Path(__file__).parent
OURS = "paligemma_jax"
NAMES = (OURS, "big_vision", "transformers", "keras_hub")
BEFORE = "before"  # ours of an earlier commit
OUR_FILE = "experiments/benchmarks/side_ours.py"
# transformers' softmax has so many rows more: `<image>` and padding.
EXTRA_ROWS = 64
# Relative difference of losses, by what is computed in.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
MIN_TOKENS = 0.9  # share of greedy tokens that are ours, in float32
# What a side says that ran out of memory.
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "OutOfMemoryError")

Ask = Callable[[], dict[str, Any]]


class Ended(Exception):
    """A side ended, and says why."""


def command(side: str, *, torch_python: str, keras_python: str) -> list[str]:
    """Returns the command of a side, without its arguments."""
    pythons = {"transformers": torch_python, "keras_hub": keras_python}
    file = "side_ours.py" if side == OURS else f"side_{side}.py"
    return [pythons.get(side, sys.executable), str(HERE / file)]


def command_before(checkout: pathlib.Path) -> list[str]:
    """As `command`, of our side in a checkout of an earlier commit, with the package there."""
    return ["env", f"PYTHONPATH={checkout}", sys.executable, str(checkout / OUR_FILE)]


@dataclasses.dataclass
class Outcome:
    """What came of a case.

    Attributes:
      folder: from `prepare`.
      found: side -> what it said, with the seconds of its timed runs.
      left_out: side -> why it is not among these.
    """

    folder: pathlib.Path
    found: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    ours: dict[str, Any] = dataclasses.field(default_factory=dict)  # our first answer

    def take(self, side: str, ask: Ask, *, is_timed: bool = True) -> None:
        """Lets a side run. One that fails is left out from then on; without ours all are."""
        if side in self.left_out or OURS in self.left_out:
            return
        try:
            answer = ask()
            if side not in self.found:
                self.ours = self.ours or answer
                self.found[side] = check(answer, self.ours, self.folder)
        except Ended as error:
            self.left_out[side] = str(error)
            self.found.pop(side, None)
            if side == OURS:
                self.found.clear()
            return
        self.found[side]["peak_bytes"] = answer["peak_bytes"]
        if is_timed:
            self.found[side]["seconds"].append(answer["seconds"])


def time_runs(
    groups: Sequence[Mapping[str, list[str]]],
    folder: pathlib.Path,
    case: Mapping[str, Any],
    *,
    rounds: int,
    label: str,
) -> Outcome:
    """Times runs of every side.

    Args:
      groups: name -> command of the sides that are alive together and take turns; ours comes first.
      folder: from `prepare`.
      case: for the sides.
      rounds: timed runs of each.
      label: of the progress.
    """
    outcome = Outcome(folder)
    for group in groups:
        with contextlib.ExitStack() as stack, say.progress(label, unit="runs") as report:
            asks = {
                side: stack.enter_context(opened(side, start, folder, case))
                for side, start in group.items()
            }
            turns = [(n, side) for n in range(serve.WARM_UPS + rounds) for side in group]
            for done, (number, side) in enumerate(turns, 1):
                outcome.take(side, asks[side], is_timed=number >= serve.WARM_UPS)
                report(done, len(turns))
    return outcome


def time_starts(
    commands: Mapping[str, list[str]],
    folder: pathlib.Path,
    case: Mapping[str, Any],
    *,
    rounds: int,
    label: str,
) -> Outcome:
    """Times every side from the start of its process to the end of its first run."""
    outcome = Outcome(folder)
    with say.progress(label, unit="starts") as report:
        turns = [(side, start) for _ in range(rounds) for side, start in commands.items()]
        for done, (side, start) in enumerate(turns, 1):
            outcome.take(side, functools.partial(time_start, side, start, folder, case))
            report(done, len(turns))
    return outcome


def time_start(
    side: str, start: list[str], folder: pathlib.Path, case: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the answer with the seconds of two starts.

    "cold": no compiled program is there; "with cache": those of the cold start are.
    """
    times, answer = {}, {}
    with tempfile.TemporaryDirectory() as cache:
        for quantity in ("cold", "with cache"):
            begin = time.perf_counter()
            with opened(side, start, folder, case, cache=cache) as ask:
                answer = ask()
                times[quantity] = time.perf_counter() - begin
    return answer | {"seconds": times}


@contextlib.contextmanager
def opened(
    side: str,
    start: list[str],
    folder: pathlib.Path,
    case: Mapping[str, Any],
    *,
    cache: str | None = None,
) -> Iterator[Ask]:
    """Yields the function that lets a side's process run once and returns its answer.

    `cache`: folder of the programs that JAX compiles, every one; None: as the environment says.
    """
    log = folder / f"{side}.log"
    env = dict(os.environ)
    env.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # sides share a device
    env.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    if cache:
        env["JAX_COMPILATION_CACHE_DIR"] = cache
        env["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    with open(log, "w") as errors:
        process = subprocess.Popen(
            [*start, str(folder), json.dumps(dict(case))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=env,
        )
        try:
            yield functools.partial(ask, process, log)
        finally:
            process.kill()
            process.communicate()


def ask(process: subprocess.Popen, log: pathlib.Path) -> dict[str, Any]:
    """Lets a side run once; raises Ended with the last line that it said if it did not."""
    assert process.stdin and process.stdout
    line = ""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write("go\n")
        process.stdin.flush()
        line = process.stdout.readline()
    if line:
        return json.loads(line)
    status = process.wait()
    said = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    memory = [line for line in said if any(sign in line for sign in OUT_OF_MEMORY)]
    reason = (memory or said or [f"status {status}"])[-1]
    raise Ended(reason[:200])


def check(answer: dict[str, Any], ours: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Returns what is kept of a side's first answer, which found the same loss or tokens as ours.

    Its times are a warm-up's: there are none yet. Tokens become the share that is ours; with 16
    bits it is not judged, as rounding decides.

    Raises:
      Ended: it did other work.
    """
    told = json.loads((folder / prepare.WORK).read_text())
    dtype, vocab_size = told["dtype"], told["model"]["vocab_size"]
    kept = {k: x for k, x in answer.items() if k != "tokens"} | {"seconds": []}
    if "loss" in answer:
        allowed = TOLERANCE[dtype] * abs(ours["loss"]) + EXTRA_ROWS / vocab_size
        if not abs(answer["loss"] - ours["loss"]) <= allowed:
            raise Ended(f"other work: its loss is {answer['loss']:.5f}, ours {ours['loss']:.5f}")
    if "tokens" in answer:
        share = float(np.mean(np.array(answer["tokens"]) == np.array(ours["tokens"])))
        kept["tokens_as_ours"] = round(share, 4)
        if dtype == "float32" and share < MIN_TOKENS:
            raise Ended(f"other work: {share:.0%} of its tokens are ours")
    return kept
