"""Train the same model with and without noise boxes, and compare average precision.

    python experiments/digits/make_data.py --out data/digits_faint --placement cells --faint
    python experiments/noise_boxes/run.py --data data/digits_faint --out runs/noise_boxes

Each run is the train door on config.py, then the evaluate door on the test scenes. A run that is
there already is not made again, so this can be stopped and started. In the end results.json,
curve.png and pictures.png are written beside this file, or into --results.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import matplotlib as mpl
import numpy as np
from PIL import Image

from paligemma_jax.reports import drawing, run_log
from paligemma_jax.tasks import geometry

mpl.use("Agg")
from matplotlib import pyplot as plt

ARMS = {"plain": False, "noise": True}  # argument noise of config.py
KEPT = (
    *("map", "map50", "map75", "precision50", "recall50", "correct", "count_correct"),
    *("duplicates", "num_predictions", "num_truths", "empty", "dropped", "loss"),
)
SHOWN = ("map", "map50", "precision50", "recall50", "all_boxes_recall50", "correct")
SIDE, GAP, NUM_PICTURES = 168, 6, 6  # pixels, pixels, scenes
HERE = pathlib.Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="data/digits_faint")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/noise_boxes"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument(
        "--results", type=pathlib.Path, default=HERE, help="folder of results.json and pictures"
    )
    args = parser.parse_args()
    results = {arm: {} for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            run = args.out / f"{arm}-{seed}"
            if not (run / "evaluation-test" / "metrics.json").exists():
                make_run(run, noise=ARMS[arm], seed=seed, steps=args.steps, data=args.data)
            results[arm][seed] = read_scores(run)
            print(f"{run}: {json.dumps(results[arm][seed])}", flush=True)
    print(table(results))
    text = json.dumps({"steps": args.steps, "arms": results}, indent=2)
    (args.results / "results.json").write_text(text + "\n")
    draw_curves(args.out, args.arms, args.seeds, args.results / "curve.png")
    draw_pictures(args.out, args.arms, args.seeds[0], args.results / "pictures.png")


def make_run(run, *, noise, seed, steps, data):
    """Trains and evaluates one model through the doors."""
    config = f"{HERE / 'config.py'}:data={data},noise={noise},steps={steps}"
    train = ["paligemma_jax.train", f"--config={config}", f"--workdir={run}"]
    test = f"--data={data}/_annotations.test.jsonl"
    evaluate = ["paligemma_jax.evaluate", f"--run={run}", test, "--eval.batch_size=100"]
    for command in ([*train, f"--config.seed={seed}"], evaluate):
        subprocess.run([sys.executable, "-m", *command], check=True)


def read_rows(run):
    """Returns the rows of a run's predictions on the test scenes."""
    text = (run / "evaluation-test" / "predictions.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def read_scores(run):
    """Returns a run's scores, and the recall of all its boxes, also those it is not sure of."""
    scores = json.loads((run / "evaluation-test" / "metrics.json").read_text())
    found = 0
    for row in read_rows(run):
        boxes = to_array([*row["detections"], *row.get("unsure", ())])
        overlaps = geometry.iou(to_array(row["truths"]), boxes)
        found += int((overlaps >= 0.5).any(axis=1).sum())
    kept = {key: scores[key] for key in KEPT}
    return {**kept, "all_boxes_recall50": found / scores["num_truths"]}


def to_array(found):
    """Returns the boxes of a row's detections as float32[n, 4]."""
    return np.array([box["box_yxyx"] for box in found], np.float32).reshape(-1, 4)


def table(results):
    """Returns the comparison as Markdown: mean and standard deviation over seeds."""
    lines = [f"| arm | {' | '.join(SHOWN)} |", "| --- " * (len(SHOWN) + 1) + "|"]
    for arm, runs in results.items():
        values = np.array([[scores[key] for key in SHOWN] for scores in runs.values()], float)
        cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(values.mean(0), values.std(0), strict=True)]
        lines.append(f"| {arm}, {len(runs)} seeds | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_curves(out, arms, seeds, path):
    """Draws validation mAP50 over steps, and precision over recall on test scenes, a line a run."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for arm in arms:
        color = {"plain": "tab:gray", "noise": "tab:blue"}[arm]
        for number, seed in enumerate(seeds):
            run, label = out / f"{arm}-{seed}", arm if number == 0 else None
            rows = run_log.read_rows(run / "metrics.jsonl")
            points = [(row["step"], row["valid/map50"]) for row in rows if "valid/map50" in row]
            left.plot(*zip(*points, strict=True), ".-", color=color, label=label)
            right.plot(*rank(read_rows(run)), color=color)
    left.set(xlabel="step", ylabel="validation mAP50", ylim=(0, 1))
    right.set(xlabel="recall on test scenes", ylabel="precision", xlim=(0.8, 1), ylim=(0.4, 1.02))
    left.legend(frameon=False)
    figure.savefig(path, dpi=100)


def rank(rows):
    """Returns (recall, precision) over all boxes of all scenes, the most confident first."""
    found = []
    for row in rows:
        boxes = sorted([*row["detections"], *row.get("unsure", ())], key=lambda box: -box["score"])
        overlaps = geometry.iou(to_array(row["truths"]), to_array(boxes)) >= 0.5
        for number, box in enumerate(boxes):
            truths = np.flatnonzero(overlaps[:, number])[:1]
            found.append((box["score"], len(truths) > 0))
            overlaps[truths] = False  # a second box on the same digit is wrong
    hits = np.cumsum([hit for _, hit in sorted(found, key=lambda pair: -pair[0])])
    return hits / sum(len(row["truths"]) for row in rows), hits / np.arange(1, len(hits) + 1)


def draw_pictures(out, arms, seed, path):
    """Draws the first test scenes, a row an arm, with the boxes that it is sure of."""
    height = len(arms) * (SIDE + GAP) - GAP
    sheet = Image.new("RGB", (NUM_PICTURES * (SIDE + GAP) - GAP, height), "white")
    for line, arm in enumerate(arms):
        for column, row in enumerate(read_rows(out / f"{arm}-{seed}")[:NUM_PICTURES]):
            image = drawing.open_rgb(row["images"][0]).resize((SIDE, SIDE))
            labels = [f"{box['score']:.2f}" for box in row["detections"]]
            image = drawing.draw_boxes(image, to_array(row["detections"]), labels)
            sheet.paste(image, (column * (SIDE + GAP), line * (SIDE + GAP)))
    sheet.quantize(64).save(path, optimize=True)  # grain does not compress


if __name__ == "__main__":
    main()
