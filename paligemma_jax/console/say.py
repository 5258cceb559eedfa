"""What a person sees while a door works: progress and plain lines on standard error.

Lines go through the logger `paligemma_jax` of `logging`, so whoever calls a door from Python can
silence them (`logging.getLogger("paligemma_jax").setLevel("WARNING")`) or give that logger a
handler of their own. Lower rooms never print: they call the `progress(done, total)` function that
they are given. Standard output belongs to results (`predict` writes JSON lines there).
"""

import contextlib
import logging
import os
import pathlib
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import tqdm

with warnings.catch_warnings():
    # It says so of a notebook without ipywidgets, where lines serve as well as its bars.
    warnings.filterwarnings("ignore", "IProgress not found")
    import tqdm.auto

from paligemma_jax.files import atomic
from paligemma_jax.wording import phrases

LOGGER = logging.getLogger("paligemma_jax")

Progress = Callable[[int, int], None]
SHOW_AFTER_S = 1.0  # of a bar
# Without a terminal: the first line, and the least wait for each further one, which grows with the
# work: an hour of it has some forty lines.
LINE_AFTER_S, LINE_EVERY_S, WAIT_SHARE = 2.0, 10.0, 0.1
TICK_S = 0.5
# On a record of `logging`: whether its line only says that work goes on.
REMINDER = "is_reminder"

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


class LogFile(logging.Handler):
    """Keeps the lines of a process in a file, each with its time; see `kept_in`."""

    def __init__(self) -> None:
        super().__init__()
        self._before: list[str] = []
        self._file: Any = None

    def open(self, path: pathlib.Path) -> None:
        """Writes what was said so far to the end of a file, and what follows as it comes."""
        with atomic.writing(path):
            self._file = path.open("a", encoding="utf-8", errors="replace")
            self._file.write("".join(self._before))
            self._file.flush()
        self._before = []

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, REMINDER, False):
            return
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        lines = phrases.visible(level + self.format(record)).splitlines() or [""]
        text = "".join(f"{when}  {line}".rstrip() + "\n" for line in lines)
        if self._file is None:
            self._before.append(text)
            return
        # As every handler of `logging`: a line that is lost, as on a full disk, stops no run.
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text)
            self._file.flush()

    def close(self) -> None:
        super().close()
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


@contextlib.contextmanager
def kept_in_file() -> Iterator[Callable[[pathlib.Path], None]]:
    """Keeps the lines of a block in a file too; yields what opens it, when its folder is there.

    Lines before that are not lost; of a block that never opens it nothing is left. An error that
    ends the block is the last line.
    """
    file = LogFile()
    LOGGER.addHandler(file)
    try:
        yield file.open
    except BaseException as ending:
        text = str(ending) or type(ending).__name__
        file.handle(LOGGER.makeRecord(LOGGER.name, logging.ERROR, "", 0, "%s", (text,), None))
        raise
    finally:
        LOGGER.removeHandler(file)
        file.close()


def show_on_stderr() -> None:
    """Shows what the doors say on standard error; every door calls it first.

    A logger that has a handler, or a level, keeps it: that is how a program redirects the lines.
    """
    if not any(not isinstance(handler, LogFile) for handler in LOGGER.handlers):
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
    elif shows_bars():
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
    elif shows_bars():
        with _bar(what):
            yield
    else:
        with _repeated(_Lines(what, "", "").remind):
            yield


def shows_bars() -> bool:
    """Whether lines go to a terminal or a notebook, where a bar can be drawn over."""
    in_notebook = any(cls.__module__ == "tqdm.notebook" for cls in tqdm.auto.tqdm.__mro__)
    return in_notebook or sys.stderr.isatty()


def _log(level: int, text: str, *, is_reminder: bool = False) -> None:
    global _last_line_at
    _last_line_at = time.monotonic()
    LOGGER.log(level, "%s", text, extra={REMINDER: is_reminder})


@contextlib.contextmanager
def _bar(label: str, **settings: Any) -> Iterator[Any]:
    """Yields a bar, at first the label and a clock, which goes on while nothing is reported."""
    settings |= {"desc": label, "bar_format": "{desc}: {elapsed}", "dynamic_ncols": True}
    with tqdm.auto.tqdm(delay=SHOW_AFTER_S, **settings) as bar:

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
        last = max(self._last, _last_line_at)
        if now - last >= self._wait_s or (done == total and now - self._start > LINE_AFTER_S):
            self._write(now)

    def remind(self) -> None:
        """Writes how far the work is if nothing at all was written for a while."""
        now = time.monotonic()
        if now - max(self._last, _last_line_at) >= self._wait_s:
            self._write(now)

    def _write(self, now: float) -> None:
        passed = now - self._start
        self._last, self._wait_s = now, max(LINE_EVERY_S, WAIT_SHARE * passed)
        state = f"{self._state}, " if self._state else ""
        _log(
            logging.INFO,
            f"{self._label}: {state}{phrases.duration(passed)}",
            is_reminder=True,
        )


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
