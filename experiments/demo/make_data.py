"""Draw a small X-ray-like detection data set in the layout that Roboflow exports.

    python experiments/demo/make_data.py --out data/demo

writes `_annotations.{train,valid,test}.jsonl`, the PNGs beside them, and `tokenizer.model`. A row:

    {"image": "train_00012.png", "prefix": "detect fracture", "suffix": "<loc...>... fracture"}

A picture shows one or two bones at random place and angle over grainy tissue, with none, one or
two fractures: dark oblique gaps. 15% of the pictures have none, and an empty suffix. Tissue is
close to mid-grey, which is 0 once normalized, and bones are faint beside the gaps: a small model
that starts from nothing finds first what stands out of its patches.

Boxes lie on a grid of 32 cells per side: 1024 free bins are too many to learn from nothing. Line k
of the grid is k/32 of the side and becomes `<loc{round(k / 32 * 1023):04d}>`, k = 0..32.
A picture depends on (split, index) alone, so every run writes the same pixels.
"""

import argparse
import json
import math
import pathlib

import numpy as np
from PIL import Image

from paligemma_jax.console import say
from paligemma_jax.data import tokens

SIDE = 112  # pixels per side
CELLS = 32  # boxes end on lines of this grid
LABEL = "fracture"
SPLITS = {"train": (1, 6000), "valid": (2, 100), "test": (3, 200)}  # name: (seed, images)
COUNT_PROBABILITIES = (0.15, 0.55, 0.30)  # of 0, 1, 2 fractures
MIN_DISTANCE = 40.0  # pixels between the centres of two fractures
YY, XX = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5  # pixel centres


def loc_token(line):
    """Returns the token of grid line 0..CELLS, by the round(x * 1023) convention of big_vision."""
    return f"<loc{round(line / CELLS * 1023):04d}>"


def format_suffix(boxes):
    """Writes boxes int[n, 4] (y1, x1, y2, x2 in grid lines) in reading order: by y1, then x1."""
    return " ; ".join("".join(map(loc_token, box)) + f" {LABEL}" for box in sorted(boxes))


def draw_tissue(rng):
    """Returns float32[SIDE, SIDE] in 0..1: a soft blob of tissue, uneven exposure, no bones yet."""
    cy, cx = rng.uniform(0.3, 0.7, size=2) * SIDE
    spread = rng.uniform(0.45, 0.7) * SIDE
    blob = np.exp(-((YY - cy) ** 2 + (XX - cx) ** 2) / (2 * spread**2))
    tilt = rng.uniform(-0.08, 0.08, size=2)
    return 0.38 + 0.10 * blob + tilt[0] * (YY / SIDE - 0.5) + tilt[1] * (XX / SIDE - 0.5)


def bone_coordinates(bone, y, x):
    """Returns signed distances in pixels (along the bone from its centre, across its axis)."""
    dy, dx = y - bone["y"], x - bone["x"]
    sin, cos = math.sin(bone["angle"]), math.cos(bone["angle"])
    return dx * cos + dy * sin, dy * cos - dx * sin


def random_bone(rng):
    """Returns centre, angle, half length and half width of a bone; angle 0 is horizontal."""
    return dict(
        y=rng.uniform(0.25, 0.75) * SIDE,
        x=rng.uniform(0.25, 0.75) * SIDE,
        angle=rng.uniform(0, math.pi),
        half_length=rng.uniform(0.36, 0.5) * SIDE,
        half_width=rng.uniform(7.0, 10.0),
        brightness=rng.uniform(0.58, 0.68),
    )


def draw_bone(canvas, bone):
    """Adds a bone: a shaft with bright walls and flared ends."""
    along, across = bone_coordinates(bone, YY, XX)
    flare = 1 + 0.35 * (np.clip(np.abs(along) / bone["half_length"], 0, 1)) ** 6
    depth = bone["half_width"] * flare - np.abs(across)  # pixels inside the wall
    end = bone["half_length"] - np.abs(along)
    inside = np.clip(np.minimum(depth, end) + 0.5, 0, 1)
    wall = np.exp(-((depth - 1.5) ** 2) / 4)
    return np.maximum(canvas, inside * bone["brightness"] * (0.9 + 0.2 * wall))


def random_fracture(rng, bone):
    """Returns a fracture of the bone, centred at (y, x) in pixels; None if near the edge."""
    along = rng.uniform(-0.75, 0.75) * bone["half_length"]
    y = bone["y"] + along * math.sin(bone["angle"])
    x = bone["x"] + along * math.cos(bone["angle"])
    if min(y, x) < 12 or max(y, x) > SIDE - 12:
        return None
    slant, gap = rng.uniform(-0.6, 0.6), rng.uniform(3.0, 4.0)
    return dict(bone=bone, along=along, y=y, x=x, slant=slant, gap=gap)


def draw_fracture(canvas, fracture):
    """Darkens a ragged oblique gap through the bone, `gap` pixels to each side of the crack."""
    bone = fracture["bone"]
    along, across = bone_coordinates(bone, YY, XX)
    ragged = 0.8 * np.sin(across * 0.9 + fracture["along"])
    crack = np.abs(along - fracture["along"] - fracture["slant"] * across - ragged)
    gap = np.clip(fracture["gap"] + 0.5 - crack, 0, 1)
    gap *= np.clip(bone["half_width"] + 3.0 - np.abs(across), 0, 1)
    return canvas * (1 - 0.95 * gap)


def fracture_box(fracture):
    """Returns (y1, x1, y2, x2) in grid lines around the crack and a piece of shaft to each side."""
    bone = fracture["bone"]
    half_along, half_across = 14.0, bone["half_width"] + 6.0
    sin, cos = abs(math.sin(bone["angle"])), abs(math.cos(bone["angle"]))
    half_y = half_along * sin + half_across * cos
    half_x = half_along * cos + half_across * sin
    y, x, cell = fracture["y"], fracture["x"], SIDE / CELLS
    lines = [(y - half_y) / cell, (x - half_x) / cell, (y + half_y) / cell, (x + half_x) / cell]
    return tuple(int(np.clip(round(line), 0, CELLS)) for line in lines)


def random_fractures(rng, bones, count):
    """Returns `count` fractures whose centres keep MIN_DISTANCE, or fewer after 50 tries."""
    fractures = []
    for _ in range(50):
        if len(fractures) == count:
            break
        new = random_fracture(rng, bones[rng.integers(len(bones))])
        if new and all(
            math.hypot(new["y"] - f["y"], new["x"] - f["x"]) > MIN_DISTANCE for f in fractures
        ):
            fractures.append(new)
    return fractures


def make_example(seed, index):
    """Returns (uint8[SIDE, SIDE] picture, list of boxes in grid lines) of one index of a split."""
    rng = np.random.default_rng((seed, index))
    bones = [random_bone(rng) for _ in range(rng.integers(1, 3))]
    count = rng.choice(len(COUNT_PROBABILITIES), p=COUNT_PROBABILITIES)
    fractures = random_fractures(rng, bones, count)
    canvas = draw_tissue(rng)
    for bone in bones:
        canvas = draw_bone(canvas, bone)
    for fracture in fractures:
        canvas = draw_fracture(canvas, fracture)
    grain = rng.standard_normal((SIDE, SIDE), dtype=np.float32) * rng.uniform(0.02, 0.04)
    pixels = np.clip(canvas + grain, 0, 1) * 255
    return pixels.astype(np.uint8), [fracture_box(f) for f in fractures]


def write_split(out, name, *, seed, count):
    """Writes `count` PNGs and their JSONL; returns the number of boxes."""
    rows, num_boxes = [], 0
    with say.progress(f"drawing {name}", unit="images") as report:
        for index in range(count):
            pixels, boxes = make_example(seed, index)
            image = f"{name}_{index:05d}.png"
            Image.fromarray(pixels).save(out / image, compress_level=1)
            row = dict(image=image, prefix=f"detect {LABEL}", suffix=format_suffix(boxes))
            rows.append(json.dumps(row))
            num_boxes += len(boxes)
            report(index + 1, count)
    (out / f"_annotations.{name}.jsonl").write_text("\n".join(rows) + "\n")
    return num_boxes


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    for name, (_, count) in SPLITS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"images of {name}")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    for name, (seed, _) in SPLITS.items():
        count = getattr(args, name)
        num_boxes = write_split(args.out, name, seed=seed, count=count)
        print(f"{args.out}/_annotations.{name}.jsonl: {count} images, {num_boxes} fractures")
    tokens.train_tokenizer([f"detect {LABEL}", f" {LABEL} ; "], args.out / "tokenizer.model")


if __name__ == "__main__":
    main()
