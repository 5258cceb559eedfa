"""The process that trains runs of a sweep in turn: `python -m paligemma_jax.runs.sweep_worker`.

It is asked by `sweep_runs.train`, for one run after the other; see `console.workers`. Runs that
differ in arguments of their programs alone find these traced and compiled.
"""

import pathlib
import sys

from paligemma_jax.console import workers
from paligemma_jax.runs import whole_run
from paligemma_jax.settings import load


def train(job: workers.Job) -> bool:
    """Trains a run to its end; returns whether this process can train another one as a new would.

    A config that changes the process, as by setting a variable of its environment, leaves that to
    the runs behind it: they get another process.
    """
    before = workers.surroundings()
    settings = load.load(job["source"], job["overrides"])
    is_as_before = workers.surroundings() == before
    whole_run.train(settings, pathlib.Path(job["workdir"]))
    return is_as_before


if __name__ == "__main__":
    workers.serve(sys.argv[1:], train)
