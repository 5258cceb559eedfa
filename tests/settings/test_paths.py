"""Paths in a run's folder: they lead on from any folder, and after the run was moved."""

import json

import pytest

from paligemma_jax.settings import load, presets


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in: data/a.jsonl, weights.npz, and runs/mine with data of its own."""
    for name in ("data/a.jsonl", "runs/mine/data/b.jsonl", "weights.npz", "answers.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(**changes):
    config = presets.finetune(model="paligemma2-3b", res=224, method="attention")
    config.input.data.fname = "data/a.jsonl"
    config.evals.valid = dict(fname="runs/mine/data/b.jsonl", constrain="answers.json")
    config.evals.same = dict(fname="input", constrain="task")
    config.total_steps = 1
    config.update_from_flattened_dict(changes)
    return load.typed(config)


def write(run, made):
    (run / "config.json").write_text(json.dumps(load.to_keep(made, run)))


def test_paths_are_whole_or_from_the_runs_own_folder(place):
    kept = load.to_keep(settings(model_init="weights.npz"), place / "runs/mine")
    assert kept["input"]["data"]["fname"] == f"{place}/data/a.jsonl"
    assert kept["evals"]["valid"] == {
        "fname": "{run}/data/b.jsonl",
        "constrain": f"{place}/answers.json",
    }
    assert kept["evals"]["same"] == {"fname": "input", "constrain": "task"}
    assert kept["model_init"] == f"{place}/weights.npz"
    assert load.to_keep(settings(), place)["model_init"] == "pt_3b_224"
    assert kept["tokenizer"] == "gs://big_vision/paligemma_tokenizer.model"


def test_a_moved_run_finds_its_files_from_another_folder(place, monkeypatch):
    write(place / "runs/mine", settings())
    (place / "runs/mine").rename(place / "moved")
    monkeypatch.chdir(place / "data")
    read = load.from_json(place / "moved/config.json")
    assert read.input.data.fname == f"{place}/data/a.jsonl"
    assert read.evals["valid"].fname == f"{place}/moved/data/b.jsonl"


def test_a_run_of_before_finds_its_files_from_another_folder(place, monkeypatch):
    run = place / "runs/mine"
    (run / "config.json").write_text(load.to_json(settings()))
    assert load.from_json(run / "config.json").input.data.fname == "data/a.jsonl"
    monkeypatch.chdir(place / "data")
    read = load.from_json(run / "config.json")
    assert read.input.data.fname == f"{place}/data/a.jsonl"
    assert read.evals["valid"].fname == f"{place}/runs/mine/data/b.jsonl"


@pytest.mark.parametrize("is_old", [False, True])
def test_the_same_settings_are_the_same_however_they_are_kept(place, is_old):
    run, made = place / "runs/mine", settings()
    text = load.to_json(made) if is_old else json.dumps(load.to_keep(made, run))
    (run / "config.json").write_text(text)
    then = load.read_values(run / "config.json")
    assert load.differences(then, load.complete(load.to_dict(made), run)) == []


def test_data_that_was_moved_is_the_same_and_other_data_is_not(place):
    run = place / "runs/mine"
    write(run, settings())
    (place / "data").rename(place / "elsewhere")

    def differing(fname):
        now = load.complete(load.to_dict(settings(**{"input.data.fname": fname})), run)
        then = load.read_values(run / "config.json")
        load.follow_moves(then, now)
        return load.differences(then, now)

    assert differing("elsewhere/a.jsonl") == []
    assert len(differing("elsewhere/c.jsonl")) == 1
    (place / "data").mkdir()
    (place / "data/a.jsonl").touch()
    assert len(differing("elsewhere/a.jsonl")) == 1


def test_values_of_wrong_types_are_still_named(place):
    wrong = {"input": 3, "evals": {"valid": 5}, "tokenizer": ["a"]}
    (place / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match=r"config\.json"):
        load.from_json(place / "config.json")


def test_names_of_files_in_the_package_are_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load.typed(presets.finetune("tiny_base", res=112))
    kept = load.to_keep(settings, tmp_path)
    assert (kept["model_init"], kept["tokenizer"]) == ("tiny_base", "tiny_base/tokenizer.model")
