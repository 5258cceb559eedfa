"""What a person sees while a door works: progress and plain lines on standard error.

Lines go through the logger `paligemma_jax` of `logging`, so whoever calls a door from Python can
silence them (`logging.getLogger("paligemma_jax").setLevel("WARNING")`) or give that logger a
handler of their own. Lower rooms never print: they call the `progress(done, total)` function that
they are given. Standard output belongs to results (`predict` writes JSON lines there).
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import tqdm

from paligemma_jax.files import atomic
from paligemma_jax.wording import phrases

LOGGER = logging.getLogger("paligemma_jax")

Progress = Callable[[int, int], None]
SHOW_AFTER_S = 1.0  # of a bar
LINE_AFTER_S, LINE_EVERY_S = 2.0, 10.0  # without a terminal: the first line, and each further one
TICK_S = 0.5

# When the last line was written, by whoever did.
_last_line_at = 0.0


class StderrHandler(logging.Handler):
    """Writes lines to standard error, above a progress bar that may be on screen.

    Standard error is looked up for each line: a notebook, or a test, may have replaced it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        try:
            prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
            tqdm.tqdm.write(prefix + phrases.visible(self.format(record)), file=sys.stderr)
            sys.stderr.flush()
        except Exception:  # as every handler of `logging`: a line that is lost stops no run
            self.handleError(record)


def show_on_stderr() -> None:
    """Shows what the doors say on standard error; every door calls it first.

    A logger that has a handler, or a level, keeps it: that is how a program redirects the lines.
    """
    if not LOGGER.handlers:
        LOGGER.addHandler(StderrHandler())
        LOGGER.propagate = False  # or the root logger's handler writes each line again
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)


def info(text: str) -> None:
    """Says what is done, or was."""
    _log(logging.INFO, text)


def warning(text: str) -> None:
    """Says what is probably not what the user wants, although the work goes on."""
    _log(logging.WARNING, text)


def error(text: str) -> None:
    """Says what failed."""
    _log(logging.ERROR, text)


def result(text: str) -> None:
    """Writes a line of results to standard output, above a progress bar too."""
    with results():
        tqdm.tqdm.write(phrases.visible(text), file=sys.stdout)


@contextlib.contextmanager
def results() -> Iterator[None]:
    """Names standard output in an error of what the block writes there.

    What Python still holds of it would be tried once more at the end, and be a second error: so it
    goes nowhere from then on.
    """
    try:
        with atomic.writing("standard output"):
            yield
            sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


@contextlib.contextmanager
def progress(
    label: str, *, unit: str = "it", unit_scale: bool = False, first: str = ""
) -> Iterator[Progress]:
    """Yields `report(done, total)`: a bar on a terminal, otherwise a plain line now and then.

    A total of 0 is one that nobody knows.

    Work that ends within two seconds shows nothing where there is no terminal. Both go on while
    nothing is reported. `first`: what is done before the first report, as "compiling". Nothing is
    shown where the logger is silenced.
    """
    if not LOGGER.isEnabledFor(logging.INFO):
        yield lambda done, total: None  # noqa: ARG005 (the arguments of a report)
    elif sys.stderr.isatty():
        shown = f"{label}, {first}" if first else label
        with _bar(shown, unit=unit, unit_scale=unit_scale) as bar:

            def report(done: int, total: int) -> None:
                bar.desc, bar.bar_format = f"{label}: ", None
                bar.total = total or None
                bar.update(done - bar.n)

            yield report
    else:
        lines = _Lines(label, unit, first)
        with _repeated(lines.remind):
            yield lines.report


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Shows for how long something is done that cannot tell how far it is, as `progress`."""
    if not LOGGER.isEnabledFor(logging.INFO):
        yield
    elif sys.stderr.isatty():
        with _bar(what):
            yield
    else:
        with _repeated(_Lines(what, "", "").remind):
            yield


def _log(level: int, text: str) -> None:
    global _last_line_at
    _last_line_at = time.monotonic()
    LOGGER.log(level, "%s", text)


@contextlib.contextmanager
def _bar(label: str, **settings: Any) -> Iterator[tqdm.tqdm]:
    """Yields a bar, at first the label and a clock, which goes on while nothing is reported."""
    settings |= {"desc": label, "bar_format": "{desc}: {elapsed}", "dynamic_ncols": True}
    with tqdm.tqdm(delay=SHOW_AFTER_S, **settings) as bar:

        def refresh() -> None:
            if time.time() - bar.start_t >= SHOW_AFTER_S:
                bar.refresh()
                bar.last_print_t = max(bar.last_print_t, bar.start_t + SHOW_AFTER_S)

        with _repeated(refresh):
            yield bar


class _Lines:
    """Plain lines on one piece of work: now and then, and not while others are written."""

    def __init__(self, label: str, unit: str, first: str):
        self._label, self._unit, self._state = label, unit, first
        self._start = self._last = time.monotonic()
        self._wait_s = LINE_AFTER_S

    def report(self, done: int, total: int) -> None:
        """Notes how far the work is; writes a line if one is due, or if long work ends."""
        self._state = f"{done}/{total} {self._unit}" if total else f"{done} {self._unit}"
        now = time.monotonic()
        if now - self._last >= self._wait_s or (done == total and now - self._start > LINE_AFTER_S):
            self._write(now)

    def remind(self) -> None:
        """Writes how far the work is if nothing at all was written for a while."""
        now = time.monotonic()
        if now - max(self._last, _last_line_at) >= self._wait_s:
            self._write(now)

    def _write(self, now: float) -> None:
        self._last, self._wait_s = now, LINE_EVERY_S
        state = f"{self._state}, " if self._state else ""
        info(f"{self._label}: {state}{now - self._start:.0f} s")


@contextlib.contextmanager
def _repeated(call: Callable[[], None]) -> Iterator[None]:
    """Calls a function every half a second, in a thread: the work itself may be one long call."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(TICK_S):
            call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


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
