"""The process of a door: compiled programs, freed memory, signals to stop, and its partners."""

import atexit
import contextlib
import ctypes
import dataclasses
import faulthandler
import hashlib
import importlib.metadata
import inspect
import itertools
import json
import os
import pathlib
import platform
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The service's client: jax.distributed shows initialize, is_initialized and shutdown alone, and
# jax.experimental.multihost_utils speaks over the devices, which may wait for the one that failed.
from jax._src import distributed
from jax.sharding import NamedSharding, PartitionSpec

from paligemma_jax.console import say

CACHE_ENV = "JAX_COMPILATION_CACHE_DIR"
DEFAULT_CACHE = "~/.cache/paligemma_jax/programs"
# A run has some twenty programs that take between this and the second that jax would have.
KEPT_ENV, KEPT_FROM_S = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", 0.1

# How jax's warnings on an entry of the cache begin.
CACHE_WARNINGS = (
    UNREADABLE := "Error reading persistent compilation cache entry",
    "Error writing persistent compilation cache entry",
)
COMPILED, FROM_CACHE = (
    "/jax/core/compile/backend_compile_duration",
    "/jax/compilation_cache/cache_hits",
)


@dataclasses.dataclass
class Count:
    """Programs that this process needed so far.

    programs: all of them; from_cache: those that an earlier run had compiled; seconds: that they
    took, either way.
    """

    programs: int = 0
    from_cache: int = 0
    seconds: float = 0.0


def keep_programs() -> None:
    """Keeps compiled programs in the user's cache folder, for later runs.

    JAX_COMPILATION_CACHE_DIR names another folder; JAX_ENABLE_COMPILATION_CACHE=false keeps none;
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS says how long one takes at least that is kept.
    """
    if not os.environ.get(KEPT_ENV):
        jax.config.update(KEPT_ENV.lower(), KEPT_FROM_S)
    folder = os.environ.get(CACHE_ENV) or os.fspath(pathlib.Path(DEFAULT_CACHE).expanduser())
    jax.config.update("jax_compilation_cache_dir", folder)
    if "://" not in folder:
        try:
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            jax.config.update("jax_enable_compilation_cache", False)
            why = f"{folder} cannot be made ({error.strerror})"
            say.warning(f"compiled programs are not kept: {why}; {CACHE_ENV} names a folder")
    _heal_programs(pathlib.Path(folder))


def _heal_programs(folder: pathlib.Path) -> None:
    """Has a damaged program removed when it is read, so that it is kept anew; says so in a line.

    A process that is killed, or a full disk, leaves them. By itself jax warns in every run,
    compiles the program, and does not replace the entry.
    """
    show = warnings.showwarning
    if getattr(show, "heals_programs", False):
        return
    warnings.filterwarnings("always", message="|".join(CACHE_WARNINGS))
    reasons = set()

    def show_others(message: Any, *arguments: Any, **options: Any) -> None:
        text = str(message)
        entry = _entry_at_hand(folder) if text.startswith(CACHE_WARNINGS) else None
        if entry is None:
            show(message, *arguments, **options)
            return
        with contextlib.suppress(OSError):
            entry.unlink(missing_ok=True)
        if text.startswith(UNREADABLE):
            say.info(f"{entry}: a damaged program, removed: it is compiled again")
        elif (reason := text.partition("': ")[2]) not in reasons:
            reasons.add(reason)
            say.warning(f"{entry.parent}: compiled programs cannot be kept there: {reason}")

    setattr(show_others, "heals_programs", True)  # noqa: B010 (a function's own mark)
    warnings.showwarning = show_others


def _entry_at_hand(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the file of the program that jax reads or writes as it warns: its callers know."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(key := frame.f_locals.get("cache_key"), str):
            return folder / f"{key}-cache"
        frame = frame.f_back
    return None


@contextlib.contextmanager
def counting() -> Iterator[Count]:
    """Yields a count that follows this process within the block."""
    count = Count()

    def add_program(event: str, duration_secs: float, **_: object) -> None:
        if event == COMPILED:
            count.programs += 1
            count.seconds += duration_secs

    def add_hit(event: str, **_: object) -> None:
        count.from_cache += event == FROM_CACHE

    jax.monitoring.register_event_duration_secs_listener(add_program)
    jax.monitoring.register_event_listener(add_hit)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_duration_listener(add_program)
        jax.monitoring.unregister_event_listener(add_hit)


def describe_count(count: Count) -> str:
    """Returns the count in words."""
    return (
        f"compiled {count.programs} programs in {count.seconds:.1f} s, {count.from_cache} of them "
        f"known from earlier runs"
    )


# mallopt(3) of the GNU C library.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MIB = 2**20


def prepare() -> None:
    """Does what every process of a door begins with: programs are kept, and so is freed memory."""
    keep_freed_memory()
    keep_programs()


def keep_freed_memory() -> bool:
    """Makes the allocator reuse freed buffers of up to 256 MiB; returns whether it could.

    A step on the CPU allocates its activations anew every time. By default each of them is mapped
    from the kernel and given back, page by page: a third of the time of a small model's step. At
    most 1 GiB is kept unused. Elsewhere than with glibc nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = {M_MMAP_THRESHOLD: 256 * MIB, M_TRIM_THRESHOLD: 1024 * MIB, M_TOP_PAD: 64 * MIB}
    return all(mallopt(option, value) for option, value in settings.items())


# SIGTERM and SIGINT ask a run to stop: it ends its step and saves. A second one stops it at once.
#
# A run that stopped so ends with status 75, which sysexits.h calls EX_TEMPFAIL: try again later. No
# shell and no killed program has it, so a script can tell a run that goes on when called again:
#
#     until python -m paligemma_jax.train ...; [ $? -ne 75 ]; do sleep 60; done

PREEMPTED = 75
FAILED = 2
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(Exception):
    """A run that was asked to stop, and whose state is saved."""


class StopRequest:
    """Within `with`, signals are noted instead of obeyed; a call returns whether to stop.

    With several processes it is a question to all of them, asked once a step: they stop together,
    one step after the first that got a signal. The answer is reduced on the devices behind the step
    and read a step later, so nobody waits for it.

    Args:
      by_device: a sharding that gives each device one element of an array of as many.
    """

    def __init__(self, by_device: NamedSharding):
        self.signal: str | None = None
        self._before: dict[int, Any] = {}
        self._agree = _make_agree(by_device) if jax.process_count() > 1 else bool

    def __call__(self) -> bool:
        return self._agree(self.signal is not None)

    def __enter__(self) -> "StopRequest":
        # Python allows it in the main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        self.signal = signal.Signals(number).name
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        # Not `say`: a handler may come in the middle of another write.
        text = f"{self.signal}: finishing what runs, then saving; once more stops at once\n"
        os.write(2, text.encode())


def _make_agree(by_device: NamedSharding) -> Callable[[bool], bool]:
    """Returns the function (this process's flag) -> whether any process's was set, a call ago."""
    mesh = by_device.mesh
    any_of = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
    asked: jax.Array | None = None

    def agree(mine: bool) -> bool:
        nonlocal asked
        before = asked
        flags = np.full(jax.local_device_count(), mine, np.int32)
        asked = any_of(jax.make_array_from_process_local_data(by_device, flags, (mesh.size,)))
        return before is not None and bool(before)

    return agree


# Several processes of one run. What they tell each other, besides arrays, goes through the service
# of jax.distributed: it answers while a device waits for another one.

NOTES = "paligemma_jax"
LOOK_S = 0.5
# An error that all processes have is said by each; who has none by then is ended.
GRACE_S = 5.0
SILENT_S = 30.0  # of a process that beats every LOOK_S
JOIN_S = 300  # that the processes of a run wait for each other at the start
COMPARE_S = 1800.0  # for reading data sets of many rows, which takes one longer than another
COMPARED = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow", "sentencepiece"),
    *("tensorflow", "tensorflow-cpu"),
)
_is_ending = threading.Event()
_rounds = itertools.count()


def join(address: str | None, *, count: int | None, number: int | None) -> None:
    """Connects this process with the others of its run, and ends it soon after one that fails.

    Raises:
      RuntimeError, ValueError: they are not all there within `JOIN_S`.
    """
    jax.distributed.initialize(
        address, num_processes=count, process_id=number, initialization_timeout=JOIN_S
    )
    atexit.register(_note, "left")  # before jax waits for the others: it is not missed then
    threading.Thread(target=_watch, daemon=True).start()


def require_same(what: str, facts: Callable[[], Mapping[str, Any]]) -> None:
    """Raises a ValueError in all processes of a run if a fact of one is not that of the first.

    All of them call it, in the same order. It needs no device.

    Args:
      what: they are facts of.
      facts: gives dotted name -> value, as JSON has them; not called where nobody else is.
    """
    state: Any = distributed.global_state
    if not has_partners():
        return
    place = f"{NOTES}/compared/{next(_rounds)}"
    state.client.key_value_set(f"{place}/{state.process_id}", json.dumps(_flat(facts())))
    lines, first = [], {}
    for number in range(state.num_processes):
        text = state.client.blocking_key_value_get(f"{place}/{number}", int(COMPARE_S * 1e3))
        theirs = json.loads(text)
        first = first or theirs
        lines += [
            f"{key}: {_shown(first, key)} in process 0, {_shown(theirs, key)} in process {number}"
            for key in dict.fromkeys([*first, *theirs])
            if first.get(key) != theirs.get(key)
        ]
    if lines:
        more = [f"and {len(lines) - 20} more"] if len(lines) > 20 else []
        raise ValueError(
            "\n  ".join([f"the processes of this run differ in their {what}:", *lines[:20], *more])
            + "\nStart all of them with the same command, code, data and packages"
        )


def make_largest() -> Callable[[int], int]:
    """Returns the function (a number of this process) -> the largest of all processes of the run.

    All of them make it, and call it, equally often. It needs no device: these may compute.
    """
    if not has_partners():
        return int
    state: Any = distributed.global_state
    place, calls, mine = f"{NOTES}/largest/{next(_rounds)}", itertools.count(), state.process_id

    def largest(number: int) -> int:
        call = next(calls)
        state.client.key_value_set(f"{place}/{call}/{mine}", str(number))
        numbers = [
            state.client.blocking_key_value_get(f"{place}/{call}/{other}", int(COMPARE_S * 1e3))
            for other in range(state.num_processes)
        ]
        # Whoever noted something in this call has read all of the one before.
        if call:
            state.client.key_value_delete(f"{place}/{call - 1}/{mine}")
        return max(map(int, numbers))

    return largest


def versions() -> dict[str, str]:
    """Returns what computes: the versions of Python and packages, and a digest of our own code."""
    known = {"python": platform.python_version()}
    for name in COMPARED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[name] = importlib.metadata.version(name)
    package, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return known | {"paligemma_jax": digest.hexdigest()[:16]}


def has_partners() -> bool:
    """Whether this is one of several processes of a run."""
    state = distributed.global_state
    return state.client is not None and (state.num_processes or 1) > 1


def end_all(message: str, status: int) -> None:
    """Ends this process after an error, and the others of its run; returns if there are none.

    Without it each would wait for the other: in a sum over all devices, and when it ends. The first
    process ends last: the service through which they hear of it is in it.
    """
    if not has_partners():
        return
    state: Any = distributed.global_state
    _is_ending.set()
    _note("failed", message[:2000])
    with contextlib.suppress(Exception):
        end = time.monotonic() + 2 * GRACE_S
        while (
            time.monotonic() < end and len(_read("failed") | _read("ended")) < state.num_processes
        ):
            time.sleep(LOOK_S / 5)
        if state.process_id == 0:
            time.sleep(2 * LOOK_S)
    _exit(status)


def _watch() -> None:
    """Ends this process soon after another one of its run has failed, or has become silent."""
    state: Any = distributed.global_state
    heard: dict[int, tuple[str, float]] = {}
    while state.client is not None:
        time.sleep(LOOK_S)
        try:
            state.client.key_value_increment(f"{NOTES}/alive/{state.process_id}", 1)
            failed, silent = _read("failed"), _find_silent(heard)
        except Exception:  # the service ends before this thread does
            return
        if silent is not None and not failed:
            what = f"nothing has come from it for {SILENT_S:g} s. It was killed, or its machine is"
            say.error(f"process {silent} of this run is gone: {what} down. This one was doing:")
            faulthandler.dump_traceback()
            _exit(FAILED)
        if failed.keys() - {state.process_id}:
            if _is_ending.wait(GRACE_S):
                return  # with an error of its own
            number, message = min(failed.items())
            say.error(f"process {number} of this run failed, so this one ends too: {message}")
            _note("ended")
            # The first process is heard out by the others, as in `end_all`.
            time.sleep(2 * LOOK_S if state.process_id == 0 else 0)
            _exit(FAILED)


def _note(kind: str, text: str = "") -> None:
    state: Any = distributed.global_state
    with contextlib.suppress(Exception):
        state.client.key_value_set(f"{NOTES}/{kind}/{state.process_id}", text)


def _find_silent(heard: dict[int, tuple[str, float]]) -> int | None:
    """Returns a process that has not moved for `SILENT_S` and did not end by itself.

    `heard`: process -> (the last that came from it, when), as this function keeps it.
    """
    now, left = time.monotonic(), _read("left")
    for number, text in _read("alive").items():
        if text != heard.get(number, ("", 0.0))[0]:
            heard[number] = text, now
    return next((n for n, (_, at) in heard.items() if now - at > SILENT_S and n not in left), None)


def _read(kind: str) -> dict[int, str]:
    """Returns process -> what it noted."""
    client: Any = distributed.global_state.client
    notes = client.key_value_dir_get(f"{NOTES}/{kind}/")
    return {int(key.rpartition("/")[2]): text for key, text in notes}


def _exit(status: int) -> None:
    """Ends the process without what waits for the others at its end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in facts.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _shown(facts: Mapping[str, Any], key: str) -> str:
    return f"{facts[key]!r:.200}" if key in facts else "not set"
