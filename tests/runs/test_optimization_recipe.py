"""Which runs share the program of their step: those that differ in its arguments alone."""

import jax
import pytest

from paligemma_jax.runs import optimization
from paligemma_jax.settings import load, presets
from paligemma_jax.training import optimizer

BATCH = {"text": jax.ShapeDtypeStruct((4, 9), "int32", sharding=None)}


def make(steps=10, data_size=100, batch=BATCH, functions=(), **changes) -> optimization.Recipe:
    config = presets.finetune(model="paligemma2-3b", res=224, text_len=32, method="attention")
    config.update_from_flattened_dict({"wd": 0.1, "grad_clip_norm": 1.0} | changes)
    settings = load.typed(config)
    made: dict = {"made": None, "state": {}, "groups": (), "stacked": ()}
    return optimization.recipe(
        settings, functions, **made, batch=batch, steps=steps, data_size=data_size
    )


@pytest.mark.parametrize(
    "changes", [{"lr": 0.5}, {"wd": 0.2}, {"grad_clip_norm": 2.0}, {"seed": 7}], ids=str
)
def test_arguments_of_the_step_make_no_other_program(changes):
    assert make() == make(**changes) and hash(make()) == hash(make(**changes))


def test_averages_of_all_decays_are_one_program_and_none_is_another():
    assert make(ema_decay=0.9) == make(ema_decay=0.99)
    assert make(ema_decay=0.9) != make()


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 11},
        {"data_size": 101},
        {"batch": {"text": jax.ShapeDtypeStruct((8, 9), "int32", sharding=None)}},
        {"functions": ("another model",)},
        {"wd": None},
        {"grad_clip_norm": None},
        {"label_smoothing": 0.1},
        {"accumulation_steps": 2},
        {"lr_mults": [("img/.*", 0.1)]},
        {"optax_name": "scale_by_adam"},
        {"schedule_offset": 1},
        {"model.llm.dropout": 0.1},
        {"remat_policy": "nothing_saveable"},
    ],
    ids=str,
)
def test_whatever_else_differs_makes_another_program(changes):
    assert make() != make(**changes)


def test_a_transformation_that_a_config_put_in_anew_makes_another_program(monkeypatch):
    before = make()
    name = load.typed(
        presets.finetune(model="paligemma2-3b", res=224, text_len=32, method="attention")
    ).optax_name
    monkeypatch.setitem(optimizer.TRANSFORMS, name, lambda: optimizer.TRANSFORMS["adam"]())
    assert make() != before
