"""Images per second that the input pipeline makes, with and without augmentation.

    python experiments/benchmarks/augment_time.py --size 640 480 --res 224

JPEGs of random shapes in a temporary folder are read, decoded, resized, augmented and batched, with
one box an image whose text follows. Prints a line of JSON for each chain.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile
import time

import numpy as np
from PIL import Image

from paligemma_jax.console import process
from paligemma_jax.data import augment, pipeline, records, tokens
from paligemma_jax.settings import schema

WARM_UP = 4  # batches, more than are made ahead
CHAINS = {
    "none": {},
    "flips": dict(flip_lr=0.5, flip_ud=0.5),
    "window": dict(crop=0.5, aspect=1.3, scale=(0.7, 1.4)),
    "colours": dict(brightness=0.2, contrast=0.2, saturation=0.2),
    "jpeg": dict(jpeg_quality=50),
}
CHAINS["all"] = {key: value for chain in CHAINS.values() for key, value in chain.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), help="width and height")
    parser.add_argument("--res", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--num_workers", type=int, default=None)
    args = parser.parse_args()
    process.keep_freed_memory()  # as our commands do
    with tempfile.TemporaryDirectory() as folder:
        data, tokenizer = make_data(pathlib.Path(folder), args.size)
        base = None
        for name, settings in CHAINS.items():
            found = measure(data, tokenizer, settings, args)
            base = base or found
            row = dict(chain=name, images_per_s=round(found, 1), relative=round(found / base, 3))
            print(json.dumps(row | vars(args)), flush=True)


def make_data(folder, size):
    """Returns 64 records of pictures with smooth shapes, which compress as photos do."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(64):
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        path = folder / f"{number}.jpg"
        small.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        suffix = "<loc0300><loc0300><loc0600><loc0700> cat"
        found.append(records.Record((str(path),), "detect cat", suffix, str(path)))
    return found, tokens.train_tokenizer(["detect cat", " cat"], folder / "t.model")


def measure(data, tokenizer, settings, args):
    """Returns images per second of a chain."""
    spec = pipeline.BatchSpec(
        res=args.res, text_len=24, batch_size=args.batch_size, num_workers=args.num_workers
    )
    augmentation = augment.Augmenter(
        augment.Augmentation(**dataclasses.asdict(schema.AugmentSettings(**settings))), 0, "1023"
    )
    batches = pipeline.train_batches(
        data,
        tokenizer,
        spec,
        seed=0,
        total_steps=args.steps + WARM_UP,
        augmentation=augmentation,
    )
    return rate(batches, args)


def rate(batches, args) -> float:
    """Returns images per second, the first batches left out."""
    for _ in range(WARM_UP):
        next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return args.steps * args.batch_size / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
