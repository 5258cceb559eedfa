import pathlib

import numpy as np
import pytest

from paligemma_jax.models.paligemma import as_family
from paligemma_jax.params import names

CONTRACT = pathlib.Path(__file__).parents[1] / "reference" / "param_contract"
NAMES = ["img/head/bias", "img/head/kernel", "llm/layers/attn/q_einsum/w", "llm/layers/mlp/linear"]


def test_flatten_sorts_and_unflatten_undoes_it():
    tree = {"llm": {"b": 1, "a": {"c": 2}}, "img": {"head": 3}}
    flat = names.flatten(tree)
    assert list(flat.items()) == [("img/head", 3), ("llm/a/c", 2), ("llm/b", 1)]
    assert names.unflatten(flat) == tree


@pytest.mark.parametrize("order", [["a", "a/b"], ["a/b", "a"]])
def test_a_name_that_is_also_a_folder_is_an_error(order):
    with pytest.raises(ValueError, match="parameter 'a"):
        names.unflatten(dict.fromkeys(order, 1))


def test_the_first_rule_that_matches_the_whole_name_wins():
    rules = [("llm/.*/attn/.*", "attention"), ("llm/.*", "rest"), ("img/.*", None)]
    assert names.match(rules, NAMES, what="schedule") == {
        "img/head/bias": None,
        "img/head/kernel": None,
        "llm/layers/attn/q_einsum/w": "attention",
        "llm/layers/mlp/linear": "rest",
    }


def test_a_name_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match=r"lr_mults: no rule covers parameter 'img/head/bias'"):
        names.match([("llm/.*", 1)], NAMES, what="lr_mults")


def test_a_rule_that_matches_nothing_is_an_error_with_near_misses():
    with pytest.raises(ValueError, match=r"'llm/layers/attn' matches no.*attn/q_einsum/w"):
        names.match([("llm/layers/attn", 1), (".*", 0)], NAMES, what="schedule")


def test_a_rule_behind_one_that_took_all_its_names_is_fine():
    assert set(names.match([(".*", 0), ("img/.*", 1)], NAMES, what="x").values()) == {0}


def test_a_broken_regex_is_an_error_that_names_the_key():
    with pytest.raises(ValueError, match=r"wd_mults: '\*' is not a regular expression"):
        names.match([("*", 1)], NAMES, what="wd_mults")


def test_select_keeps_the_order():
    assert names.select("img/.*|.*linear", NAMES, what="trainable") == [
        NAMES[0],
        NAMES[1],
        NAMES[3],
    ]


def test_partition_and_merge_are_inverse():
    params = {name: index for index, name in enumerate(NAMES)}
    inside, outside = names.partition(params, NAMES[1:3])
    assert (inside, outside) == ({NAMES[1]: 1, NAMES[2]: 2}, {NAMES[0]: 0, NAMES[3]: 3})
    assert list(names.merge(outside, inside).items()) == list(params.items())
    with pytest.raises(ValueError, match=r"no such parameters: \['img/heads'\]"):
        names.partition(params, ["img/heads"])
    with pytest.raises(ValueError, match="parameters given twice"):
        names.merge(params, inside)


def test_every_array_that_does_not_fit_is_listed():
    expected = {"a/kernel": (2, 3), "a/bias": (3,), "b/kernel": (4,), "c": (1,)}
    found = {"a/kernel": np.zeros((3, 2)), "a/bias": (3,), "b/kernels": (4,), "d": np.zeros(5)}
    with pytest.raises(ValueError) as error:
        names.check_shapes(found, expected, where="pt_224.npz")
    assert str(error.value).splitlines() == [
        "pt_224.npz does not fit the model: of 4 arrays 2 are missing and 1 have another shape; "
        "2 are not of this model",
        "  missing: b/kernel (is it 'b/kernels'?)",
        "  missing: c",
        "  shape: a/kernel is (3, 2), the model has (2, 3)",
        "  extra: b/kernels (4,)",
        "  extra: d (5,)",
    ]
    names.check_shapes(expected, expected, where="pt_224.npz")


def test_a_file_with_only_some_arrays_is_recognized():
    with pytest.raises(ValueError, match=r"trained arrays only\? Then give the base"):
        names.check_shapes({"a": (1,)}, {"a": (1,), "b": (1,)}, where="run/final.npz")


@pytest.mark.parametrize(
    ("base", "pair"),
    [
        ("a/q_einsum/w", ("a/q_einsum/lora_a", "a/q_einsum/lora_b")),
        ("a/query/kernel", ("a/query/kernel_lora_a", "a/query/kernel_lora_b")),
        ("mlp/raw", ("mlp/raw_lora_a", "mlp/raw_lora_b")),
        ("w", ("lora_a", "lora_b")),
    ],
)
def test_factors_are_named_after_the_weight_they_stand_beside(base, pair):
    assert tuple(names.factor(base, which) for which in names.FACTORS) == pair
    assert [names.base_of(name) for name in (base, *pair)] == [base] * 3
    assert [names.is_factor(name) for name in (base, *pair)] == [False, True, True]


def test_a_factor_without_a_rule_follows_its_weight():
    factors = ["llm/layers/attn/q_einsum/lora_a", "llm/layers/attn/q_einsum/lora_b"]
    rules = [(".*/q_einsum/w", 1), (".*lora_b", 2)]
    found = names.match(rules, [*NAMES, *factors], what="lr_mults", default=0)
    assert [found[name] for name in factors] == [1, 2]
    assert found["llm/layers/mlp/linear"] == 0
    with pytest.raises(ValueError, match="no rule covers parameter 'img/head/bias'"):
        names.match(rules, [*NAMES, *factors], what="lr_mults")


def test_parts_of_the_model_have_short_names():
    attention = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel"
    lines = (CONTRACT / "params_paligemma2_3b_224.txt").read_text().splitlines()[1:]
    groups = as_family.NAMES.groups
    parts = names.group(groups, (line.split("\t")[0] for line in lines))
    assert sorted(parts) == sorted(part for _, part in groups)
    assert attention in parts["img_attn"] and len(parts["llm_attn"]) == 3
    assert names.group(groups, ["other/x", f"{attention}_lora_a"]) == {
        "other": ["other/x"],
        "img_attn": [f"{attention}_lora_a"],
    }
