"""Which weights are quantized is decided from settings, and refused before any is read."""

import numpy as np
import pytest

from paligemma_jax.assembly import assembly, model_functions
from paligemma_jax.checkpoints import npz, partial_weights
from paligemma_jax.models.common import quantize
from paligemma_jax.runs import auto_remat, memory_plan, training_run
from paligemma_jax.settings import load, schema

ATTENTION = "llm/layers/attn/.*"
ATTENTION_LEAVES = {f"llm/layers/attn/{w}/w" for w in ("qkv_einsum", "attn_vec_einsum")}


def choose(config, *, trainable=(), stored=None):
    model = assembly.assemble(load.typed(config)).model
    possible = model.kind.names.quantizable
    return model_functions.choose_quantized(
        load.typed(config), model.shapes(), possible, trainable=trainable, stored=stored
    )


def test_one_kind_is_meant_for_all_frozen_weights(config):
    assert choose(config) == {}
    config.quantize = "nf4"
    everything = choose(config)
    assert set(everything.values()) == {"nf4"} and everything.keys() >= ATTENTION_LEAVES
    assert choose(config, trainable=ATTENTION_LEAVES).keys() == everything.keys() - ATTENTION_LEAVES


def test_rules_choose_by_name(config):
    config.quantize = [(ATTENTION, None), ("llm/.*", "nf4"), (".*", "int8")]
    found = choose(config)
    assert not found.keys() & ATTENTION_LEAVES
    assert found["llm/layers/mlp/linear"] == "nf4" and found["img/head/kernel"] == "int8"


def test_what_a_file_of_trained_arrays_holds_itself_stays_as_it_is(config, tmp_path):
    config.quantize = "nf4"
    shapes = assembly.assemble(load.typed(config)).model.shapes()
    arrays = {name: np.zeros(x.shape, np.float16) for name, x in shapes.items()}
    npz.write(tmp_path / "base.npz", arrays)
    own = {name: arrays[name] for name in ATTENTION_LEAVES}
    npz.write(tmp_path / "trained.npz", own)
    stored = partial_weights.find(tmp_path / "trained.npz", base=tmp_path / "base.npz")
    assert choose(config, stored=stored).keys() == choose(config).keys() - ATTENTION_LEAVES
    whole = partial_weights.find(tmp_path / "base.npz")
    assert choose(config, stored=whole) == choose(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"quantize": [(".*", "nf4")], "trainable": ATTENTION},
            r"'llm/layers/attn/attn_vec_einsum/w' is trained.*\(2 such\)\. Put \('llm.*', None\)",
        ),
        ({"quantize": "nf4"}, r"every weight that can be quantized trains.*lora\.targets"),
        ({"quantize": [("llm/norm", "nf4")]}, r"quantize: rule 'llm/norm' matches"),
        (
            {
                "quantize": "nf4",
                "trainable": ATTENTION,
                "sharding_strategy": [
                    ("llm/layers/mlp/linear", (None, None, "data")),
                    (".*", "fsdp"),
                ],
            },
            r"gives a place to each axis of 'llm/layers/mlp/linear', which is quantized",
        ),
        (
            {
                "quantize": "nf4",
                "trainable": ATTENTION,
                "sharding_strategy": [(".*", 'shard_dim(axis="data", dim=-1)|fsdp')],
            },
            r"shard_dim.* gives a place to each axis of '.*', which is quantized",
        ),
    ],
)
def test_what_cannot_be_is_refused_naming_leaf_and_remedy(config, changes, message):
    config.update_from_flattened_dict(changes)
    built = assembly.assemble(load.typed(config))
    planned = training_run.plan(built)
    with pytest.raises(ValueError, match=message):
        assembly.lay_out(built, None, tuple(planned.optimizer.trainable))


def test_the_plan_shows_what_a_quantized_base_takes(config):
    config.trainable = ATTENTION
    built = assembly.assemble(load.typed(config))
    planned = training_run.plan(built)
    dense = memory_plan.at_least(built, planned)
    config.quantize = "int8"
    built = assembly.assemble(load.typed(config))
    found = memory_plan.at_least(built, planned)
    shapes = built.model.shapes()
    held = [
        shapes[name].size
        for name in built.model.kind.names.quantizable.candidates(shapes)
        if "/attn/" not in name
    ]
    assert found.quantized == sum(held) * 68 // 64
    assert dense.frozen - found.frozen == sum(held) * 4 - found.quantized


def test_a_quantized_base_is_among_the_changes_that_make_a_run_fit(config, monkeypatch):
    def make(built, planned):
        return memory_plan.Planned(
            memory_plan.at_least(built, planned), None, None, 1, 2, print, ""
        )

    monkeypatch.setattr(memory_plan, "make", make)
    config.trainable, config.frozen_dtype = ATTENTION, "bfloat16"
    config.compute_dtype, config.input.batch_size = "bfloat16", 1
    built = assembly.assemble(load.typed(config))
    planned = training_run.plan(built)
    limit = memory_plan.at_least(built, planned).peak - 300
    [(change, memory)] = auto_remat.find_changes(built, planned, limit=limit)
    assert change.overrides == ("quantize=int8",) and "8 bit" in change.cost
    assert memory.peak <= limit


def test_what_is_written_is_what_the_weights_stand_for(tmp_path):
    w = np.random.default_rng(0).normal(size=(2, 3, 64)).astype(np.float32)
    held = quantize.quantize_on_host(w, "nf4", unit=(3, 64))
    written = model_functions.as_written({"held": held, "dense": w})
    npz.write(tmp_path / "all.npz", written)
    found = npz.read(tmp_path / "all.npz")
    assert found["held"].dtype == "bfloat16"
    np.testing.assert_array_equal(found["held"], held.astype("bfloat16"))
    np.testing.assert_array_equal(found["dense"], w)


def test_the_key_knows_all_kinds():
    [key] = [key for key in schema.KEYS if key.name == "quantize"]
    assert key.choices == (None, *quantize.KINDS)
