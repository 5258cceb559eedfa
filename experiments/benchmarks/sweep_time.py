"""How long a sweep of several rates takes over a run of one: `python ... --data FOLDER`.

Both take the steps of configs/digits.py that are asked for, each in a folder and with a cache of
compiled programs of its own, empty at first, and in turn, so that other work meets both alike.
Processor seconds are those of all processes of a command. FOLDER: experiments/digits/make_data.py.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time

RATES = (3e-4, 1e-3, 3e-3)
KINDS = {"one rate": RATES[:1], "three rates": RATES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--evaluations", action="store_true", help="with those of the config")
    args = parser.parse_args()
    times: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for number in range(args.rounds):
        # Whoever begins changes places.
        for kind in (list(KINDS), list(KINDS)[::-1])[number % 2]:
            times[kind].append(measure(kind, args))
            print(f"{kind}: {times[kind][-1]}", flush=True)
    quotients = {
        of: [b[of] / a[of] for a, b in zip(*times.values(), strict=True)]
        for of in ("processor_s", "wall_s")
    }
    result = {"times": times, "quotients": quotients, "cores": len(os.sched_getaffinity(0))}
    medians = {of: round(statistics.median(values), 2) for of, values in quotients.items()}
    print(json.dumps({**result, "medians": medians}, indent=1))


def measure(kind: str, args: argparse.Namespace) -> dict[str, float]:
    """Runs a sweep, and returns its seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        shipped = pathlib.Path(__file__).parents[2] / "configs" / "digits.py"
        config = folder / "rates.py"
        config.write_text(
            shipped.read_text().partition("def sweep")[0]
            + textwrap.dedent(f"""
            def sweep(add):
                for lr in {list(KINDS[kind])}:
                    add(lr=lr)
            """)
        )
        source = f"{config}:data={args.data.absolute()},steps={args.steps}"
        command = [sys.executable, "-m", "paligemma_jax.sweep", "--config", source]
        command += ["--workdir", str(folder / "runs")]
        command += [] if args.evaluations else ["--config.evals={}"]
        own = {"JAX_COMPILATION_CACHE_DIR": f"{folder}/programs", "PALIGEMMA_JAX_CACHE": name}
        before, started = processor_seconds(), time.monotonic()
        done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        wall = time.monotonic() - started
        return {"processor_s": round(processor_seconds() - before, 1), "wall_s": round(wall, 1)}


def processor_seconds() -> float:
    """Returns what processes that have ended took."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
