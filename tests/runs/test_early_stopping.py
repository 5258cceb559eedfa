"""When a run has what it is trained for."""

import pytest

from paligemma_jax.runs import early_stopping
from paligemma_jax.settings import load


def test_a_score_is_reached_from_below_and_a_loss_from_above():
    wanted = early_stopping.Goal({"val/map50": 0.9, "val/loss": 0.5})
    assert not wanted({"step": 1, "loss": 0.1})
    assert not wanted({"step": 2, "val/map50": 0.95, "val/loss": 0.6})
    assert "NOT reached in 2 steps: val/map50 0.95 (wanted: 0.9)" in wanted.describe(step=2)
    assert wanted({"step": 4, "val/map50": 0.9, "val/loss": 0.5})
    assert wanted.is_reached
    assert "reached after step 4: val/map50 0.9" in wanted.describe(step=4)


def test_metrics_of_several_evaluations_may_come_one_after_the_other():
    wanted = early_stopping.Goal({"a/x": 1.0, "b/x": 1.0})
    assert not wanted({"a/x": 1.0})
    assert wanted({"b/x": 2.0})
    assert not wanted({"a/x": 0.0})


def test_without_a_goal_a_run_goes_to_its_end_and_nothing_is_said():
    none = early_stopping.Goal({})
    assert not none({"val/loss": 0.0})
    assert none.describe(step=1) is None


def test_a_score_that_is_not_finite_is_none():
    assert not early_stopping.Goal({"val/map50": 0.0})({"val/map50": float("nan")})


def test_a_score_that_the_evaluation_does_not_give_is_an_error():
    with pytest.raises(ValueError, match=r"stop_at='val/map5': that evaluation gives val/map50"):
        early_stopping.Goal({"val/map5": 0.9})({"val/map50": 0.5})


def test_a_score_that_there_will_not_be_is_an_error_before_the_first_step(config):
    names = {"val": lambda: ["loss", "map50"]}
    config.keep_best = "val/map51"
    with pytest.raises(ValueError, match=r"keep_best='val/map51': Did you mean 'val/map50'\?"):
        early_stopping.check_scores(load.typed(config), names)
    config.keep_best = "val/per_class/cat/map50"
    early_stopping.check_scores(load.typed(config), names)
    config.keep_best, config.stop_at = None, [("val/loss", 0.5)]
    early_stopping.check_scores(load.typed(config), names)


def test_a_goal_needs_an_evaluation_that_runs_on_the_way(config):
    config.stop_at = [("valid/loss", 1.0)]
    with pytest.raises(ValueError, match=r"stop_at='valid/loss': .* the evaluations are \['val'\]"):
        early_stopping.make(load.typed(config))
    config.stop_at = [("val/loss", 1.0)]
    with pytest.raises(ValueError, match=r"evals.val runs only after the last step; set"):
        early_stopping.make(load.typed(config))
    config.evals.val.log_steps = 1
    assert early_stopping.make(load.typed(config))({"val/loss": 1.0})
