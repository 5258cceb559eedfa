"""What our step costs on machines that are not here, by their own compilers.

    python experiments/benchmarks/compiled.py --out DIR
    BIG_VISION_DIR=... python experiments/benchmarks/compiled.py --out DIR --side big_vision

libtpu and jax's plugin for CUDA compile for machines that they are told of, so memory, expected
time of computing (TPUs only), and what moves between chips are known without one. Each case is a
process of its own, of an interpreter that has the compiler (see `check --device`); where none has,
the case is left out, and named. MFU at most: model FLOPs over the chip's peak, if moving cost
nothing. Prints a table; DIR gets it as table.md, and all figures as results.json, to which a
further command adds its cases.
"""

import argparse
import dataclasses
import json
import pathlib
import platform
import time
from typing import Any

from paligemma_jax.checks import compilers
from paligemma_jax.settings import machines

MODULE = "experiments.benchmarks.compiled_case"
NARROW, DOTS, NOTHING, SEGMENTS = (
    "narrow_products_saveable",
    "dots_with_no_batch_dims_saveable",
    "nothing_saveable",
    "segment_inputs_saveable",
)
# Model FLOPs of PaliGemma 2 3B at 224 px and 128 text tokens, of one example: as `training.flops`
# counts them, 32 of the tokens supervised.
MODEL_FLOPS = {"full": 44.3e12 / 8, "attention": 30.3e12 / 8}
SIDES = ("paligemma_jax", "big_vision")


@dataclasses.dataclass(frozen=True)
class Case:
    """A step to be compiled.

    `machine` is as `check --device` names it, `mesh` as in the settings. Weights are split over its
    axis `data`.
    """

    machine: str
    batch_size: int
    trains: str
    remat: str = NOTHING
    model: str = "paligemma2-3b"
    res: int = 224
    text_len: int = 128
    dtype: str = "bfloat16"
    quantize: str | None = None
    mesh: tuple[tuple[str, int], ...] = (("data", -1),)
    in_backward: bool = False  # `optimizer_in_backward`


# 256 divides no size of the vision tower's weights (1152, 4304), which then lie whole on each chip.
REPLICAS = (("replica", 4), ("data", 64))
CASES = {
    "v5e 2x4, full Adam": Case("tpu-v5e-8", 64, "full", NARROW),
    "v5e 2x4, attention-only SGD": Case("tpu-v5e-8", 64, "attention", DOTS),
    "v5e 8x8, full Adam": Case("tpu-v5e-64", 512, "full", NARROW),
    "v5e 16x16, full Adam": Case("tpu-v5e-256", 2048, "full", NARROW),
    "v5e 16x16, full Adam, 4 replicas of 64": Case(
        "tpu-v5e-256", 2048, "full", NARROW, mesh=REPLICAS
    ),
    "8 x H100, full Adam": Case("h100x8", 64, "full", NARROW),
    "10B LoRA, v5e 2x4": Case("tpu-v5e-8", 8, "lora", model="paligemma2-10b"),
    "28B LoRA, v5p 2x2x4": Case("tpu-v5p-32", 16, "lora", model="paligemma2-28b"),
    "3B QLoRA, T4": Case("t4", 4, "lora", dtype="float16", quantize="nf4"),
    "Colab's recipe, T4": Case("t4", 8, "attention", model="paligemma1-3b", dtype="float16"),
    "Colab's recipe, H100": Case("h100", 8, "attention", model="paligemma1-3b"),
    "attention-only SGD, H100, batch 32": Case("h100", 32, "attention", SEGMENTS),
    "full Adam, H100, batch 32": Case("h100", 32, "full", SEGMENTS),
    "attention-only SGD, H100, batch 32, updated in backward": Case(
        "h100", 32, "attention", SEGMENTS, in_backward=True
    ),
    "full Adam, H100, batch 32, updated in backward": Case(
        "h100", 32, "full", SEGMENTS, in_backward=True
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the results")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--side", choices=SIDES, default=SIDES[0])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {"cases": {}}
    results |= {"machine": platform.platform(), "date": time.strftime("%Y-%m-%d")}
    for name in args.case:
        row = measure(CASES[name], args.side)
        results["cases"].setdefault(name, {})[args.side] = row
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: {row.get('left_out', 'done')}", flush=True)
    text = table(results["cases"])
    (args.out / "table.md").write_text(text + "\n")
    print(text)
    for name in args.case:
        print(costliest(name, results["cases"][name][args.side]))


def measure(case: Case, side: str) -> dict[str, Any]:
    """Returns what a case costs, or why it is left out."""
    chip = machines.look_up(case.machine).chip
    python = compilers.find(chip.platform)
    if python is None:
        return {"left_out": f"no compiler: {compilers.how_to_install(chip.platform)}"}
    started = time.monotonic()
    try:
        row = compilers.run(python, MODULE, {"side": side, **dataclasses.asdict(case)})
    except RuntimeError as error:
        return {"left_out": str(error).splitlines()[-1]}
    return {**row, "compile_s": round(time.monotonic() - started, 1)}


def table(cases: dict[str, dict[str, Any]]) -> str:
    """Returns the rows of all sides, for people."""
    lines = [
        "| step | side | memory a chip | computing | MFU at most | between chips, a chip |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, sides in cases.items():
        for side, row in sides.items():
            if "left_out" in row:
                lines.append(f"| {name} | {side} | left out: {row['left_out']} | | | |")
                continue
            moved = row["collective_gb"]
            kinds = ", ".join(f"{kind} {size:.1f}" for kind, size in moved.items() if size >= 0.05)
            total = f"{sum(moved.values()):.1f} GB" + (f" ({kinds})" if kinds else "")
            seconds, share = row["compute_s"], _ceiling(CASES[name], row)
            lines.append(
                f"| {name} | {side} | {row['memory_gb']:.1f} GB | "
                f"{'not said' if seconds is None else f'{seconds:.3f} s'} | "
                f"{'' if share is None else f'{share:.0%}'} | {total if moved else 'none'} |"
            )
    return "\n".join(lines)


def _ceiling(case: Case, row: dict[str, Any]) -> float | None:
    if row["compute_s"] is None or case.model != Case.model or case.trains not in MODEL_FLOPS:
        return None
    count = machines.look_up(case.machine).count
    work = MODEL_FLOPS[case.trains] * case.batch_size / count
    return work / row["compute_s"] / row["peak_flops"]


def costliest(name: str, row: dict[str, Any]) -> str:
    """Returns a case's costliest operations, a line each."""
    if not row.get("operations"):
        return f"\n{name}: no operation has a time"
    total = row["compute_s"] or sum(one["seconds"] for one in row["operations"])
    lines = [f"\n{name}: the costliest operations"]
    for one in row["operations"]:
        share = one["seconds"] / total
        lines.append(f"{1e3 * one['seconds']:8.1f} ms {share:5.1%}  {one['name'][-90:]}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
