"""Draw scenes of two shapes for "segment bright" and "segment dark", their masks as tokens.

    python experiments/segmentation/make_data.py --out data/shapes

writes `_annotations.{train,valid,test}.jsonl`, the PNGs beside them, and `tokenizer.model`. A row:

    {"image": "train_00012.png", "prefix": "segment dark", "suffix": "<loc..>x4<seg..>x16 star",
     "width": 112, "height": 112, "objects": [{"label": "star", "box": [..], "segmentation": {..}}]}

A scene shows two shapes on mid-grey, one brighter and one darker, each an ellipse, triangle, star,
crescent or ring at any angle, stretched into a box; boxes do not overlap and are three or four
patches of 14 px high and wide. The prompt asks for one of the two, the answer says its box, mask
and kind. The suffix's mask tokens are the codec's; `objects` holds the very pixels, which answers
are scored by.
A scene depends on (split, index) alone: every run writes the same pixels.
"""

import argparse
import json
import pathlib

import numpy as np
from PIL import Image

from paligemma_jax.assembly import weights
from paligemma_jax.data import objects, tokens
from paligemma_jax.tasks import geometry, mask_text

CODEC = pathlib.Path(__file__).parents[1] / "mask_codec" / "codec.npz"
SIDE, PATCH = 112, 14  # px per side of a scene, and of the patches that boxes are made of
SIDES = (42, 56)  # px, the least and the largest side of a box
CANVAS = 128  # px on which a shape is drawn before it is cut to its box
YY, XX = (np.mgrid[:CANVAS, :CANVAS].astype(np.float32) + 0.5) / CANVAS * 2 - 1  # in -1..1
SPLITS = {"train": (1, 30_000), "valid": (2, 200), "test": (3, 400)}  # name: (seed, scenes)
CHUNK = 500  # scenes whose masks are encoded together
GREY = 0.5  # of the background: 0 once normalized
SHADES = {"bright": (0.8, 1.0), "dark": (0.0, 0.2)}


def ellipse(along, across):
    return along**2 + (across / 0.5) ** 2 < 1


def triangle(along, across):
    return (along > -0.5) & (np.abs(across) < (1 - along) / np.sqrt(3))


def star(along, across):
    phase = np.abs(np.mod(np.arctan2(across, along) * 5 / (2 * np.pi), 1) * 2 - 1)
    return np.hypot(along, across) < 0.45 + 0.55 * phase


def crescent(along, across):
    return (np.hypot(along, across) < 1) & (np.hypot(along - 0.5, across) > 0.8)


def ring(along, across):
    distance = np.hypot(along, across)
    return (distance < 1) & (distance > 0.5)


KINDS = {
    "ellipse": ellipse,
    "triangle": triangle,
    "star": star,
    "crescent": crescent,
    "ring": ring,
}


def random_box(rng):
    """Returns int[4] y1 x1 y2 x2 in px, on the patch grid."""
    size = rng.integers(SIDES[0] // PATCH, SIDES[1] // PATCH + 1, size=2)
    start = rng.integers(0, SIDE // PATCH - size + 1)
    return np.concatenate([start, start + size]) * PATCH


def place_two(rng):
    """Returns two boxes that share no pixel."""
    while True:
        first, second = random_box(rng), random_box(rng)
        if (first[2:] <= second[:2]).any() or (second[2:] <= first[:2]).any():
            return first, second


def draw_shape(rng, kind, height, width):
    """Returns float32[height, width] in 0..1: a shape at any angle that touches all four sides."""
    angle = rng.uniform(0, 2 * np.pi)
    along = XX * np.cos(angle) + YY * np.sin(angle)
    across = YY * np.cos(angle) - XX * np.sin(angle)
    mask = KINDS[kind](along / 0.9, across / 0.9)
    return geometry.resize_linear(geometry.crop_mask(mask, geometry.find_box(mask)), height, width)


def make_scene(seed, index):
    """Returns (uint8[SIDE, SIDE] picture, shade asked for, its shape: (kind, mask, box))."""
    rng = np.random.default_rng((seed, index))
    canvas, shapes = np.full((SIDE, SIDE), GREY), {}
    for shade, (y1, x1, y2, x2) in zip(rng.permutation(list(SHADES)), place_two(rng), strict=True):
        kind = str(rng.choice(list(KINDS)))
        shape = draw_shape(rng, kind, y2 - y1, x2 - x1)
        canvas[y1:y2, x1:x2] += shape * (rng.uniform(*SHADES[shade]) - GREY)
        mask = np.zeros((SIDE, SIDE), bool)
        mask[y1:y2, x1:x2] = shape > 0.5
        shapes[str(shade)] = (kind, mask, (y1, x1, y2, x2))
    asked = str(rng.choice(list(SHADES)))
    return np.rint(canvas * 255).astype(np.uint8), asked, shapes[asked]


def write_split(out, name, *, seed, count, codec):
    """Writes `count` PNGs and their JSONL; returns the share of their boxes that masks fill."""
    rows, filled = [], []
    for start in range(0, count, CHUNK):
        scenes = [make_scene(seed, index) for index in range(start, min(start + CHUNK, count))]
        kinds, drawn, boxes = zip(*(shape for _, _, shape in scenes), strict=True)
        regions = geometry.Regions(np.float32(boxes) / SIDE, kinds, np.stack(drawn))
        suffixes = mask_text.format(mask_text.encode(regions, codec.encode)).split(" ; ")
        for index, (picture, asked, (kind, mask, box)) in enumerate(scenes, start):
            image, (y1, x1, y2, x2) = f"{name}_{index:05d}.png", map(int, box)
            Image.fromarray(picture).save(out / image, compress_level=1)
            kept = objects.make(SIDE, SIDE, [kind], [x1, y1, x2, y2], [objects.encode_bitmap(mask)])
            row = {"image": image, "prefix": f"segment {asked}", "suffix": suffixes[index - start]}
            rows.append(json.dumps({**row, **objects.to_row(kept)}))
            filled.append(mask[y1:y2, x1:x2].mean())
        print(f"\r{name}: {start + len(scenes)} of {count}", end="", flush=True)
    (out / f"_annotations.{name}.jsonl").write_text("\n".join(rows) + "\n")
    return np.mean(filled)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write")
    for name, (_, count) in SPLITS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"scenes of {name}")
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    codec = weights.load_codec(str(CODEC))
    for name, (seed, _) in SPLITS.items():
        count = getattr(args, name)
        filled = write_split(args.out, name, seed=seed, count=count, codec=codec)
        path = args.out / f"_annotations.{name}.jsonl"
        print(f"\r{path}: {count} scenes; shapes asked for fill {filled:.0%} of their boxes")
    texts = [f"segment {shade}" for shade in SHADES] + [f" {kind}" for kind in KINDS]
    tokens.train_tokenizer(texts, args.out / "tokenizer.model")


if __name__ == "__main__":
    main()
