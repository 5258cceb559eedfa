"""Adapt a model of digits to places that it has not seen: in full, in part, with LoRA, and on NF4.

    python experiments/adapters/make_data.py
    python experiments/adapters/run.py

First the base is trained on scenes whose digits lie on its patch grid; then every arm, on scenes
whose digits lie on a grid of half patches. Each run is the train door, scored on 300 test scenes
after its last step. What is in the folder of runs already is not made again, so this can be stopped
and started; in the end it writes results.json and scores.png beside this file, or into --results.
"""

import argparse
import json
import pathlib
import time

import matplotlib as mpl
import numpy as np

from paligemma_jax import evaluate
from paligemma_jax.assembly import assembly
from paligemma_jax.reports import run_log
from paligemma_jax.runs import memory_plan, training_run, whole_run
from paligemma_jax.settings import load, schema

mpl.use("Agg")
from matplotlib import pyplot as plt

HERE = pathlib.Path(__file__).parent
CONFIG = HERE / "config.py"
BOTH_TOWERS = "llm/layers/.*|img/Transformer/.*/kernel"
ARMS = {
    "full": {"lr": 5e-4},
    "attention": {"lr": 1e-3, "trainable": "llm/layers/attn/.*"},
    "LoRA r=4": {"lr": 2e-3, "lora.targets": BOTH_TOWERS, "lora.rank": 4, "lora.alpha": 4.0},
    "LoRA r=16": {"lr": 2e-3, "lora.targets": BOTH_TOWERS, "lora.rank": 16, "lora.alpha": 16.0},
    "LoRA r=16, NF4": {
        "lr": 2e-3,
        "lora.targets": BOTH_TOWERS,
        "lora.rank": 16,
        "lora.alpha": 16.0,
        "quantize": "nf4",
    },
}
KINDS = ("float32", "int8", "nf4")
KEPT = ("map50", "map", "recall50", "loss")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="data/adapters")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/adapters"))
    parser.add_argument("--base_steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument(
        "--results", type=pathlib.Path, default=HERE, help="folder of results.json and scores.png"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}

    def keep(key, make):
        if key not in results:
            results[key] = make()
            path.write_text(json.dumps(results, indent=1) + "\n")
        print(key, json.dumps(results[key]), flush=True)

    keep("base", lambda: train_base(args))
    for scenes in ("base", "new"):
        for kind in args.kinds:
            key = f"base in {kind} on {scenes} scenes"
            keep(key, lambda kind=kind, scenes=scenes: score_base(args, kind, scenes))
    for seed in args.seeds:
        for arm in args.arms:
            keep(f"{arm}; seed {seed}", lambda arm=arm, seed=seed: adapt(args, arm, seed))
    (args.results / "results.json").write_text(path.read_text())
    draw(results, args.arms, args.results / "scores.png")
    print(table(results, args.arms))


def train_base(args):
    """Trains the base, and returns its scores on its own scenes."""
    config = load.load(f"{CONFIG}:data={args.data},steps={args.base_steps}", [])
    whole_run.train(config, args.out / "base")
    last = run_log.read_rows(args.out / "base" / "metrics.jsonl")[-1]
    return {key: last[f"test/{key}"] for key in KEPT}


def score_base(args, kind, scenes):
    """Returns the base's scores, its weights held as `kind`."""
    out = args.out / f"base-{kind}-{scenes}"
    evaluate.main(
        [
            *(f"--run={args.out / 'base'}", f"--data={args.data}/{scenes}/test.jsonl"),
            *(f"--out={out}", "--eval.batch_size=100"),
            *([f"--config.quantize={kind}"] if kind != "float32" else []),
        ]
    )
    scores = json.loads((out / "metrics.json").read_text())
    return {key: scores[key] for key in KEPT}


def adapt(args, arm, seed):
    """Trains one arm, and returns its scores and what it took."""
    config = load.load(f"{CONFIG}:data={args.data},scenes=new,steps={args.steps}", [])
    changes = {
        "seed": seed,
        "model_init": str(args.out / "base" / "final.npz"),
        "frozen_dtype": "bfloat16",
        "log_training_steps": 10,
        **ARMS[arm],
    }
    config = schema.replace(config, changes)
    workdir = args.out / f"{arm.replace(' ', '')}-{seed}"
    built = assembly.assemble(config)
    planned = training_run.plan(built)
    start = time.process_time()
    whole_run.train(config, workdir)
    cpu_s = time.process_time() - start
    rows = run_log.read_rows(workdir / "metrics.jsonl")
    shapes = assembly.lay_out(built, planned.base, tuple(planned.optimizer.trainable)).shapes
    return {
        **{key: rows[-1][f"test/{key}"] for key in KEPT},
        "trained": sum(shapes[name].size for name in planned.optimizer.trainable),
        "resident_bytes": memory_plan.at_least(built, planned).resident,
        "file_bytes": (workdir / "final.npz").stat().st_size,
        "cpu_s": cpu_s,
    }


def runs(results, arm):
    """Returns the rows of an arm, one of each seed."""
    return [row for key, row in results.items() if key.startswith(f"{arm}; ")]


def table(results, arms):
    """Returns mean and standard deviation over seeds, and what an arm takes, as Markdown."""
    lines = ["| | mAP50 | loss | trained | resident, MB | final.npz, MB | CPU, s |"]
    lines.append("| --- |" + " --- |" * 6)
    for arm in arms:
        found = runs(results, arm)
        scores = (
            f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
            for values in ([row[key] for row in found] for key in ("map50", "loss"))
        )
        sizes = (f"{found[0][key] / 1e6:.2f}" for key in ("resident_bytes", "file_bytes"))
        cpu_s = np.mean([row["cpu_s"] for row in found])
        cells = arm, *scores, f"{found[0]['trained']:,}", *sizes, f"{cpu_s:.0f}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results, arms, path):
    """Draws every run's score, arm by arm, beside the base's."""
    figure, axes = plt.subplots(figsize=(7, 3.5))
    for place, arm in enumerate(arms):
        found = [row["map50"] for row in runs(results, arm)]
        axes.plot([place] * len(found), found, "o", alpha=0.7)
        axes.plot([place - 0.2, place + 0.2], [np.mean(found)] * 2, "k-")
    if before := results.get("base in float32 on new scenes"):
        axes.axhline(before["map50"], ls="--", color="grey", label="base")
        axes.legend(loc="lower right")
    axes.set_xticks(range(len(arms)), list(arms), fontsize=8)
    axes.set_ylabel("mAP50, 300 test scenes")
    axes.set_ylim(0, 1)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
