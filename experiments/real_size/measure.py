"""Run a command and print its wall time, CPU time and peak resident memory.

python experiments/real_size/measure.py COMMAND [ARGUMENT ...]
"""

import resource
import subprocess
import sys
import time


def main() -> None:
    start = time.monotonic()
    status = subprocess.run(sys.argv[1:], check=False).returncode
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"wall {time.monotonic() - start:.1f} s, cpu {used.ru_utime + used.ru_stime:.1f} s, "
        f"peak resident memory {used.ru_maxrss / 2**20:.2f} GiB",
        file=sys.stderr,
    )
    sys.exit(status)


if __name__ == "__main__":
    main()
