"""How long the demo takes from the command to its first step, beside importing its libraries.

    python experiments/demo/make_data.py --out data/demo
    python experiments/benchmarks/first_step.py --data data/demo

The clock stops when the row of step 1 is on the terminal; the run is then ended. The first run
finds an empty cache: it compiles, and checks the data. The others, in turn with the imports, find
what it left. One line of JSON: the time of the first run, the median time of the others and of the
imports, and the median of the quotients of neighbours.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

IMPORTS = (sys.executable, "-c", "import jax, tensorflow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="data/demo", help="what make_data wrote")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cold = first_step(args.data, pathlib.Path(folder))
        imports()  # Files are then in the page cache, for both alike.
        times = [
            (imports(), first_step(args.data, pathlib.Path(folder))) for _ in range(args.rounds)
        ]
    result = {
        "cold_s": cold,
        "warm_s": statistics.median(warm for _, warm in times),
        "imports_s": statistics.median(alone for alone, _ in times),
        "quotient": statistics.median(warm / alone for alone, warm in times),
    }
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


def imports() -> float:
    """Returns the seconds that importing jax and tensorflow takes."""
    start = time.perf_counter()
    subprocess.run(IMPORTS, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def first_step(data: str, cache: pathlib.Path) -> float:
    """Returns the seconds until the demo's first row, with caches in a folder."""
    caches = {
        "PALIGEMMA_JAX_CACHE": os.fspath(cache),
        "JAX_COMPILATION_CACHE_DIR": os.fspath(cache / "programs"),
    }
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "paligemma_jax.train", "--workdir", workdir]
        command += ["--config", f"configs/demo.py:data={data}"]
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **caches}
        )
        said = []
        assert process.stderr
        for line in process.stderr:
            said.append(line)
            if re.match("step +1/", line):
                seconds = time.perf_counter() - start
                process.kill()
                process.wait()
                return seconds
    raise RuntimeError(f"the run ended before its first step:\n{''.join(said)}")


if __name__ == "__main__":
    main()
