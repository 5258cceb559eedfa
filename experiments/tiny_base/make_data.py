"""Compose the mixture that the small base is pretrained on, in parts.

    python experiments/tiny_base/make_data.py --out data/tiny_base

writes `images/`, `_annotations.{train,valid}.jsonl`, rows that ask for one thing alone
(`_annotations.{alone,alone-valid}.jsonl`), the training rows that have an answer
(`_annotations.answered.jsonl`), of the held-out scenes one file a kind
(`_annotations.detect.jsonl`, ...), and `tokenizer.model`. A row:

    {"image": "images/train_000012.jpg", "prefix": "detect star", "suffix": "<loc...>... star"}

A scene of 224 px gives up to three rows. Scenes are drawn in parts of 500, each written whole or
not at all: stopped anywhere, the same command goes on. A scene depends on (split, index) alone, so
every run writes the same pixels.
"""

import argparse
import collections
import functools
import json
import pathlib
import re

import numpy as np
import rows
import scenes
import sources
from PIL import Image

from paligemma_jax.assembly import weights
from paligemma_jax.console import say
from paligemma_jax.data import tokens
from paligemma_jax.files import atomic
from paligemma_jax.tasks import geometry

ROOT = pathlib.Path(__file__).parents[2]
CODEC = ROOT / weights.OWN_CODEC
SPLITS = {"train": (11, 24_000), "valid": (12, 800)}  # name: (seed, scenes)
PART = 500  # scenes
ROWS_PER_SCENE = {"train": 3, "valid": 5}
VOCABULARY = 4096  # pieces, <loc> and <seg> included
TEXT_LEN = 36  # tokens of a row: longer ones are left out
WORD = re.compile(r"[a-z]{2,7}")
LEAST_USED = 4  # times that a word must occur to be written on pictures


@functools.cache
def prose():
    """Returns English text that a package ships: scikit-learn's descriptions of its data."""
    files = sorted((sources.SKLEARN / "descr").glob("*.rst"))
    return [file.read_text() for file in files]


@functools.cache
def words():
    """Returns the usual short words of that text, to be written on pictures."""
    counts = collections.Counter(WORD.findall(" ".join(prose())))
    return sorted(word for word, count in counts.items() if count >= LEAST_USED)


def encode_masks(codec, masks):
    """Returns int[n, 16], the codes of mode-L masks that fill their boxes."""
    side = (geometry.MASK_SIDE, geometry.MASK_SIDE)
    small = [np.asarray(mask.resize(side, Image.Resampling.BILINEAR)) for mask in masks]
    return codec.encode(np.stack(small).astype(np.float32) / 255)


def write_part(out, split, start, stop, codec):
    """Draws scenes start .. stop - 1 and writes their pictures, then their rows."""
    path = out / "parts" / f"{split}-{start:06d}-{stop - start}.jsonl"
    if path.exists():
        return path
    seed, _ = SPLITS[split]
    written = []
    for index in range(start, stop):
        scene = scenes.make(seed, index, part=sources.PARTS[split], words=words())
        rng = np.random.default_rng((seed, index, 1))
        image = f"images/{split}_{index:06d}.jpg"
        encode = functools.partial(encode_masks, codec)
        made = rows.make(rng, scene, count=ROWS_PER_SCENE[split], encode=encode)
        made += rows.alone(np.random.default_rng((seed, index, 2)), scene)
        scene.picture.save(out / image, quality=int(rng.integers(80, 96)))
        for prefix, suffix, kind in made:
            row = {"image": image, "prefix": prefix, "suffix": suffix, "kind": kind}
            written.append(json.dumps(row))
    atomic.write_bytes(path, ("\n".join(written) + "\n").encode())
    return path


def write_split(out, split, count, codec):
    """Returns the rows of a split, drawn where they are not there yet."""
    paths = []
    with say.progress(f"drawing {split}", unit="scenes") as report:
        for start in range(0, count, PART):
            stop = min(start + PART, count)
            paths.append(write_part(out, split, start, stop, codec))
            report(stop, count)
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def make_tokenizer(out, found):
    """Trains the tokenizer on the first rows and on prose, unless it is there."""
    path = out / "tokenizer.model"
    if path.exists():
        return tokens.load_sentencepiece(path)
    texts = [text for row in found[:6000] for text in (row["prefix"], f" {row['suffix']}")]
    letters = [" ".join(map(chr, range(33, 127)))]
    return tokens.train_tokenizer([*texts, *prose(), *letters], path, vocab_size=VOCABULARY)


def write_rows(path, found, tokenizer):
    """Writes the rows that fit; returns how many of each kind there are."""

    def length(row):  # bos, newline; the answer's last token is eos
        return len(tokenizer.encode(row["prefix"])) + len(tokenizer.encode(row["suffix"])) + 2

    kept = [row for row in found if length(row) <= TEXT_LEN]
    text = "\n".join(json.dumps(row) for row in kept) + "\n"
    atomic.write_bytes(path, text.encode())
    return collections.Counter(row["kind"] for row in kept)


def pick(found, *kinds):
    """Returns the rows of these kinds."""
    return [row for row in found if row["kind"] in kinds]


def write(out, train, valid):
    """Writes everything that is not there yet."""
    for folder in ("images", "parts"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    codec = weights.load_codec(str(CODEC))
    found = {
        split: write_split(out, split, count, codec)
        for split, count in (("train", train), ("valid", valid))
    }
    further = {"alone": pick(found["train"], rows.ALONE)}
    further["alone-valid"] = pick(found["valid"], rows.ALONE)
    further["answered"] = [row for row in pick(found["train"], *rows.KINDS) if row["suffix"]]
    found = {split: pick(some, *rows.KINDS) for split, some in found.items()}
    tokenizer = make_tokenizer(out, found["train"])
    for split, some in (found | further).items():
        path = out / f"_annotations.{split}.jsonl"
        counts = write_rows(path, some, tokenizer)
        print(f"{path}: {sum(counts.values())} rows, {dict(counts)}")
    for kind in rows.KINDS:
        write_rows(out / f"_annotations.{kind}.jsonl", pick(found["valid"], kind), tokenizer)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    for name, (_, count) in SPLITS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"scenes of {name}")
    args = parser.parse_args()
    say.show_on_stderr()
    write(args.out, args.train, args.valid)


if __name__ == "__main__":
    main()
