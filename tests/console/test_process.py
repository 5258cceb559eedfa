import os
import subprocess
import sys

import pytest

from paligemma_jax.console import process

# Maps and frees 100 MiB again and again, and prints the page faults that the last rounds took.
PROGRAM = """
import resource, sys
from paligemma_jax.console import process
if sys.argv[1] == "keep":
    assert process.keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for round in range(6):
    if round == 3:
        before = faults()
    block = bytearray(100 * 2**20)
    del block
print(faults() - before)
"""


def page_faults(*, how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"),
    reason="the allocator is glibc's",
)
def test_freed_memory_is_used_again_without_the_kernel():
    assert page_faults(how="plain") > 10 * page_faults(how="keep")


def test_other_systems_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not process.keep_freed_memory()
