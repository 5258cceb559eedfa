"""A process that does one job after the other, and what it keeps of them: imports and programs."""

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from paligemma_jax.console import arguments, process, say

Job = Mapping[str, Any]  # as JSON has it


class Worker:
    """Runs jobs one after the other in a process of theirs, and after one that failed in a new one.

    A job's process is like that of a command: it has this one's standard streams, is handed the
    signals that this one gets, and its end, however it comes, ends no other job. Close it: `with`.

    Args:
      module: whose `__main__` calls `serve`.
    """

    def __init__(self, module: str):
        self._module = module
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: Any = None

    def call(self, job: Job) -> tuple[int, bool]:
        """Does a job; returns (the exit status of a process of its own, whether a signal came)."""
        was_stopped = False

        def pass_on(number: int, _: Any) -> None:
            nonlocal was_stopped
            was_stopped = True
            worker.send_signal(number)

        worker = self._process or self._start()
        before = {number: signal.signal(number, pass_on) for number in process.SIGNALS}
        try:
            status, is_over = self._ask(job)
            if is_over:
                self.close()
            # One that ended without an answer, as killed ones do.
            return worker.wait() if status is None else status, was_stopped
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Lets the process end, and waits for it."""
        if self._process is not None:
            with contextlib.suppress(OSError):  # of what it can no longer be asked
                self._answers.close()
            self._process.wait()
            self._process = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            # In a session of its own Ctrl-C reaches it once, from here.
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module, str(theirs.fileno()), sys.argv[0]],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            self._answers = ours.makefile("rw", encoding="utf-8")
        return self._process

    def _ask(self, job: Job) -> tuple[int | None, bool]:
        """Returns (a job's status, whether its process takes no more); (None, True): it died."""
        with contextlib.suppress(OSError):
            self._answers.write(json.dumps(job) + "\n")
            self._answers.flush()
            if answer := self._answers.readline():
                status, is_over = json.loads(answer)
                return status, is_over or status != 0
        return None, True


def serve(words: Sequence[str], do: Callable[[Job], bool]) -> None:
    """Does the jobs that a `Worker` asks for, until it asks for no more.

    What a job leaves behind is freed before the next: programs stay, arrays do not.

    Args:
      words: of the command line: the file through which it asks, and what called it.
      do: a job; returns whether this process may do another one.
    """
    say.show_on_stderr()
    process.prepare()
    asked, sys.argv[0] = socket.socket(fileno=int(words[0])), words[1]
    # Between two jobs nothing has to be said of a signal.
    with contextlib.suppress(KeyboardInterrupt), asked.makefile("rw", encoding="utf-8") as file:
        while job := file.readline():
            may_go_on = [False]

            def one(job: str = job, may_go_on: list[bool] = may_go_on) -> None:
                may_go_on[0] = do(json.loads(job))

            status = arguments.status_of(one)
            gc.collect()
            file.write(json.dumps([status, not may_go_on[0]]) + "\n")
            file.flush()


def surroundings() -> dict[str, Any]:
    """Returns what one job may set for the whole process: its environment, and jax's settings."""
    return {**os.environ, **{f"jax: {name}": value for name, value in jax.config.values.items()}}
