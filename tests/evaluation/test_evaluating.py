"""What the evaluate door does: what an evaluation is called, and what it may replace."""

import json

import pytest

from paligemma_jax.evaluation import evaluating
from paligemma_jax.settings import load


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("data/mine/valid.jsonl", "valid"),
        ("data/fracture/_annotations.test.jsonl", "test"),
        ("input", "input"),
        ("data/köln 2024 (neu).v2.jsonl", "köln-2024-neu-v2"),
        ("...jsonl", "data"),
    ],
)
def test_an_evaluation_is_called_as_its_file(data, name):
    assert evaluating.name_of(data) == name
    load.eval_settings(name, {"fname": data})


def test_data_of_the_same_name_elsewhere_does_not_replace_an_evaluation(tmp_path, capsys):
    evaluating.check_same_data(tmp_path, "a/valid.jsonl")
    assert capsys.readouterr().err == ""
    metrics = {"data": "a/valid.jsonl", "weights": "old.npz"}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    evaluating.check_same_data(tmp_path, "./a/valid.jsonl")
    assert "replaces the evaluation of old.npz on a/valid.jsonl" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"holds the evaluation on a/valid\.jsonl, .*--name"):
        evaluating.check_same_data(tmp_path, "b/valid.jsonl")


def test_the_scores_of_a_training_run_are_not_replaced(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"evaluation": "val", "step": 4}))
    with pytest.raises(ValueError, match="scores of a training run: choose another --out"):
        evaluating.check_same_data(tmp_path, "a/valid.jsonl")


def evaluations(config, *names):
    config.evals = {name: dict(fname=f"{name}.jsonl", num_examples=5) for name in names}
    return load.typed(config)


def choose(settings, **options):
    return evaluating.choose_data(settings, evaluating.EvaluateOptions(**options))


def test_without_data_the_validation_set_of_the_run_is_evaluated(config, capsys):
    settings = evaluations(config, "train_part", "valid")
    name, only = choose(settings, eval_overrides=["batch_size=3"])
    assert name == "valid" and list(only.evals) == ["valid"]
    one = only.evals["valid"]
    assert (one.fname, one.num_examples, one.batch_size) == ("valid.jsonl", 5, 3)
    assert "data: valid.jsonl, evals.valid of the settings" in capsys.readouterr().err
    assert choose(settings, name="again")[0] == "again"
    assert choose(evaluations(config, "first", "second"))[0] == "first"


def test_data_that_is_named_is_evaluated_with_the_settings_of_no_other(config):
    name, only = choose(evaluations(config, "valid"), data="x/test.jsonl")
    assert name == "test" and only.evals["test"].num_examples is None


def test_a_run_without_evaluations_needs_data(config):
    config.evals = {}
    with pytest.raises(ValueError, match="--data is missing, and the settings have no evals"):
        choose(load.typed(config))


def test_a_run_is_held_against_its_base_another_run_and_released_weights(config, tmp_path):
    config.model_init, config.lora.targets = "base.npz", "llm"
    (tmp_path / "config.json").write_text(load.to_json(load.typed(config)))
    options = evaluating.EvaluateOptions(run=str(tmp_path), checkpoint="best", data="a.jsonl")
    base = evaluating._options_of_other(options, "base")
    assert base.run == str(tmp_path) and base.checkpoint is None
    assert base.weights.endswith("base.npz")
    assert "lora.targets=None" in base.config_overrides
    other = evaluating._options_of_other(options, str(tmp_path))
    assert (other.run, other.weights, other.checkpoint) == (str(tmp_path), None, None)
    released = evaluating._options_of_other(options, "mix_3b_448")
    assert (released.run, released.weights, released.data) == (None, "mix_3b_448", "a.jsonl")


def test_a_run_from_nothing_has_no_base(config, tmp_path):
    (tmp_path / "config.json").write_text(load.to_json(load.typed(config)))
    options = evaluating.EvaluateOptions(run=str(tmp_path))
    with pytest.raises(ValueError, match=r"--against base: .* starts from random weights"):
        evaluating.evaluate_against(options, "base")
