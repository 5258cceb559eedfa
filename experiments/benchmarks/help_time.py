"""How long `python -m paligemma_jax.train --help` takes, beside what its libraries need alone.

    python experiments/benchmarks/help_time.py

Both commands run in turn, each in a new process. One line of JSON: the median time of each, and the
median of the quotients of neighbours.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "libraries": ("-c", "import jax, flax, optax"),
    "help": ("-m", "paligemma_jax.train", "--help"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    for command in COMMANDS.values():  # Files are then in the page cache, for both alike.
        measure(command)
    times = [{name: measure(c) for name, c in COMMANDS.items()} for _ in range(args.rounds)]
    result = {f"{name}_s": statistics.median(t[name] for t in times) for name in COMMANDS}
    result["quotient"] = statistics.median(t["help"] / t["libraries"] for t in times)
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


def measure(command: tuple[str, ...]) -> float:
    """Returns the seconds that Python takes with these arguments."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
