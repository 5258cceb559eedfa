"""What the sides of `compare` share: one line in, one run, one line of JSON out."""

import json
import sys
import time
from collections.abc import Callable


def serve(run: Callable[[], dict]) -> None:
    """Answers the first line after a warm-up, and every other with the numbers of a run."""
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries print
    for number, _ in enumerate(sys.stdin):
        start = time.perf_counter()
        answer = run()
        if number == 0:
            run()
            answer = {"first_s": round(time.perf_counter() - start, 2)}
        print(json.dumps(answer), file=out, flush=True)


def seconds(action: Callable[[], object]) -> float:
    """Returns how long an action takes that waits for its result."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def decode_times(decode: Callable[[int], object], new_tokens: int) -> dict:
    """Returns seconds up to the first token, and of each further one."""
    first, all_of_them = (seconds(lambda n=n: decode(n)) for n in (1, new_tokens))
    return {"prefill": first, "further token": (all_of_them - first) / (new_tokens - 1)}
