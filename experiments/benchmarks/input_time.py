"""Images per second of the input pipeline, beside tf.data that only decodes and resizes.

    python experiments/benchmarks/input_time.py --cores 1 2

JPEGs of smooth shapes in a temporary folder. Ours reads, decodes, resizes, tokenizes and batches;
the bare one does the first three with the same operations of TensorFlow, as anyone would write it.
Each number of cores has a process of its own that may use no others; within it the sides take
turns, and both keep the memory that they free, as our commands do (--give_back: they do not). One
line of JSON for each number of cores: the median rates, and the median of the quotients of
neighbours; with several also the quotient of their rates.
"""

import argparse
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import augment_time

from paligemma_jax.console import process
from paligemma_jax.data import images, pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", type=int, nargs="+", default=[1])
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), help="width and height")
    parser.add_argument("--res", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=12, help="batches per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--give_back", action="store_true", help="freed memory, to the kernel")
    parser.add_argument("--this_process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.this_process:
        if not args.give_back:
            process.keep_freed_memory()
        print(json.dumps(compare(args)))
        return
    found = {count: run_on(count) for count in args.cores}
    for row in found.values():
        print(json.dumps(row))
    for few, many in itertools.pairwise(sorted(found)):
        quotient = found[many]["ours_per_s"] / found[few]["ours_per_s"]
        print(json.dumps({f"{many} cores / {few}": round(quotient, 2)}))


def run_on(count: int) -> dict:
    """Returns what a process finds that may use so many of this one's cores."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    if len(cores) < count:
        raise SystemExit(f"--cores {count}: this process may use {len(cores)}")
    command = [sys.executable, *sys.argv, "--this_process", "--cores", str(count)]
    result = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    return json.loads(result.stdout)


def compare(args: argparse.Namespace) -> dict:
    """Returns the rates of both sides in this process."""
    with tempfile.TemporaryDirectory() as folder:
        data, tokenizer = augment_time.make_data(pathlib.Path(folder), args.size)
        ours, bare = [], []
        for _ in range(args.rounds):
            ours.append(augment_time.rate(make_ours(data, tokenizer, args), args))
            bare.append(augment_time.rate(make_bare(data, args), args))
    quotients = [one / other for one, other in zip(ours, bare, strict=True)]
    return {
        "cores": args.cores[0],
        "ours_per_s": round(statistics.median(ours), 1),
        "bare_per_s": round(statistics.median(bare), 1),
        "ours / bare": round(statistics.median(quotients), 3),
        "quotients": [round(quotient, 3) for quotient in quotients],
    }


def make_ours(data, tokenizer, args):
    spec = pipeline.BatchSpec(
        res=args.res, text_len=24, batch_size=args.batch_size, num_workers=args.cores[0]
    )
    steps = args.steps + augment_time.WARM_UP
    return pipeline.train_batches(data, tokenizer, spec, seed=0, total_steps=steps)


def make_bare(data, args):
    tf = images.tensorflow()

    def load(path):
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        resized = tf.image.resize(image, (args.res, args.res), antialias=True)
        return tf.cast(resized, tf.uint8)

    paths = [path for record in data for path in record.images]
    dataset = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    dataset = dataset.map(load, num_parallel_calls=args.cores[0], deterministic=True)
    batches = dataset.batch(args.batch_size, drop_remainder=True).prefetch(2)
    return batches.take(args.steps + augment_time.WARM_UP).as_numpy_iterator()


if __name__ == "__main__":
    main()
