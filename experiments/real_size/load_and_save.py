"""Load a run's weights and save them, without a step: how much of the host's memory that takes.

    python experiments/real_size/load_and_save.py --config configs/colab_longcap_224.py \
        --workdir runs/load_and_save --config.model_init=data/real_size/random.npz

What `train` does before its first step and after its last one: data and settings are checked,
weights go to their devices, the checkpoint and final.npz are written. Prints a line of JSON: the
bytes of weights and optimizer state that the devices hold (on a CPU the host's own memory), and by
how much the process grew at most beyond its imports, while it loaded and while it saved.
"""

import argparse
import json
import pathlib
import time

import jax
import orbax.checkpoint
import tensorflow

from paligemma_jax.assembly import assembly
from paligemma_jax.console import arguments, process, say
from paligemma_jax.runs import saving, training_run
from paligemma_jax.settings import load, schema

STATUS, RESET = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="a Python file")
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="the run's folder")
    args, overrides = arguments.parse(parser, None, groups={"config": schema.names()})
    process.keep_freed_memory()
    say.show_on_stderr()
    settings = load.load(args.config, overrides["config"])
    # Imported where used, elsewhere: they are no part of what loading takes.
    imported = jax.devices(), orbax.checkpoint.Checkpointer, tensorflow.constant(0)
    row = {"device": imported[0][0].device_kind, "imports_gb": resident_gb("VmRSS")}
    args.workdir.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    built = assembly.assemble(settings)
    planned = training_run.plan(built)
    total = planned.total_steps
    RESET.write_text("5")  # the peak begins anew (proc(5))
    state, about = saving.start(
        built,
        planned.optimizer,
        planned.data.records,
        planned.base,
        args.workdir,
        total_steps=total,
    )
    jax.block_until_ready(state)
    row["held_gb"] = sum(array.nbytes for array in jax.tree.leaves(state)) / 1e9
    row["load_gb"] = resident_gb("VmHWM") - row["imports_gb"]
    row["load_s"] = time.monotonic() - start
    RESET.write_text("5")
    start = time.monotonic()
    with saving.Saver(planned.saving, about, args.workdir, total) as saver:
        saver.keep(state, {"step": total})
        training_run.save(built, planned, state, args.workdir / "final.npz")
    row["save_gb"] = resident_gb("VmHWM") - row["imports_gb"]
    row["save_s"] = time.monotonic() - start
    print(json.dumps({k: round(x, 2) if isinstance(x, float) else x for k, x in row.items()}))


def resident_gb(which: str) -> float:
    """Returns the memory that this process has now (VmRSS), or had at most (VmHWM), in GB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(which))
    return 1024 * int(line.split()[1]) / 1e9


if __name__ == "__main__":
    main()
