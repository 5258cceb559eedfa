"""Train the digits' model with and without noise boxes, and compare average precision.

    python experiments/digits/make_data.py --out data/digits --placement grid
    python experiments/noise_boxes/run.py --data data/digits --out runs/noise_boxes

Both arms are asked to "detect all classes" and see answers in random order; one has its answers
filled up with noise boxes. Each run is the train door, then the evaluate door on the test scenes. A
run that is there already is not made again, so this can be stopped and started. In the end
results.json and curve.png are written beside this file, unless --no-report is given.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import matplotlib as mpl
import numpy as np

from paligemma_jax.reports import runlog

mpl.use("Agg")
from matplotlib import pyplot as plt

ARMS = {"plain": "None", "noise": "<seg127>"}  # value of input.noise_piece
TEXT_LEN = 64  # room for five boxes
KEPT = ("map", "map50", "map75", "precision50", "recall50", "mean_iou", "num_predictions", "empty")
HERE = pathlib.Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="data/digits")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/noise_boxes"))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--report", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    results = {arm: {} for arm in ARMS}
    for seed in args.seeds:
        for arm, piece in ARMS.items():
            run = args.out / f"{arm}-{seed}"
            if not (run / "evaluation-test" / "metrics.json").exists():
                make_run(run, piece, seed=seed, steps=args.steps, data=args.data)
            scores = json.loads((run / "evaluation-test" / "metrics.json").read_text())
            results[arm][seed] = {key: scores[key] for key in KEPT}  # None: no box to speak of
            print(f"{run}: {json.dumps(results[arm][seed])}")
    print(table(results))
    if args.report:
        text = json.dumps({"steps": args.steps, "arms": results}, indent=2)
        (HERE / "results.json").write_text(text + "\n")
        draw_curves(args.out, args.seeds, HERE / "curve.png")


def make_run(run, piece, *, seed, steps, data):
    """Trains and evaluates one model through the doors."""
    train = [
        "paligemma_jax.train",
        f"--config=configs/digits.py:data={data},steps={steps}",
        f"--workdir={run}",
        f"--config.seed={seed}",
        f"--config.input.text_len={TEXT_LEN}",
        "--config.input.data.prefix_template=detect all classes",
        "--config.input.augment.shuffle_objects=True",
        f"--config.input.noise_piece={piece}",
    ]
    test = f"--data={data}/_annotations.test.jsonl"
    evaluate = ["paligemma_jax.evaluate", f"--run={run}", test, "--eval.batch_size=100"]
    for command in (train, evaluate):
        subprocess.run([sys.executable, "-m", *command], check=True)


def table(results):
    """Returns the comparison as Markdown: mean and standard deviation over seeds."""
    lines = ["| arm | seeds | mAP | mAP50 | recall50 | precision50 |", "| --- " * 6 + "|"]
    for arm, runs in results.items():
        cells = []
        for key in ("map", "map50", "recall50", "precision50"):
            values = [scores[key] for scores in runs.values() if scores[key] is not None]
            spread = f"{np.mean(values):.3f} ± {np.std(values):.3f}" if values else "none"
            cells.append(spread if len(values) == len(runs) else f"{spread} of {len(values)}")
        lines.append(f"| {arm} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_curves(out, seeds, path):
    """Draws validation mAP50 over steps, a line a run."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for color, arm in zip(("tab:gray", "tab:blue"), ARMS, strict=True):
        for number, seed in enumerate(seeds):
            rows = runlog.read_rows(out / f"{arm}-{seed}" / "metrics.jsonl")
            points = [(row["step"], row["valid/map50"]) for row in rows if "valid/map50" in row]
            label = arm if number == 0 else None
            axes.plot(*zip(*points, strict=True), ".-", color=color, label=label)
    axes.set(xlabel="step", ylabel="validation mAP50", ylim=(0, 1))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
