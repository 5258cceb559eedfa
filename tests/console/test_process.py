import os
import signal
import subprocess
import sys

import pytest

from paligemma_jax.console import arguments, process
from paligemma_jax.params import sharding

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


# Signals become a question that the loop asks; a second one is obeyed.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_noted_and_the_next_one_would_end_the_program(number, capfd):
    before = {each: signal.getsignal(each) for each in process.SIGNALS}
    with process.StopRequest(sharding.batch_sharding(sharding.make_mesh([("data", -1)]))) as stop:
        assert not stop() and stop.signal is None
        os.kill(os.getpid(), number)
        assert stop() and stop.signal == signal.Signals(number).name
        assert {signal.getsignal(each) for each in process.SIGNALS} == {signal.SIG_DFL}
    assert {each: signal.getsignal(each) for each in process.SIGNALS} == before
    assert "once more stops at once" in capfd.readouterr().err


def test_second_signal_ends_a_program_at_once():
    program = """if True:
        import os, signal
        from paligemma_jax.console import process
        from paligemma_jax.params import sharding
        with process.StopRequest(sharding.batch_sharding(sharding.make_mesh([("data", -1)]))):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
        """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGTERM


def test_preempted_run_has_a_status_of_its_own(capsys):
    def main():
        raise process.Preempted("preempted: SIGTERM after step 3 of 9")

    with pytest.raises(SystemExit) as caught:
        arguments.run(main)
    assert caught.value.code == 75
    assert capsys.readouterr().err == "warning: preempted: SIGTERM after step 3 of 9\n"


def test_called_program_gets_the_signals_and_its_status_is_told():
    program = "import os, signal; os.kill(os.getppid(), signal.SIGTERM); signal.pause()"
    before = signal.getsignal(signal.SIGTERM)
    assert process.call([sys.executable, "-c", program]) == (-signal.SIGTERM, True)
    assert process.call([sys.executable, "-c", "raise SystemExit(7)"]) == (7, False)
    assert signal.getsignal(signal.SIGTERM) == before
