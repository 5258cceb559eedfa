"""Compose detection scenes from the real handwritten digits that ship with scikit-learn.

    python experiments/digits/make_data.py --out data/digits --placement grid
    python experiments/digits/make_data.py --out data/digits_free --placement free
    python experiments/digits/make_data.py --out data/digits_faint --placement cells --faint
    python experiments/digits/make_data.py --out data/digits_counted --placement cells --counted

writes `_annotations.{train,valid,test}.jsonl`, the PNGs beside them, and `tokenizer.model`. A row:

    {"image": "train_00012.png", "prefix": "detect 3 ; 5 ; 7", "suffix": "<loc...>... 7 ; ..."}

A scene shows one to three digits of different classes that do not overlap, on mid-grey.

placement cells: digits of 28 px, each in one of 4 x 4 cells.
placement grid: digits of 28 px whose corners lie on the 14 px patch grid of the model.
placement free: digits of 20 to 48 px anywhere; boxes end on the nearest of 33 lines, 3.5 px apart.

faint: up to five digits, each of its own contrast down to none, under grain, all of them labelled
"digit": the question is whether there is one. The prompt is "detect digit".

counted: one to four digits of up to three classes, and how many there are of each, as
`import_data --task counting` words it; no boxes.

Else the prompt names, in rising order, the classes in the scene and one class that is not there, so
a single digit is never given away. Digits are split before anything is composed: train, valid and
test scenes share no digit image. A scene depends on (split, index) alone: every run writes the same
pixels.
"""

import argparse
import collections
import functools
import json
import pathlib

import numpy as np
from PIL import Image
from sklearn import datasets

from paligemma_jax.data import tokens
from paligemma_jax.tasks import task

SIDE = 112  # pixels per side
BACKGROUND = 128  # mid-grey is 0 once normalized: an empty patch says only where it is
PATCH = 14  # pixels per side of the model's patches
CELLS = 32  # boxes end on lines of this grid; line k becomes <loc{round(k / 32 * 1023)}>
KINDS = {  # flag: the question; without one: which digits are there, and where?
    "faint": "is there a digit? up to five",
    "counted": "how many of each digit? up to four",
}
MAX_DIGITS = {None: 3, "faint": 5, "counted": 4}
GRAIN = 32  # standard deviation of a faint scene's grain, in grey levels
FAINT_LABEL = "digit"
MAX_COUNTED_CLASSES = 3
COUNT_PROMPT = task.rule("counting").prompt.format(classes=" ; ".join(map(str, range(10))))
TEXTS = {  # what the tokenizer learns from
    None: [f"detect {c} ; {(c + 3) % 10}" for c in range(10)] + [f" {c} ; " for c in range(10)],
    "faint": [f"detect {FAINT_LABEL}", f" {FAINT_LABEL} ; "],
    "counted": [COUNT_PROMPT, json.dumps(dict.fromkeys(range(10), 1), indent=2)],
}
SPLITS = {  # name: (seed, scenes, digits of load_digits() to draw from)
    "train": (1, 20_000, slice(0, 1300)),
    "valid": (2, 200, slice(1300, 1450)),
    "test": (3, 400, slice(1450, 1797)),
}


def loc_token(line):
    """Returns the token of grid line 0..CELLS, by the round(x * 1023) convention of big_vision."""
    return f"<loc{round(line / CELLS * 1023):04d}>"


def format_suffix(objects):
    """Writes [((y1, x1, y2, x2) in grid lines, label)] in reading order: by y1, then x1."""
    return " ; ".join("".join(map(loc_token, box)) + f" {label}" for box, label in sorted(objects))


def format_counts(labels):
    """Writes {"3": 2, "7": 1} on indented lines, in rising order, without zeros."""
    return json.dumps(collections.Counter(sorted(labels)), indent=2)


def cell_square(rng):
    """Returns (y, x, side) in pixels of one of 4 x 4 cells."""
    y, x = rng.integers(0, SIDE // (2 * PATCH), size=2) * 2 * PATCH
    return int(y), int(x), 2 * PATCH


def grid_square(rng):
    """Returns (y, x, side) in pixels of a 28 px square on the patch grid."""
    y, x = rng.integers(0, SIDE // PATCH - 1, size=2) * PATCH
    return int(y), int(x), 2 * PATCH


def free_square(rng):
    """Returns (y, x, side) in pixels of a square of any size, anywhere inside the scene."""
    side = int(rng.integers(20, 49))
    y, x = rng.integers(0, SIDE - side + 1, size=2)
    return int(y), int(x), side


PLACEMENTS = {"cells": cell_square, "grid": grid_square, "free": free_square}


def overlap(a, b):
    """Says whether two squares (y, x, side) share a pixel."""
    return all(a[i] < b[i] + b[2] and b[i] < a[i] + a[2] for i in (0, 1))


def place_squares(rng, random_square, count):
    """Returns `count` squares that do not overlap, or fewer after 50 tries."""
    squares = []
    for _ in range(50):
        if len(squares) == count:
            break
        new = random_square(rng)
        if not any(overlap(new, old) for old in squares):
            squares.append(new)
    return squares


def choose_digits(rng, labels, count):
    """Returns indices of `count` digits of different classes."""
    classes = rng.permutation(10)[:count]
    return [int(rng.choice(np.flatnonzero(labels == c))) for c in classes]


def choose_counted(rng, labels, count):
    """Returns indices of `count` digits of up to three classes: some classes come repeatedly."""
    classes = rng.permutation(10)[:MAX_COUNTED_CLASSES]
    chosen = np.flatnonzero(np.isin(labels, classes))
    return rng.choice(chosen, size=count, replace=False).tolist()


def draw_digit(canvas, digit, square, contrast=1.0):
    """Writes an 8x8 digit in 0..16, enlarged to its square, into the uint8 canvas."""
    y, x, side = square
    grey = BACKGROUND + digit * (contrast * (255 - BACKGROUND) / 16)
    small = Image.fromarray(grey.astype(np.uint8))
    canvas[y : y + side, x : x + side] = np.asarray(small.resize((side, side), Image.BILINEAR))


def add_grain(rng, canvas):
    """Returns the uint8 canvas with normal noise on every pixel."""
    noisy = canvas + GRAIN * rng.standard_normal(canvas.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def make_prompt(rng, present):
    """Names the classes present and one that is absent, in rising order."""
    absent = rng.choice([c for c in range(10) if c not in present])
    return "detect " + " ; ".join(str(c) for c in sorted([*present, int(absent)]))


def make_example(seed, index, *, digits, labels, random_square, kind):
    """Composes one scene: (uint8[SIDE, SIDE], prompt, suffix, number of digits)."""
    rng = np.random.default_rng((seed, index))
    squares = place_squares(rng, random_square, rng.integers(1, MAX_DIGITS[kind] + 1))
    choose = choose_counted if kind == "counted" else choose_digits
    chosen = choose(rng, labels, len(squares))
    canvas, objects = np.full((SIDE, SIDE), BACKGROUND, np.uint8), []
    for square, i in zip(squares, chosen, strict=True):
        draw_digit(canvas, digits[i], square, rng.uniform() if kind == "faint" else 1.0)
        y, x, side = square
        box = tuple(round(v * CELLS / SIDE) for v in (y, x, y + side, x + side))
        objects.append((box, int(labels[i])))
    present = [label for _, label in objects]
    if kind == "faint":
        named = [(box, FAINT_LABEL) for box, _ in objects]
        return add_grain(rng, canvas), f"detect {FAINT_LABEL}", format_suffix(named), len(named)
    if kind == "counted":
        return canvas, COUNT_PROMPT, format_counts(present), len(present)
    return canvas, make_prompt(rng, present), format_suffix(objects), len(objects)


def write_split(out, name, *, count, make):
    """Writes PNGs and JSONL of the scenes make(0), make(1), ...; returns the number of digits."""
    rows, total = [], 0
    for index in range(count):
        pixels, prompt, suffix, num_digits = make(index)
        image = f"{name}_{index:05d}.png"
        Image.fromarray(pixels).save(out / image, compress_level=1)
        rows.append(json.dumps(dict(image=image, prefix=prompt, suffix=suffix)))
        total += num_digits
        if index % 1000 == 999:
            print(f"\r{name}: {index + 1} of {count}", end="", flush=True)
    (out / f"_annotations.{name}.jsonl").write_text("\n".join(rows) + "\n")
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    parser.add_argument("--placement", choices=sorted(PLACEMENTS), default="grid")
    kinds = parser.add_mutually_exclusive_group()
    for kind, text in KINDS.items():
        kinds.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind, help=text)
    for name, (_, count, _) in SPLITS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"scenes of {name}")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    data = datasets.load_digits()
    for name, (seed, _, part) in SPLITS.items():
        count = getattr(args, name)
        make = functools.partial(
            make_example,
            seed,
            digits=data.images[part],
            labels=data.target[part],
            random_square=PLACEMENTS[args.placement],
            kind=args.kind,
        )
        num_digits = write_split(args.out, name, count=count, make=make)
        print(f"\r{args.out}/_annotations.{name}.jsonl: {count} scenes, {num_digits} digits")
    tokens.train_tokenizer(TEXTS[args.kind], args.out / "tokenizer.model")


if __name__ == "__main__":
    main()
