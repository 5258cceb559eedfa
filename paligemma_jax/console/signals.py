"""SIGTERM and SIGINT ask a run to stop: it ends its step and saves. A second one stops it at once.

A run that stopped so ends with status 75, which sysexits.h calls EX_TEMPFAIL: try again later. No
shell and no killed program has it, so a script can tell a run that goes on when called again:

    until python -m paligemma_jax.train ...; [ $? -ne 75 ]; do sleep 60; done
"""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

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
