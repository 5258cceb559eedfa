"""Jobs in a process of theirs: one after the other, each with an end of its own."""

import os
import signal
import sys

import pytest

from paligemma_jax.console import workers

# What its process does: jobs that tell of it in a file.
JOBS = """
import os, pathlib, signal, sys
import jax.numpy as jnp
from paligemma_jax.console import process, workers

kept = []


def do(job):
    kept.append(job["name"])
    pathlib.Path(job["out"]).write_text(f"{os.getpid()} {','.join(kept)}")
    match job["name"]:
        case "wrong":
            raise ValueError("said once")
        case "bug":
            raise KeyError("ours")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stopped":
            os.kill(os.getppid(), signal.SIGTERM)
            signal.sigwait([signal.SIGUSR1])
        case "preempted":
            raise process.Preempted("preempted: it goes on")
    return job["name"] != "changes"


if __name__ == "__main__":
    workers.serve(sys.argv[1:], do)
"""


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Returns the function (name of a job) -> (status, was stopped, process, jobs it had)."""
    (tmp_path / "these_jobs.py").write_text(JOBS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))

    def call(name: str) -> tuple[int, bool, str, str]:
        ended = worker.call({"name": name, "out": str(tmp_path / "out")})
        return (*ended, *(tmp_path / "out").read_text().split())

    with workers.Worker("these_jobs") as worker:
        yield call


def test_jobs_share_a_process_until_one_fails_or_changes_it(ask, capfd):
    first, second = ask("one"), ask("two")
    assert first[:2] == second[:2] == (0, False) and first[2] == second[2]
    assert (first[3], second[3]) == ("one", "one,two")
    assert ask("wrong")[0] == 2
    assert capfd.readouterr().err.startswith("error: said once\n(ValueError;")
    after = ask("changes")
    assert after[0] == 0 and after[3] == "changes"  # the failed one had ended its process
    assert ask("last")[3] == "last"


@pytest.mark.slow
def test_a_job_that_dies_ends_no_other_and_has_the_status_of_its_process(ask, capfd):
    assert ask("killed")[:2] == (-signal.SIGKILL, False)
    assert ask("bug")[0] == 1
    assert "KeyError: 'ours'" in capfd.readouterr().err
    assert ask("preempted")[0] == 75
    before = signal.getsignal(signal.SIGTERM)
    assert ask("stopped")[:2] == (-signal.SIGTERM, True)
    assert signal.getsignal(signal.SIGTERM) == before
    assert ask("last")[:2] == (0, False)
