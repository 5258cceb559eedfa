"""How long does a run take to start on a million JSONL rows, and how much memory do they take?

    python experiments/benchmarks/rows_start.py --folder data/rows_start --rows 1000000

Writes rows like a detection export's (1 to 5 boxes, 20 classes; they share a few images), then does
what a run does before its first batch: read and check every row, measure every text in tokens, and
draw the order of the first step. The second start finds the lengths that the first one kept. Prints
one line of JSON.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

from paligemma_jax.assembly import datasets
from paligemma_jax.data import index_sampler, tokens
from paligemma_jax.settings import load, presets

NUM_IMAGES = 100
CLASSES = [f"{size} {kind}" for size in ("small", "large") for kind in "abcdefghij"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--cache", help="folder of the cache (what the starts are run with)")
    args = parser.parse_args()
    path = args.folder / f"rows_{args.rows}.jsonl"
    if args.cache:
        print(json.dumps(start(path)))
        return
    if not path.exists():
        write_rows(path, args.rows)
    result = {"rows": args.rows, "file_mb": round(path.stat().st_size / 1e6)}
    with tempfile.TemporaryDirectory(dir=args.folder) as cache:
        for name in ("cold", "cached"):
            command = [sys.executable, __file__, f"--folder={args.folder}", f"--rows={args.rows}"]
            env = {**os.environ, "PALIGEMMA_JAX_CACHE": cache}
            run = subprocess.run(
                [*command, f"--cache={cache}"], check=True, stdout=subprocess.PIPE, env=env
            )
            result[name] = json.loads(run.stdout)
    print(json.dumps(result))


def write_rows(path: pathlib.Path, num_rows: int) -> None:
    """Writes a data set and its tokenizer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_IMAGES):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(path.parent / f"{number}.png")
    tokens.train_tokenizer([f"detect {c}" for c in CLASSES], path.parent / "tokenizer.model")
    rng = np.random.default_rng(0)
    with open(path, "w") as file:
        for number in range(num_rows):
            boxes = np.sort(rng.integers(0, 512, (rng.integers(1, 6), 2, 2)), axis=1)
            boxes[:, 1] += 512
            labels = rng.choice(CLASSES, len(boxes)).tolist()
            objects = [
                "".join(f"<loc{c:04d}>" for c in box.reshape(-1)) + f" {label}"
                for box, label in zip(boxes, labels, strict=True)
            ]
            row = {
                "image": f"{number % NUM_IMAGES}.png",
                "prefix": "detect " + " ; ".join(sorted(set(labels))),
                "suffix": " ; ".join(objects),
            }
            file.write(json.dumps(row) + "\n")


def start(path: pathlib.Path) -> dict[str, float]:
    """Does what a run does before its first batch; returns seconds and peak memory."""
    config = presets.finetune(model="paligemma1-3b", res=224, text_len=128)
    config.input.data.fname = str(path)
    settings = load.typed(config)
    tokenizer = tokens.load_tokenizer(path.parent / "tokenizer.model")
    begin = time.monotonic()
    records = datasets.read_records(settings, str(path), key="input.data.fname")
    read = time.monotonic()
    datasets.check_lengths(settings, records, tokenizer, name="training data")
    measured = time.monotonic()
    index_sampler.Order(0, [index_sampler.Source("rows", len(records))], batch_size=8).records(0)
    end = time.monotonic()
    return {
        "read_s": round(read - begin, 1),
        "lengths_s": round(measured - read, 1),
        "order_s": round(end - measured, 1),
        "start_s": round(end - begin, 1),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }


if __name__ == "__main__":
    main()
