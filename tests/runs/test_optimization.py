"""What trains, by the short forms of the settings."""

import numpy as np
import pytest

from paligemma_jax.assembly import model_functions
from paligemma_jax.checkpoints import npz
from paligemma_jax.files import run_folder
from paligemma_jax.models.paligemma import as_family
from paligemma_jax.runs import optimization, whole_run
from paligemma_jax.settings import load


@pytest.fixture
def make(config):
    """Returns the optimizer of the small model with some settings changed, and its shapes."""

    def make(**changes):
        config.update_from_flattened_dict(changes)
        shapes = model_functions.describe(load.typed(config), vocab_size=1500).shapes()
        return optimization.make(load.typed(config), shapes, steps=10, data_size=10)

    return make


def test_with_lora_the_factors_train_and_of_the_base_what_trainable_says(make):
    mlp = {f"llm/layers/mlp/linear_lora_{which}" for which in "ab"}
    assert set(make(**{"lora.targets": "llm/.*/linear"}).trainable) == mlp
    assert set(make(trainable="img/head/bias").trainable) == {*mlp, "img/head/bias"}
    assert set(make(trainable=".*/mlp/.*").trainable) == {
        *mlp,
        "llm/layers/mlp/linear",
        "llm/layers/mlp/gating_einsum",
    }


def test_written_out_rules_say_it_all(make):
    constant = dict(decay_type="constant")
    lora = {"lora.targets": "llm/.*/linear"}
    rules = [(".*lora_b", constant), ("llm/.*/linear.*", constant), (".*", None)]
    made = make(schedule=rules, lr_mults=[(".*lora_b", 4.0)], lr=1.0, **lora)
    assert made.lrs == {
        "llm/layers/mlp/linear": 1.0,
        "llm/layers/mlp/linear_lora_a": 1.0,
        "llm/layers/mlp/linear_lora_b": 4.0,
    }
    with pytest.raises(ValueError, match=r"1 of 2 LoRA factors are frozen.*linear_lora_a"):
        make(schedule=[(".*lora_b", constant), (".*", None)], lr_mults=None)


def test_a_factor_has_the_multipliers_of_its_weight(make):
    made = make(
        **{"lora.targets": "hf_compat", "lora.rank": 1, "wd": 0.5, "lr": 1.0},
        lr_mults=[("img/.*/query/kernel", 0.5)],
    )
    query = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel_lora_a"
    linear = "llm/layers/mlp/linear_lora_a"
    assert (made.lrs[query], made.lrs[linear]) == (0.5, 1.0)
    assert (made.decays[query], made.decays[linear]) == (0.5, 0.0)


def test_a_pair_of_factors_is_a_group_that_must_have_a_gradient(make):
    groups = optimization.gradient_groups(make(**{"lora.targets": "llm", "lora.rank": 2}))
    weights = ("attn/qkv_einsum/w", "attn/attn_vec_einsum/w", "mlp/gating_einsum", "mlp/linear")
    lora = {f"LoRA of 'llm/layers/{name}'" for name in weights}
    assert set(groups) == {"rule '.*lora_[ab]'", *lora}
    pair = "llm/layers/mlp/linear_lora_a", "llm/layers/mlp/linear_lora_b"
    assert groups["LoRA of 'llm/layers/mlp/linear'"] == pair


def test_lora_settings_without_targets_are_an_error(make):
    with pytest.raises(ValueError, match=r"lora.rank=4 has no effect without lora.targets"):
        make(**{"lora.rank": 4})


def test_the_rate_of_each_update_is_that_which_its_schedule_multiplies(make):
    warm, steady = dict(decay_type="linear", warmup_steps=2), dict(decay_type="constant")
    rules = [("llm/.*", warm), ("img/head/.*", steady), (".*", None)]
    mults = [("img/.*", 0.5), ("llm/final_norm/.*", 2.0)]
    made = make(schedule=rules, lr_mults=mults, lr=0.1)
    rates = optimization.learning_rates(made, total_steps=10)
    assert set(rates) == {"lr", "lr/llm/.*", "lr/img/head/.*"}
    ramp = np.array([0, 1, 2, 1.75, 1.5, 1.25, 1, 0.75, 0.5, 0.25]) * 0.1
    np.testing.assert_allclose(rates["lr/llm/.*"], ramp, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(rates["lr/img/head/.*"], 0.05, rtol=1e-6)
    np.testing.assert_array_equal(
        rates["lr"], np.maximum(rates["lr/llm/.*"], rates["lr/img/head/.*"])
    )
    assert set(
        optimization.learning_rates(make(lr=0.1, schedule=warm, lr_mults=None), total_steps=10)
    ) == {"lr"}


def test_layers_alone_are_updated_in_the_backward_pass(make, config):
    def chosen():
        compute = model_functions.make_compute(load.typed(config))
        made = make()
        how = (load.typed(config), compute, made, as_family.NAMES.stacked)
        return optimization.updated_in_backward(*how), made.trainable

    assert chosen()[0] == []
    config.optimizer_in_backward, config.grad_clip_norm = True, None
    config.optax_name, config.optax = "adam", {}
    updated, trainable = chosen()
    layers = ("llm/layers/", "img/Transformer/encoderblock/")
    assert updated == [name for name in trainable if name.startswith(layers)]
    assert "llm/embedder/input_embedding" in set(trainable) - set(updated)
    for key, value, reason in (
        ("grad_clip_norm", 1.0, "grad_clip_norm is a norm of all gradients"),
        ("accumulation_steps", 2, "micro-batches add up their gradients first"),
        ("optax_name", "big_vision.scale_by_adafactor", "optax_name=.* looks at whole"),
        ("remat_policy", "dots_saveable", "remat_policy='dots_saveable' keeps"),
        ("trainable", "llm/final_norm/.*", "nothing that trains is stacked by layer"),
    ):
        before = getattr(config, key)
        config[key] = value
        with pytest.raises(ValueError, match=f"optimizer_in_backward=True: {reason}|; .*{reason}"):
            chosen()
        config[key] = before


@pytest.mark.slow
def test_a_run_that_updates_layers_in_the_backward_pass_ends_with_the_same_weights(
    config, tmp_path
):
    config.evals, config.grad_clip_norm, config.optax_name = {}, None, "adam"
    ends = []
    for chosen in (False, True):
        config.optimizer_in_backward = chosen
        whole_run.train(load.typed(config), tmp_path / str(chosen))
        params = npz.read(tmp_path / str(chosen) / "final.npz")
        ends.append({name: np.asarray(x, np.float32) for name, x in params.items()})
    assert "updates the layers" in (tmp_path / "True" / run_folder.LOG).read_text()
    for name, expected in ends[0].items():
        if not name.endswith("key/bias"):  # rounding noise, of which Adam makes whole steps
            atol = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(ends[1][name], expected, rtol=0, atol=atol, err_msg=name)
