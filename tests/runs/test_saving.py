"""Where a run goes on: from the newest checkpoint that is whole, on the weights it began with."""

import dataclasses
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.assembly import assembly
from paligemma_jax.checkpoints import npz, train_checkpoint
from paligemma_jax.runs import saving, training_run
from paligemma_jax.settings import load
from paligemma_jax.training import step


@pytest.fixture
def frozen(config, tmp_path):
    """Settings that train the language model alone, on weights of a file."""
    params = assembly.load_weights(assembly.assemble(load.typed(config)), None)
    half = {name: array.astype(jnp.float16) for name, array in params.items()}
    npz.write(tmp_path / "base.npz", half)
    config.model_init = str(tmp_path / "base.npz")
    config.trainable = "llm/layers/.*"
    return config


def start(config, workdir, **settings):
    """Returns (state, saver) of a run that begins, or goes on."""
    built = assembly.assemble(load.typed(config))
    planned = training_run.plan(built)
    parts = (planned.optimizer, planned.data.records, planned.base)
    state, about = saving.start(built, *parts, workdir, total_steps=9, **settings)
    return state, saving.Saver(planned.saving, about, workdir, total=9)


def update(state: step.TrainState) -> step.TrainState:
    """Returns another state, one update further."""
    return step.TrainState(
        step=state.step + 1,
        trainable=jax.tree.map(lambda x: x * 1.5 + 1, state.trainable),
        frozen=state.frozen,
        opt_state=jax.tree.map(lambda x: x + 1, state.opt_state),
    )


def save(config, workdir, number: int) -> list[step.TrainState]:
    """Saves the states after 1 .. number updates and returns all, the first included."""
    state, saver = start(config, workdir)
    states = [state]
    with saver:
        for _ in range(number):
            states.append(update(states[-1]))
            saver.stop(states[-1])
    return states


def checkpoints(workdir) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def assert_equal(one: step.TrainState, other: step.TrainState) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert jax.tree.map(lambda x: x.sharding, one) == jax.tree.map(lambda x: x.sharding, other)


def test_run_goes_on_with_the_state_that_it_saved_and_frozen_weights_of_its_file(frozen, tmp_path):
    states = save(frozen, tmp_path, 2)
    found, _ = start(frozen, tmp_path)
    assert_equal(found, states[2])
    held = train_checkpoint.read_metadata(tmp_path / "checkpoints/000002")["arrays"]
    assert not [name for name in held if name.removeprefix("trainable/") in found.frozen]


def test_frozen_weights_from_the_seed_are_made_again(config, tmp_path):
    config.trainable = "llm/layers/.*"
    states = save(config, tmp_path, 1)
    assert_equal(start(config, tmp_path)[0], states[1])
    config.seed = 1
    message = r"other frozen weights: random ones of seed 0 .*; these are random ones of seed 1 "
    with pytest.raises(ValueError, match=message):
        start(config, tmp_path, resume_anyway=True)


def test_checkpoint_of_a_run_with_another_seed_is_not_taken_in_silence(config, tmp_path, capsys):
    save(config, tmp_path / "one", 1)
    config.seed = 1
    other = save(config, tmp_path / "other", 2)
    shutil.copytree(tmp_path / "other/checkpoints/000002", tmp_path / "one/checkpoints/000002")
    config.seed = 0
    message = (
        r"(?s)one/checkpoints/000002 is not of the run .* in .*one: .*\n  seed: 1 there, 0 now"
    )
    with pytest.raises(ValueError, match=message + ".*Remove that checkpoint.*--resume_anyway"):
        start(config, tmp_path / "one")
    assert_equal(start(config, tmp_path / "one", resume_anyway=True)[0], other[2])
    assert "seed: 1 there, 0 now" in capsys.readouterr().err


def test_checkpoint_from_before_settings_were_kept_with_it_is_taken(config, tmp_path, monkeypatch):
    monkeypatch.setattr(saving.load, "to_json", lambda _: "null")
    states = save(config, tmp_path, 1)
    monkeypatch.undo()
    assert_equal(start(config, tmp_path)[0], states[1])


def test_changed_base_is_an_error_that_names_both(frozen, tmp_path):
    save(frozen, tmp_path, 1)
    shutil.copy(tmp_path / "base.npz", tmp_path / "copy.npz")
    frozen.model_init = str(tmp_path / "copy.npz")  # another name is no other base
    start(frozen, tmp_path, resume_anyway=True)
    params = npz.read(tmp_path / "base.npz")
    params["img/head/bias"][0] += 1
    npz.write(tmp_path / "other.npz", params)
    frozen.model_init = str(tmp_path / "other.npz")
    message = r"000001 was trained on other frozen weights: .*base.npz \(.*these are .*other.npz \("
    with pytest.raises(ValueError, match=message):
        start(frozen, tmp_path, resume_anyway=True)


def test_changed_data_must_be_wanted(config, data_folder, tmp_path):
    states = save(config, tmp_path, 1)
    config.input.data.fname = f"{data_folder}/eos.jsonl"
    with pytest.raises(
        ValueError, match=r"(?s)other settings or data:\n.*  data.texts: .*--resume_any"
    ):
        start(config, tmp_path)
    assert_equal(start(config, tmp_path, resume_anyway=True)[0], states[1])


def test_settings_that_ask_for_fewer_updates_than_were_made_are_refused(config, tmp_path):
    save(config, tmp_path, 3)
    built = assembly.assemble(load.typed(config))
    planned = training_run.plan(built)
    parts = (planned.optimizer, planned.data.records, planned.base)
    with pytest.raises(ValueError, match=r"000003 has 3 updates, and these settings ask for 2"):
        saving.start(built, *parts, tmp_path, total_steps=2)


def test_other_trained_parameters_are_refused_in_any_case(config, tmp_path):
    save(config, tmp_path, 1)
    config.trainable = "llm/layers/.*"
    with pytest.raises(ValueError, match=r"(?s)what trains.*must be the same.*none here"):
        start(config, tmp_path, resume_anyway=True)


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def empty(file):
    shutil.rmtree(next(path for path in file.parents if path.name == "000002"))
    next(path for path in file.parents if path.name == "checkpoints").joinpath("000002").mkdir()


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit, empty])
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(config, tmp_path, damage, capsys):
    states = save(config, tmp_path, 2)
    files = [f for f in (tmp_path / "checkpoints/000002").rglob("*") if f.is_file()]
    damage(max(files, key=lambda file: file.stat().st_size))
    found, saver = start(config, tmp_path)
    assert_equal(found, states[1])
    assert "000002 is damaged (" in capsys.readouterr().err
    assert checkpoints(tmp_path) == ["000001"]
    with saver:
        saver.stop(states[2])
    assert_equal(start(config, tmp_path)[0], states[2])


def test_checkpoints_beyond_keep_last_are_removed_when_a_killed_run_goes_on(config, tmp_path):
    config.keep_last = 9
    save(config, tmp_path, 3)
    (tmp_path / "checkpoints/000007.orbax-checkpoint-tmp").mkdir()
    config.keep_last = 1
    with start(config, tmp_path, resume_anyway=True)[1]:
        deadline = time.monotonic() + 30  # orbax removes what was begun in the background
        while len(checkpoints(tmp_path)) > 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert checkpoints(tmp_path) == ["000003"]


def test_state_is_saved_although_the_save_before_failed(config, tmp_path, monkeypatch):
    states = save(config, tmp_path, 1)
    saver = start(config, tmp_path)[1]
    with saver:
        wait, fails = saver._writer.wait, iter([True])

        def wait_once():
            if next(fails, False):
                raise OSError("000007 is not written")
            wait()

        monkeypatch.setattr(saver._writer, "wait", wait_once)
        saver.stop(update(states[1]))
    assert "000002" in checkpoints(tmp_path)


def test_run_whose_checkpoints_are_all_damaged_does_not_begin_anew_by_itself(config, tmp_path):
    save(config, tmp_path, 1)
    (tmp_path / "checkpoints/000001/sizes.json").unlink()
    with pytest.raises(ValueError, match=r"all checkpoints are damaged \(1\). Remove the folder"):
        start(config, tmp_path)
    assert checkpoints(tmp_path) == ["000001"]


def test_state_that_is_not_finite_is_not_saved(config, tmp_path):
    states = save(config, tmp_path, 1)
    _, saver = start(config, tmp_path)
    bad = update(states[1])
    bad.trainable["llm/final_norm/scale"] = jnp.full((8,), jnp.nan)
    with saver, pytest.raises(ValueError, match="not finite: llm/final_norm/scale"):
        saver.stop(bad)
    moments = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), states[1].opt_state)
    with saver, pytest.raises(ValueError, match="not finite: "):
        saver.stop(dataclasses.replace(update(states[1]), opt_state=moments))
    assert checkpoints(tmp_path) == ["000001"]


def test_run_that_is_stopped_before_its_first_update_begins_anew(config, tmp_path):
    state, saver = start(config, tmp_path)
    with saver:
        saver.stop(state)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("settings", "rows", "kept"),
    [
        (dict(ckpt_steps=4), {}, [8, 9]),
        (dict(ckpt_steps=0), {}, []),
        (dict(ckpt_steps=4, keep_last=1, keep_every=3), {}, [3, 6, 9]),
        (
            dict(ckpt_steps=0, keep_last=1, keep_best="val/loss"),
            {2: 0.5, 4: 0.1, 6: 0.3, 8: 0.1},
            [4],
        ),
        (dict(ckpt_steps=5, keep_last=1, keep_best="val/map50"), {2: 0.5, 4: 0.1, 9: 0.5}, [2, 9]),
        (dict(ckpt_steps=None, keep_last=9), {}, list(range(1, 10))),
    ],
)
def test_state_is_kept_as_the_settings_say(config, tmp_path, settings, rows, kept):
    config.update(settings)
    state, saver = start(config, tmp_path)
    with saver:
        for number in range(1, 10):
            state = update(state)
            row = {"step": number, "loss": 1.0}
            if number in rows:
                row |= {"val/loss": rows[number], "val/map50": rows[number]}
            saver.keep(state, row)
    found = checkpoints(tmp_path) if (tmp_path / "checkpoints").exists() else []
    assert [int(name) for name in found] == kept


def test_best_of_what_is_never_measured_is_refused(config, tmp_path):
    config.keep_best = "valid/map50"
    with pytest.raises(ValueError, match=r"keep_best='valid/map50'.*evaluations are \['val'\]"):
        start(config, tmp_path)
    config.keep_best = "val/map5"
    with pytest.raises(ValueError, match=r"keep_best='val/map5'.*gives loss, .*map50"):
        start(config, tmp_path)
