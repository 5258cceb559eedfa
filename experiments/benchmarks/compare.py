"""Train steps and decoding beside big_vision and transformers: the same weights, batch and cores.

    BIG_VISION_DIR=... python experiments/benchmarks/compare.py --torch_python .../bin/python

Each side runs in a process of its own that stays alive; they are timed in turn, so that whatever
else the machine does meets all of them alike. A side without BIG_VISION_DIR, or without a Python
that has torch and transformers, is left out. Prints a table: medians, and the median quotient of
neighbouring times with its 95% interval. --out writes the seconds as JSON.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

import jax
import numpy as np

from paligemma_jax.build import weights
from paligemma_jax.build.conversions import conversion
from paligemma_jax.build.process import terminal
from paligemma_jax.checkpoints import npz
from paligemma_jax.models import paligemma
from paligemma_jax.params import variants

HERE = pathlib.Path(__file__).parent
OURS = "paligemma_jax"
# In the last two of these our images are embedded before and read from the disk, and in the last
# one our backward pass keeps products; the other sides do what they do in the first.
CASES = (
    "attention-only step",
    "full step",
    "decode",
    "attention-only step, cached images",
    "attention-only step, cached images, kept products",
)
VIT = variants.Vit(width=384, depth=8, mlp_dim=1536, num_heads=6, patch_size=14)
LLM = variants.Gemma(width=512, depth=8, mlp_dim=2048, num_heads=8, num_kv_heads=1, head_dim=64)
MID = variants.PaliGemma(img=VIT, llm=LLM, res=224, vocab_size=32_768)


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prepare(pathlib.Path(folder), args)
        found = {case: measure(case, pathlib.Path(folder), args) for case in args.cases}
    rows = [row for case, sides in found.items() for row in summarize(case, sides)]
    header = ("what", "side", "median", "ours / it", "95% interval")
    print(f"{machine()}\n\n{terminal.table(rows, header=header)}")
    if args.out:
        chosen = {k: v for k, v in vars(args).items() if k not in ("out", "torch_python")}
        about = {"machine": machine(), "arguments": chosen, "seconds": found}
        pathlib.Path(args.out).write_text(json.dumps(about, indent=1) + "\n")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch_python", help="interpreter that has torch and transformers")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--prompt_len", type=int, default=16)
    parser.add_argument("--supervised", type=int, default=8, help="tokens of the answer")
    parser.add_argument("--new_tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="JSON file")
    return parser.parse_args()


def prepare(folder: pathlib.Path, args: argparse.Namespace) -> None:
    """Writes weights in both formats, and a batch."""
    params = {k: np.asarray(x) for k, x in paligemma.init(jax.random.key(args.seed), MID).items()}
    npz.write(folder / "weights.npz", params)
    stored = weights.find(os.fspath(folder / "weights.npz"))
    conversion.to_huggingface(stored, folder / "hf", MID, dtype=None, tokenizer=None)
    rng = np.random.default_rng(args.seed)
    length = args.prompt_len + args.supervised
    np.savez(
        folder / "batch.npz",
        image=rng.integers(0, 256, (args.batch_size, MID.res, MID.res, 3), dtype=np.uint8),
        text=rng.integers(3, MID.vocab_size, (args.batch_size, length + 1), dtype=np.int32),
        learnt=np.broadcast_to(
            np.arange(length + 1) > args.prompt_len, (args.batch_size, length + 1)
        ),
    )


def sides(args: argparse.Namespace) -> dict[str, list[str]]:
    """Returns the command of each side that can run."""
    found = {OURS: [sys.executable, str(HERE / "side_ours.py")]}
    if "BIG_VISION_DIR" in os.environ:
        found["big_vision"] = [sys.executable, str(HERE / "side_big_vision.py")]
    if args.torch_python:
        found["transformers"] = [args.torch_python, str(HERE / "side_transformers.py")]
    return found


def measure(case: str, folder: pathlib.Path, args: argparse.Namespace) -> dict[str, list[dict]]:
    """Returns each side's measurements, taken in turn."""
    given = [case, str(folder), str(args.new_tokens)]
    processes = {
        name: subprocess.Popen(
            [*command, *given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name, command in sides(args).items()
    }
    try:
        for name, process in processes.items():
            print(f"{case}: {name} {ask(process, name)}", file=sys.stderr, flush=True)
        found = {name: [] for name in processes}
        for _ in range(args.rounds):
            for name, process in processes.items():
                found[name].append(ask(process, name))
        return found
    finally:
        for process in processes.values():
            process.kill()


def ask(process: subprocess.Popen, name: str) -> dict:
    """Lets a side run once and returns what it says: first of its warm-up, then seconds."""
    assert process.stdin and process.stdout
    process.stdin.write("go\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{name} ended with status {process.wait()}")
    return json.loads(line)


def summarize(case: str, found: dict[str, list[dict]]) -> list[tuple[str, ...]]:
    """Returns table rows: one per quantity and side."""
    rows = []
    for quantity in found[OURS][0]:
        ours = np.array([row[quantity] for row in found[OURS]])
        for side, measured in found.items():
            theirs = np.array([row[quantity] for row in measured])
            low, middle, high = interval(ours / theirs)
            shown = f"{np.median(theirs) * 1000:.1f} ms"
            rows.append(
                (f"{case}: {quantity}", side, shown, f"{middle:.3f}", f"{low:.3f}..{high:.3f}")
            )
    return rows


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Returns the median with its 95% interval, by bootstrap."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return float(low), float(np.median(values)), float(high)


def machine() -> str:
    """Returns what the figures were taken on."""
    cores = len(os.sched_getaffinity(0))
    return f"{cores} core(s) of {platform.machine()}, jax {jax.__version__}, float32"


if __name__ == "__main__":
    main()
