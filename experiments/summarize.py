"""Make a run's figures for an experiment's README: results.json, a curve and a sheet of pictures.

    python experiments/summarize.py --run runs/demo --out experiments/demo --name demo

Reads what train and evaluate wrote (metrics.jsonl, evaluation-*/metrics.json and predictions.jsonl)
and writes NAME.json, NAME-curve.png and NAME-pictures.png into the experiment's folder.
"""

import argparse
import json
import pathlib

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw

from paligemma_jax.reports import drawing, run_log

mpl.use("Agg")
from matplotlib import pyplot as plt

BOXES = ("map", "map50", "map75", "precision50", "recall50")
MASKS = ("miou", "box_accuracy50", "box_accuracy75", "pixel_iou", "correct", "invalid")
COUNTS = ("count_exact", "json_f1", "json_valid", "num_examples")
KEPT = (*BOXES, *MASKS, *COUNTS, "count_correct", "loss", "num_images")
# The score that a task is followed by.
LEADING = {"map50": "mAP50", "miou": "mIoU", "count_exact": "all counts right"}
SIDE, GAP, COLUMNS = 224, 6, 4  # pixels, pixels, pictures in a row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--name", required=True)
    args = parser.parse_args()
    rows = run_log.read_rows(args.run / "metrics.jsonl")
    scores = {
        folder.name.removeprefix("evaluation-"): read_scores(folder)
        for folder in sorted(args.run.glob("evaluation-*"))
    }
    result = {"scores": scores, "steps": rows[-1]["step"], "config": read_config(args.run)}
    (args.out / f"{args.name}.json").write_text(json.dumps(result, indent=2) + "\n")
    draw_curve(rows, args.out / f"{args.name}-curve.png")
    predictions = (args.run / "evaluation-test" / "predictions.jsonl").read_text().splitlines()
    draw_pictures(
        [json.loads(line) for line in predictions], args.out / f"{args.name}-pictures.png"
    )


def read_scores(folder: pathlib.Path) -> dict:
    """Returns the summary scores of one evaluation."""
    scores = json.loads((folder / "metrics.json").read_text())
    kept = {key: scores[key] for key in KEPT if key in scores}
    leading = next(key for key in LEADING if key in scores)
    if "per_class" in scores:
        per_class = {name: values[leading] for name, values in scores["per_class"].items()}
        kept[f"{leading}_per_class"] = per_class
    return kept


def read_config(run: pathlib.Path) -> dict:
    """Returns the settings that the recipe is made of."""
    config = json.loads((run / "config.json").read_text())
    chosen = ("res", "model", "optax_name", "optax", "lr", "schedule", "grad_clip_norm", "seed")
    return {**{key: config[key] for key in chosen}, "batch_size": config["input"]["batch_size"]}


def draw_curve(rows: list[dict], path: pathlib.Path) -> None:
    """Draws losses (left axis) and the validation score (right axis) over steps."""
    figure, left = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for key, label in (("loss", "training loss"), ("valid/loss", "validation loss")):
        points = [(row["step"], row[key]) for row in rows if key in row]
        left.plot(*zip(*points, strict=True), label=label)
    left.set(xlabel="step", ylabel="loss")
    right = left.twinx()
    key = next(key for key in LEADING if f"valid/{key}" in rows[-1])
    points = [(row["step"], row[f"valid/{key}"]) for row in rows if f"valid/{key}" in row]
    right.plot(*zip(*points, strict=True), "k.--", label=f"validation {LEADING[key]}")
    right.set(ylabel=LEADING[key], ylim=(0, 1))
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=100)


def draw_pictures(rows: list[dict], path: pathlib.Path) -> None:
    """Draws examples evenly from worst to best."""
    rows = sorted(rows, key=lambda row: row["score"])
    chosen = [rows[i] for i in np.linspace(0, len(rows) - 1, 2 * COLUMNS).astype(int)]
    pictures = [draw_objects(row) if "detections" in row else draw_answer(row) for row in chosen]
    width, height = SIDE + GAP, pictures[0].height + GAP
    sheet = Image.new("RGB", (COLUMNS * width - GAP, 2 * height - GAP), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % COLUMNS * width, number // COLUMNS * height))
    sheet.save(path, optimize=True)


def draw_answer(row: dict) -> Image.Image:
    """Draws an answer in words below its picture, and the truth where it is another."""
    texts = [row["prediction"]] if row["correct"] else [row["prediction"], row["suffix"]]
    said = ", not ".join(" ".join(text.split()) for text in texts)
    image = drawing.open_rgb(row["images"][0]).resize((SIDE, SIDE))
    return drawing.add_caption(image, said, num_lines=3)


def draw_objects(row: dict) -> Image.Image:
    """Draws true boxes dashed and predictions coloured."""
    image = drawing.open_rgb(row["images"][0]).resize((SIDE, SIDE))
    found = row["detections"]
    boxes = np.array([d["box_yxyx"] for d in found], np.float32).reshape(-1, 4)
    masks = [d["mask"] for d in found] if any("mask" in d for d in found) else None
    image = drawing.draw_boxes(image, boxes, [d["label"] for d in found], masks=masks)
    pen = ImageDraw.Draw(image)
    for truth in row["truths"]:
        y1, x1, y2, x2 = (round(v * (SIDE - 1)) for v in truth["box_yxyx"])
        for start in range(x1, x2, 8):
            pen.line([(start, y1), (min(start + 4, x2), y1)], fill="white")
            pen.line([(start, y2), (min(start + 4, x2), y2)], fill="white")
        for start in range(y1, y2, 8):
            pen.line([(x1, start), (x1, min(start + 4, y2))], fill="white")
            pen.line([(x2, start), (x2, min(start + 4, y2))], fill="white")
    return image


if __name__ == "__main__":
    main()
