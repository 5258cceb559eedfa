"""What the small base brings to a task that it never saw: few examples, few steps, frozen parts.

    python experiments/demo/make_data.py --out data/demo
    python experiments/digits/make_data.py --out data/digits_faint --placement cells --faint
    python experiments/tiny_base/new_tasks.py --out data/new_tasks
    python experiments/tiny_base/transfer.py --tasks all --examples 64 --seeds 0 1 2

Each run is the train door with fracture_224's recipe on the base (configs/fracture_224.py:tiny) or
on the same model with random weights, scored on the test pictures after its last step. What is in
the folder of runs already is not made again; in the end a table is printed and results.json written
into --results.
"""

import argparse
import dataclasses
import json
import pathlib
import time

import numpy as np

from paligemma_jax import evaluate
from paligemma_jax.reports import run_log
from paligemma_jax.runs import whole_run
from paligemma_jax.settings import load, schema

HERE = pathlib.Path(__file__).parent
CONFIG = HERE.parents[1] / "configs" / "fracture_224.py"


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: the folder of _annotations.{train,test}.jsonl, what it is, and its score."""

    data: str
    task: str = "detection"
    score: str = "map50"


TASKS = {
    "fracture": Task("data/demo"),
    "faint digits": Task("data/digits_faint"),
    "new words": Task("data/new_tasks/words"),
    "new things": Task("data/new_tasks/counting", "vqa", "exact_match"),
    "new fonts": Task("data/new_tasks/fonts", "vqa", "anls"),
}
ADAM = {"optax_name": "scale_by_adam", "optax": {"b2": 0.99}, "grad_clip_norm": 1.0}
EVERYTHING = {"trainable": None, "frozen_dtype": None}
FACTORS = {**ADAM, **EVERYTHING, "lr": 2e-3, "lora.targets": "hf_compat"}
METHODS = {
    "attention": {"lr": 0.1},
    "lora 4": {**FACTORS, "lora.rank": 4, "lora.alpha": 4.0},
    "lora 16": {**FACTORS, "lora.rank": 16, "lora.alpha": 16.0},
    "qlora": {**FACTORS, "lora.rank": 16, "lora.alpha": 16.0, "quantize": "nf4"},
    "full": {**ADAM, **EVERYTHING, "lr": 5e-4},
    "nothing": {
        **{**ADAM, **EVERYTHING, "lr": 1e-3, "model_init": None},
        "model.img.dims": {"posemb_init": "sines"},
    },
}
LONGER = {"nothing": 5}  # times as many steps
BATCH_SIZE = 8
KEPT = ("map50", "map", "recall50", "count_correct", "exact_match", "anls", "loss")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", choices=[*TASKS, "all"], default=["fracture"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--examples", type=int, nargs="+", default=[64])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--test", type=int, default=200, help="test pictures")
    parser.add_argument("--lr", type=float, help="instead of the method's own")
    parser.add_argument("--data", help="folder of the data, instead of the task's own")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/transfer"))
    parser.add_argument("--results", type=pathlib.Path, default=HERE)
    args = parser.parse_args()
    if "all" in args.tasks:
        args.tasks = list(TASKS)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}

    def keep(key, make):
        if key not in results:
            results[key] = make()
            path.write_text(json.dumps(results, indent=1) + "\n")
        print(key, json.dumps(results[key]), flush=True)

    for task in args.tasks:
        keep(f"{task}; zero-shot", lambda task=task: score_base(args, task))
        for count in args.examples:
            for method in args.methods:
                for seed in args.seeds:
                    rate = f"; lr {args.lr}" if args.lr else ""
                    steps = args.steps * LONGER.get(method, 1)
                    key = f"{task}; {method}; {count} examples; {steps} steps{rate}; seed {seed}"
                    what = (task, method, count, steps, seed)
                    keep(key, lambda what=what: adapt(args, *what))
    (args.results / "results.json").write_text(path.read_text())
    print(table(results))


def settings_of(args, task, **changes):
    data = args.data or TASKS[task].data
    config = load.load(f"{CONFIG}:tiny,res=112,data={data},batch_size={BATCH_SIZE}")
    changes = {"task": TASKS[task].task, **changes}
    fname = f"{data}/_annotations.test.jsonl"
    test = {"fname": fname, "log_percent": 1.0, "batch_size": 50, "num_examples": args.test}
    config = schema.replace(config, {"log_training_steps": 20, "ckpt_steps": 0, **changes})
    return schema.replace(config, {"evals": {"test": load.eval_settings("test", test)}})


def score_base(args, task):
    """Returns the base's own scores."""
    data, out = args.data or TASKS[task].data, args.out / f"zero-shot-{task.replace(' ', '-')}"
    evaluate.main(
        [
            *(f"--config={CONFIG}:tiny,res=112,data={data}", f"--out={out}"),
            *(f"--data={data}/_annotations.test.jsonl", "--eval.batch_size=50"),
            *(f"--config.task={TASKS[task].task}", f"--eval.num_examples={args.test}"),
        ]
    )
    scores = json.loads((out / "metrics.json").read_text())
    return {key: scores[key] for key in KEPT if key in scores}


def adapt(args, task, method, count, steps, seed):
    """Trains one method, and returns its scores and what it took."""
    changes = {"seed": seed, **METHODS[method], "input.num_examples": count}
    changes |= {"total_examples": None, "total_steps": steps}
    changes |= {"lr": args.lr} if args.lr else {}
    config = settings_of(args, task, **changes)
    name = f"{task}-{method}-{count}-{steps}-{args.lr}-{seed}".replace(" ", "")
    start, begun = time.process_time(), time.monotonic()
    whole_run.train(config, args.out / name)
    last = run_log.read_rows(args.out / name / "metrics.jsonl")[-1]
    took = {"cpu_s": time.process_time() - start, "wall_s": time.monotonic() - begun}
    return {**{key: last[f"test/{key}"] for key in KEPT if f"test/{key}" in last}, **took}


def table(results):
    """Returns scores of each task, method and number of examples: mean over seeds, least, most."""
    groups = {}
    for key, scores in results.items():
        score = TASKS[key.partition(";")[0]].score
        name = f"{key.rpartition('; seed ')[0] or key}; {score}"
        groups.setdefault(name, []).append(scores[score])
    lines = ["| what | mean | least | most | runs |", "| --- | --- | --- | --- | --- |"]
    for name, values in groups.items():
        shown = f"{np.mean(values):.3f} | {min(values):.3f} | {max(values):.3f} | {len(values)}"
        lines.append(f"| {name} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
