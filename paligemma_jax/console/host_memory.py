"""The host's memory: how much there is; and keeping what is freed, for the next step."""

import ctypes
import os
import pathlib
import sys

# mallopt(3) of the GNU C library.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MIB = 2**20
# Of a container, in the two versions of Linux control groups.
GROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def total() -> int | None:
    """Returns the bytes of memory that this machine or container has; None where it cannot tell."""
    try:
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, ValueError, OSError):
        return None
    for path in map(pathlib.Path, GROUP_LIMITS):
        text = path.read_text().strip() if path.exists() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)


def keep_freed() -> bool:
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
