"""Draw the curve of a pretraining run, and some rows of the mixture, for README.

    python experiments/tiny_base/figures.py --data data/tiny_base --run runs/tiny_base \\
        --out experiments/tiny_base

writes curve.png, mixture.png and pretraining.json (losses of the held-out rows, by kind of prompt).
"""

import argparse
import json
import pathlib
import re

import config
import matplotlib as mpl
import numpy as np
import rows
from PIL import Image, ImageDraw

from paligemma_jax.reports import run_log

mpl.use("Agg")
from matplotlib import pyplot as plt

SIDE, COLUMNS, LINES = 168, 6, 3
KINDS = ("alone-valid", *rows.KINDS)
BOX = re.compile(r"<loc(\d{4})>" * 4)
PLACES = re.compile(r"(<(loc|seg)\d+>)+ ?")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("data", "run", "out"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    args = parser.parse_args()
    draw_rows(args.data, args.out / "mixture.png")
    found = read(args.run)
    draw_curve(found, args.out / "curve.png")
    last = {kind: [r[f"{kind}/loss"] for r in found if f"{kind}/loss" in r] for kind in KINDS}
    losses = {kind: round(values[-1], 3) for kind, values in last.items() if values}
    result = {"steps": found[-1]["step"], "losses": losses}
    (args.out / "pretraining.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def read(folder):
    """Returns what the stages of pretraining logged, or one run, their steps counted on."""
    found, before = [], 0
    for run in [folder / stage for stage in config.STAGES if (folder / stage).exists()] or [folder]:
        logged = run_log.read_rows(run / "metrics.jsonl")
        found += [row | {"step": row["step"] + before} for row in logged]
        before = found[-1]["step"]
    return found


def draw_curve(found, path):
    figure, axes = plt.subplots(figsize=(7, 4))
    steps, losses = np.array([(r["step"], r["loss"]) for r in found if "loss" in r]).T
    axes.plot(steps, losses, color="0.8", label="training, single batches")
    for kind in KINDS:
        some = [(r["step"], r[f"{kind}/loss"]) for r in found if f"{kind}/loss" in r]
        if some:
            axes.plot(*np.array(some).T, marker="o", markersize=3, label=kind)
    axes.set(xlabel="step", ylabel="loss a piece, held-out rows", ylim=(0, 6))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def draw_rows(data, path):
    """Writes some held-out rows, three of a kind: picture, boxes of the answer, prompt, answer."""
    sheet = Image.new("RGB", (COLUMNS * SIDE, LINES * (SIDE + 30)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, kind in enumerate(rows.KINDS):
        lines = (data / f"_annotations.{kind}.jsonl").read_text().splitlines()
        for line, row in enumerate(map(json.loads, lines[:LINES])):
            with Image.open(data / row["image"]) as image:
                picture = image.resize((SIDE - 4, SIDE - 4))
            pencil = ImageDraw.Draw(picture)
            for match in BOX.finditer(row["suffix"]):
                y1, x1, y2, x2 = (int(v) / 1023 * (SIDE - 5) for v in match.groups())
                pencil.rectangle((x1, y1, x2, y2), outline=(0, 230, 0))
            x, y = column * SIDE + 2, line * (SIDE + 30) + 2
            sheet.paste(picture, (x, y))
            answer = PLACES.sub("", row["suffix"]).replace("\n", " ")
            for below, text in ((SIDE - 4, row["prefix"]), (SIDE + 9, answer)):
                draw.text((x, y + below), text[:25], fill="black")
    sheet.quantize(128).save(path, optimize=True)


if __name__ == "__main__":
    main()
