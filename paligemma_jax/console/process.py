"""The process of a door: its compiled programs, the host's freed memory, and signals to stop."""

import ctypes
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

CACHE_ENV = "JAX_COMPILATION_CACHE_DIR"
DEFAULT_CACHE = "~/.cache/paligemma_jax/programs"

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
    """Keeps what takes a second or more to compile in the user's cache folder, for later runs.

    JAX_COMPILATION_CACHE_DIR names another folder; JAX_ENABLE_COMPILATION_CACHE=false keeps none.
    """
    if not os.environ.get(CACHE_ENV):
        folder = pathlib.Path(DEFAULT_CACHE).expanduser()
        jax.config.update("jax_compilation_cache_dir", os.fspath(folder))


def start_counting() -> Count:
    """Returns a count that follows this process from now on."""
    count = Count()

    def add_program(event: str, duration_secs: float, **_: object) -> None:
        if event == COMPILED:
            count.programs += 1
            count.seconds += duration_secs

    def add_hit(event: str, **_: object) -> None:
        count.from_cache += event == FROM_CACHE

    jax.monitoring.register_event_duration_secs_listener(add_program)
    jax.monitoring.register_event_listener(add_hit)
    return count


def describe_count(count: Count) -> str:
    """Returns the count in words."""
    return (
        f"compiled {count.programs} programs in {count.seconds:.1f} s, {count.from_cache} of them "
        f"known from earlier runs"
    )


# mallopt(3) of the GNU C library.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MIB = 2**20
# Of a container, in the two versions of Linux control groups.
GROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def total_memory() -> int | None:
    """Returns the bytes of memory that this machine or container has; None where it cannot tell."""
    try:
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):
        return None
    for path in map(pathlib.Path, GROUP_LIMITS):
        text = path.read_text().strip() if path.exists() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


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


def call(command: Sequence[str]) -> tuple[int, bool]:
    """Runs a command, and hands it the signals that this process gets.

    Returns:
      (its exit status, whether there was a signal).
    """
    # In a session of its own Ctrl-C reaches it once, from here.
    process = subprocess.Popen(command, start_new_session=True)
    was_stopped = False

    def pass_on(number: int, _: Any) -> None:
        nonlocal was_stopped
        was_stopped = True
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        return process.wait(), was_stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
