"""Runs with Adam in 8 bits go on from a checkpoint bit for bit."""

import shutil

import numpy as np
import pytest

from paligemma_jax.checkpoints import npz
from paligemma_jax.reports import run_log
from paligemma_jax.runs import whole_run
from paligemma_jax.settings import load
from tests import tiny_runs

pytestmark = pytest.mark.slow
WHOLE = {"trainable": None, "frozen_dtype": None, "lr": 0.01, "model.llm.dims.mlp_dim": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adam_8bit")
    tiny_runs.write_data(folder)
    config = tiny_runs.make_config(folder, **WHOLE)
    tiny_runs.write_base(folder / "base.npz", config)
    return folder


@pytest.mark.parametrize("name", ["adam_8bit", "paged_adam_8bit"])
def test_a_run_that_goes_on_equals_one_that_was_never_stopped(folder, name):
    changes = {**WHOLE, **tiny_runs.NOTHING_ON_THE_WAY, "optax_name": name, "ckpt_steps": 2}
    settings = load.typed(tiny_runs.make_config(folder, **changes))
    whole, parts = folder / f"{name}_whole", folder / f"{name}_parts"
    whole_run.train(settings, whole)
    whole_run.train(settings, parts)
    (parts / "final.npz").unlink()
    shutil.rmtree(parts / "checkpoints" / "000004")
    whole_run.train(settings, parts)
    assert [row["step"] for row in run_log.read_rows(parts / "metrics.jsonl")][-2:] == [3, 4]
    one, other = (npz.read(run / "final.npz") for run in (whole, parts))
    assert all(np.array_equal(one[array], other[array]) for array in one)
