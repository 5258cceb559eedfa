"""Draw scenes of one handwritten digit each, for a base and for what it is adapted to.

    python experiments/adapters/make_data.py --out data/adapters

Real digits of scikit-learn, 28 px wide, on 56 px of grey. In `base` their corners lie on the
model's grid of 14 px patches: 9 places. In `new` they lie on a grid of half patches: 25 places, of
which the base has seen 9. Digits are split before scenes are drawn: no test digit is ever trained
on. A scene depends on (folder, split, index) alone.
"""

import argparse
import json
import pathlib

import numpy as np
from PIL import Image
from sklearn import datasets

from paligemma_jax.data import tokens

SIDE, DIGIT, LINES = 56, 28, 16  # pixels, pixels, and lines that boxes end on
STEPS = {"base": 14, "new": 7}  # pixels between two places
SPLITS = {"train": (6000, slice(0, 1300)), "test": (300, slice(1300, 1797))}


def draw(digit, y, x):
    """Returns uint8[SIDE, SIDE], an 8 x 8 digit in 0..16 enlarged on mid-grey."""
    scene = np.full((SIDE, SIDE), 128, np.uint8)
    small = Image.fromarray((128 + digit * (127 / 16)).astype(np.uint8))
    large = small.resize((DIGIT, DIGIT), Image.Resampling.BILINEAR)
    scene[y : y + DIGIT, x : x + DIGIT] = np.asarray(large)
    return scene


def write(folder, split, count, step, seed):
    """Writes the images and rows of one split."""
    data, (_, part) = datasets.load_digits(), SPLITS[split]
    digits, labels = data.images[part], data.target[part]
    rows = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        y, x = (rng.integers(0, (SIDE - DIGIT) // step + 1, size=2) * step).tolist()
        number = rng.integers(len(digits))
        name = f"{split}_{index:04d}.png"
        Image.fromarray(draw(digits[number], y, x)).save(folder / name, compress_level=1)
        lines = (round(v * LINES / SIDE) for v in (y, x, y + DIGIT, x + DIGIT))
        box = "".join(f"<loc{round(line / LINES * 1023):04d}>" for line in lines)
        row = {"image": name, "prefix": "detect digit", "suffix": f"{box} {labels[number]}"}
        rows.append(json.dumps(row) + "\n")
    (folder / f"{split}.jsonl").write_text("".join(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("data/adapters"))
    for split, (count, _) in SPLITS.items():
        parser.add_argument(f"--{split}", type=int, default=count, help=f"scenes of each {split}")
    args = parser.parse_args()
    for place, (name, step) in enumerate(STEPS.items()):
        folder = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, split in enumerate(SPLITS):
            count = getattr(args, split)
            write(folder, split, count, step, seed=10 * place + number)
    texts = ["detect digit", *(f" {c}" for c in range(10))]
    tokens.train_tokenizer(texts, args.out / "tokenizer.model")


if __name__ == "__main__":
    main()
