"""Signals become a question that the loop asks; a second one is obeyed."""

import os
import signal
import subprocess
import sys

import pytest

from paligemma_jax.console import arguments, signals
from paligemma_jax.params import sharding


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_noted_and_the_next_one_would_end_the_program(number, capfd):
    before = {each: signal.getsignal(each) for each in signals.SIGNALS}
    with signals.StopRequest(sharding.batch_sharding(sharding.make_mesh([("data", -1)]))) as stop:
        assert not stop() and stop.signal is None
        os.kill(os.getpid(), number)
        assert stop() and stop.signal == signal.Signals(number).name
        assert {signal.getsignal(each) for each in signals.SIGNALS} == {signal.SIG_DFL}
    assert {each: signal.getsignal(each) for each in signals.SIGNALS} == before
    assert "once more stops at once" in capfd.readouterr().err


def test_second_signal_ends_a_program_at_once():
    program = """if True:
        import os, signal
        from paligemma_jax.console import signals
        from paligemma_jax.params import sharding
        with signals.StopRequest(sharding.batch_sharding(sharding.make_mesh([("data", -1)]))):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
        """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGTERM


def test_preempted_run_has_a_status_of_its_own(capsys):
    def main():
        raise signals.Preempted("preempted: SIGTERM after step 3 of 9")

    with pytest.raises(SystemExit) as caught:
        arguments.run(main)
    assert caught.value.code == 75
    assert capsys.readouterr().err == "warning: preempted: SIGTERM after step 3 of 9\n"


def test_called_program_gets_the_signals_and_its_status_is_told():
    program = "import os, signal; os.kill(os.getppid(), signal.SIGTERM); signal.pause()"
    before = signal.getsignal(signal.SIGTERM)
    assert signals.call([sys.executable, "-c", program]) == (-signal.SIGTERM, True)
    assert signals.call([sys.executable, "-c", "raise SystemExit(7)"]) == (7, False)
    assert signal.getsignal(signal.SIGTERM) == before
