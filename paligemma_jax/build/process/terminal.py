"""What a person sees while a door works: progress and plain lines on standard error.

Lower rooms never print: they call the `progress(done, total)` function that they are given.
Standard output belongs to results (`predict` writes JSON lines there).
"""

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator

import tqdm

Progress = Callable[[int, int], None]
LINE_EVERY_S = 10.0
PLURAL = re.compile(r"(?<=x)es\b|s\b")  # rows of train -> row of train, boxes -> box


def say(text: str) -> None:
    """Writes a line without tearing a progress bar that may be on screen."""
    tqdm.tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


def show(text: str) -> None:
    """Writes a line of results to standard output, as `say`."""
    tqdm.tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


@contextlib.contextmanager
def progress(label: str, *, unit: str = "it", unit_scale: bool = False) -> Iterator[Progress]:
    """Yields `report(done, total)`: a bar on a terminal, otherwise a plain line now and then.

    Work that ends within two seconds shows nothing where there is no terminal.
    """
    if sys.stderr.isatty():
        with tqdm.tqdm(
            desc=label, unit=unit, unit_scale=unit_scale, delay=1, dynamic_ncols=True
        ) as bar:

            def report(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield report
    else:
        yield _plain(label, unit)


def _plain(label: str, unit: str) -> Progress:
    start = time.monotonic()
    last = start - LINE_EVERY_S + 2.0

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY_S or (done == total and now - start > 2.0):
            last = now
            say(f"{label}: {done}/{total} {unit}, {now - start:.0f} s")

    return report


def table(rows: list[tuple[str, ...]], *, header: tuple[str, ...]) -> str:
    """Returns rows as aligned text: the first column left, the others right."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def count(number: int, things: str) -> str:
    """Returns a count as people write it: 1,200 rows, 1 row. `things`: the plural, first of all."""
    return f"{number:,} {PLURAL.sub('', things, count=1) if number == 1 else things}"


def size(num_bytes: float) -> str:
    """Returns a byte count as people write it: 5.4 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GiB"
