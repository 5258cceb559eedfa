"""What a training step of each published size needs of a device, by method and number of devices.

    python experiments/adapters/memory.py

Every step is compiled from shapes, for 1, 4 and 8 CPU devices that stand for cards: no weight is
made. Resident bytes (parameters, optimizer) follow from shapes. Temporary ones are the compiler's;
where the base is dense they are those of a float32 step, because a CPU's compiler would widen all
16-bit weights at once, as no accelerator's does: twice the activations of a 16-bit step, at most.
Writes memory.json beside this, or into --results, and goes on with one that is there; prints the
table.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from paligemma_jax.assembly import assembly
from paligemma_jax.data import tokens
from paligemma_jax.runs import memory_plan, training_run
from paligemma_jax.settings import load, presets

HERE = pathlib.Path(__file__).parent
MODELS = ("paligemma2-3b", "paligemma2-10b", "paligemma2-28b")
METHODS = {"LoRA, NF4": "qlora", "LoRA, 16 bit": "lora", "full, Adam": "full"}
DEVICES = (1, 4, 8)
BATCH_PER_DEVICE = 4


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, nargs="+", default=DEVICES, help="counts of them")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--results", type=pathlib.Path, default=HERE, help="folder of memory.json")
    parser.add_argument("--this_process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    path = args.results / "memory.json"
    if args.this_process:
        measure(args.devices[0], args.models, args.methods, path)
        return
    for count in args.devices:
        flags = os.environ.get("XLA_FLAGS", "")
        flags += f" --xla_force_host_platform_device_count={count}"
        env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, *sys.argv, "--this_process", f"--devices={count}"]
        subprocess.run(command, env=env, check=True)
    print(table(read(path)))


def measure(devices, models, methods, path):
    """Adds the rows of one number of devices to the results."""
    with tempfile.TemporaryDirectory() as folder:
        tokens.train_tokenizer(["detect cat"], pathlib.Path(folder, "tokenizer.model"))
        row = {"image": [], "prefix": "detect cat", "suffix": ""}
        pathlib.Path(folder, "train.jsonl").write_text(json.dumps(row) + "\n")
        for method in methods:
            for model in models:
                key = f"{model}; {method}; {devices}"
                if key not in read(path):
                    found = plan(model, method, devices, folder)
                    rows = read(path) | {key: found}
                    path.write_text(json.dumps(rows, indent=1) + "\n")


def read(path):
    """Returns the rows that there are."""
    return json.loads(path.read_text()) if path.exists() else {}


def plan(model, method, devices, folder):
    """Returns the memory of one step, in bytes of one device."""

    def prepare(dtype):
        c = presets.finetune(model=model, res=224, text_len=128, method=METHODS[method])
        c.model_init, c.tokenizer = None, f"{folder}/tokenizer.model"
        c.frozen_dtype, c.compute_dtype = dtype, dtype
        c.input.data.fname, c.total_steps = f"{folder}/train.jsonl", 1
        c.input.batch_size = BATCH_PER_DEVICE * devices
        built = assembly.assemble(load.typed(c))
        return built, training_run.plan(built)

    memory = memory_plan.at_least(*prepare("bfloat16"))
    dtype = "bfloat16" if memory.quantized else "float32"
    temporary = memory_plan.make(*prepare(dtype)).memory.temporary
    memory = dataclasses.replace(memory, temporary=temporary)
    return {**dataclasses.asdict(memory), "peak": memory.peak}


def table(rows):
    """Returns resident and peak GB as a Markdown table."""
    lines = ["| GB on a device: resident / peak | " + " | ".join(f"{n}" for n in DEVICES) + " |"]
    lines.append("| --- |" + " --- |" * len(DEVICES))
    for model in MODELS:
        for method in METHODS:
            found = [rows.get(f"{model}; {method}; {count}") for count in DEVICES]
            if any(found):
                cells = (f"{_resident(r):.2f} / {r['peak'] / 1e9:.2f}" if r else "" for r in found)
                lines.append(f"| {model}, {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _resident(row):
    return (row["trained"] + row["frozen"] + row["optimizer"]) / 1e9


if __name__ == "__main__":
    main()
