"""Temporary memory of a step on a CPU: what the plan says, and what the process took.

    python experiments/benchmarks/plan_memory.py
    python experiments/benchmarks/plan_memory.py --trainable 'llm/layers/attn/.*' --optimizer sgd

Of a model of work.py (--size), as in remat_time.py. Taken is the growth of the process's resident
memory from before its first step to its peak; Linux only. Prints one line of JSON.
"""

import argparse
import json
import pathlib
import re

import jax
import remat_time
import work

PROCESS = pathlib.Path("/proc/self")
KIB, MIB = 2**10, 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="mid", choices=remat_time.SIZES, help="of the model")
    parser.add_argument("--trainable", default=".*", help="regex on names")
    parser.add_argument("--optimizer", default="scale_by_adam")
    parser.add_argument("--remat", default="nothing_saveable", choices=remat_time.POLICIES)
    args = parser.parse_args()
    batch = remat_time.make_batch(work.SIZES[args.size].model, cached=False)
    update, temporary, trained = remat_time.make_step(args.remat, args, batch)
    before = resident("VmRSS")
    (PROCESS / "clear_refs").write_text("5")  # the peak counts from here on
    update()
    row = {
        **vars(args),
        "trained_mib": mib(trained),
        "planned_mib": mib(temporary),
        "taken_mib": mib(resident("VmHWM") - before),
        "jax": jax.__version__,
    }
    print(json.dumps(row))


def resident(what: str) -> int:
    """Returns bytes of resident memory: now (VmRSS), or the most there was (VmHWM)."""
    found = re.search(rf"{what}:\s+(\d+) kB", (PROCESS / "status").read_text())
    assert found, f"{PROCESS}/status has no {what}"
    return int(found[1]) * KIB


def mib(num_bytes: int) -> int:
    return round(num_bytes / MIB)


if __name__ == "__main__":
    main()
