"""What a process keeps: compiled programs, which are counted too, and the host's freed memory."""

import ctypes
import dataclasses
import os
import pathlib
import sys

import jax

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


def describe(count: Count) -> str:
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
