"""What a run would meet later is said before its weights are loaded."""

import dataclasses

import jax
import numpy as np
import pytest

from paligemma_jax.assembly import assembly
from paligemma_jax.checkpoints import npz
from paligemma_jax.files import run_folder
from paligemma_jax.reports import run_log
from paligemma_jax.runs import optimization, saving, training_log, training_run
from paligemma_jax.settings import load
from paligemma_jax.training import step


def plan(config, **changes):
    for key, value in changes.items():
        config.evals.val[key] = value
    return training_run.plan(assembly.assemble(load.typed(config)))


def test_plan_of_good_settings_is_made(config):
    planned = plan(config, log_percent=0.5)
    assert planned.total_steps == 2
    assert [every for _, every in planned.evaluations] == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(temperature=0.5), "temperature=0.5 has no effect on sampler 'greedy'"),
        (dict(sampler="nucleus", top_p=1.5), "top_p <= 1"),
        (dict(sampler="beam", best_of=2), "'beam' has no use for best_of"),
        (dict(log_steps=1, log_percent=0.5), "evals.val: set one of"),
        (dict(log_percent=2), "evals.val: log_percent=2 is a fraction"),
    ],
)
def test_evaluation_that_could_not_run_is_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        plan(config, **changes)


def test_passes_over_sources_and_norms_of_parts_make_no_row_of_an_evaluation(tmp_path):
    with training_log.Log(tmp_path, every=10, total_steps=20) as log:
        for number in range(2, 12):
            parts = {"epochs/cats": number / 2, "update_norm/llm_attn": 0.1}
            log.append({"step": number, "loss": 1.0, **parts})
    rows = run_log.read_rows(tmp_path / run_folder.METRICS)
    assert [(row["step"], row["epochs/cats"]) for row in rows] == [(10, 5.0)]


def test_the_average_is_saved_where_one_is_kept(config, tmp_path):
    config.ema_decay, config.trainable = 0.5, "llm/final_norm/.*"
    built = assembly.assemble(load.typed(config))
    planned = training_run.plan(built)
    zeros = {name: np.zeros(x.shape, x.dtype) for name, x in built.model.shapes().items()}
    state = step.init_state(zeros, planned.optimizer.trainable, planned.optimizer.tx)
    later = jax.tree.map(lambda x: x + 1, state.opt_state)  # the average among it
    state = dataclasses.replace(state, opt_state=later)
    training_run.save(built, planned, state, tmp_path / "final.npz")
    saved = npz.read(tmp_path / "final.npz")
    assert saved.keys() == zeros.keys()
    assert {name for name, x in saved.items() if x.any()} == {"llm/final_norm/scale"}


@pytest.mark.slow
def test_nan_in_a_weight_stops_the_run_naming_it_with_the_last_good_state_on_disk(config, tmp_path):
    config.evals, config.ckpt_steps = {}, 1
    built = assembly.assemble(load.typed(config))
    planned = training_run.plan(built)
    begun = (built, planned.optimizer, planned.data.records, planned.base, tmp_path)
    state, about = saving.start(*begun, total_steps=2)
    recipe = optimization.Recipe(
        (), load.typed(config), built.functions, planned.optimizer, state, {}, groups=()
    )
    train_step = optimization.make_train_step(recipe)

    def run(state, stop):
        with (
            training_log.Log(tmp_path, every=1, total_steps=2, done=int(state.step)) as log,
            saving.Saver(planned.saving, about, tmp_path, total=2) as saver,
        ):
            parts = (built, planned, state, train_step, tmp_path)
            return training_run.run(*parts, log=log, saver=saver, stop=stop)

    state = run(state, stop=lambda: True)
    name = "llm/layers/attn/attn_vec_einsum/w"
    state.trainable[name] = state.trainable[name].at[0].set(np.nan)
    with pytest.raises(FloatingPointError, match=f"step 2: loss is nan.*not finite: {name}"):
        run(state, stop=lambda: False)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000001"]
    state, _ = saving.start(*begun, total_steps=2)
    assert int(state.step) == 1 and np.isfinite(state.trainable[name]).all()


def test_rows_with_more_images_than_slots_are_refused(config, data_folder):
    message = r"two.jsonl:2: 2 images, but max_images is 1; set max_images=2"
    with pytest.raises(ValueError, match=message):
        plan(config, fname=f"{data_folder}/two.jsonl")
    config.evals = {}
    config.input.data.fname = f"{data_folder}/two.jsonl"
    with pytest.raises(ValueError, match=message):
        training_run.plan(assembly.assemble(load.typed(config)))
