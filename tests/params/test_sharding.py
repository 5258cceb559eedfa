"""Meshes, rules to shardings as big_vision makes them, and placement."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from paligemma_jax.params import sharding

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
EIGHT = {"data": 8}
FLOAT32 = np.dtype("float32")
MIB = 2**20


def array(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def spec_of(leaf, tactic, axis_sizes=EIGHT):
    return sharding.specs({"w": leaf}, [(".*", tactic)], axis_sizes)["w"]


def reference_case(name):
    case = json.loads((REFERENCE / f"sharding_{name}.json").read_text())
    dtype = case.get("dtype", "float32")
    arrays = {leaf: array(*shape, dtype=dtype) for leaf, shape in case["shapes"].items()}
    return case, arrays, {leaf: P(*spec) for leaf, spec in case["specs"].items()}


@pytest.mark.parametrize("name", ["fsdp8", "mesh2x4_bf16", "mesh4x2_tensor"])
def test_specs_equal_big_visions_for_every_leaf(name):
    case, arrays, expected = reference_case(name)
    assert sharding.specs(arrays, case["strategy"], dict(case["mesh"])) == expected


def test_plain_fsdp_is_big_visions_spelling_on_the_only_axis():
    _, arrays, expected = reference_case("fsdp8")
    assert sharding.specs(arrays, [(".*", "fsdp")], EIGHT) == expected


def test_fsdp_takes_the_last_of_equally_large_dimensions():
    assert spec_of(array(2048, 2048), "fsdp") == P(None, "data")


def test_fsdp_passes_over_a_larger_dimension_that_does_not_divide():
    assert spec_of(array(4001, 1024), "fsdp") == P(None, "data")


def test_fsdp_leaves_an_array_whole_that_no_dimension_divides():
    assert spec_of(array(4001, 1023), "fsdp") == P(None, None)


def test_fsdp_counts_the_size_in_the_arrays_own_dtype():
    assert spec_of(array(MIB), "fsdp") == P(None)
    assert spec_of(array(MIB + 8), "fsdp") == P("data")
    assert spec_of(array(2 * MIB, dtype="bfloat16"), "fsdp") == P(None)
    assert spec_of(array(2 * MIB + 8, dtype="bfloat16"), "fsdp") == P("data")


def test_fsdp_takes_big_visions_threshold_and_several_axes():
    sizes = {"replica": 2, "fsdp": 4}
    tactic = 'fsdp(axis=["replica", "fsdp"], min_size_to_shard_mb=0)'
    assert spec_of(array(16, 8), tactic, sizes) == P(("replica", "fsdp"), None)


def test_the_name_of_an_axis_shards_over_that_axis():
    sizes = {"data": 4, "model": 2}
    assert spec_of(array(2048, 2048), "model", sizes) == P(None, "model")


TWO_AXES = {"data": 4, "model": 2}


@pytest.mark.parametrize(
    ("tactic", "expected"),
    [
        ('shard_dim(axis="model", dim=0)', P("model", None)),
        ('shard_dim(axis="model", dim=-1)', P(None, "model")),
        ('shard_dim(axis="model", dim=-2)', P("model", None)),
        ('shard_dim(axis=["data", "model"], dim=1)', P(None, ("data", "model"))),
        ('shard_dim("model", 1)', P(None, "model")),
    ],
)
def test_shard_dim_splits_the_dimension_that_it_names_however_small(tactic, expected):
    assert spec_of(array(2, 16), tactic, TWO_AXES) == expected


def test_shard_dim_may_pass_over_arrays_without_that_dimension():
    tactic = 'shard_dim(axis="model", dim=1, ignore_ndim_error=True)'
    assert spec_of(array(16), tactic, TWO_AXES) == P(None)
    assert spec_of(array(16, 2), tactic, TWO_AXES) == P(None, "model")


@pytest.mark.parametrize(
    ("tactic", "expected"),
    [
        ('shard_dim(axis="model", dim=1)|fsdp(axis="data")', P("data", "model")),
        ("model|data", P("data", "model")),  # each the largest dimension that is left, the last
        ('data | shard_dim(axis="model", dim=0)', P("model", "data")),
        ('replicate|fsdp("data")', P(None, "data")),
        ('fsdp(axis="model", min_size_to_shard_mb=99)|data', P(None, "data")),
    ],
)
def test_tactics_joined_by_a_bar_act_one_after_the_other(tactic, expected):
    assert spec_of(array(2048, 2048), tactic, TWO_AXES) == expected


def test_fsdp_leaves_an_array_as_it_is_where_no_dimension_is_left():
    tactic = 'shard_dim(axis="model", dim=0)|fsdp(axis="data")'
    assert spec_of(array(2048, 1023), tactic, TWO_AXES) == P("model", None)


@pytest.mark.parametrize(
    ("tactic", "message"),
    [
        ('shard_dim(axis="model", dim=2)', r"dimension 2 of 'w', which has 2: \(7, 16\)"),
        ('shard_dim(axis="model", dim=-3)', r"dimension -3 of 'w', which has 2"),
        ('shard_dim(axis="model", dim=0)', "into 2 parts, which does not divide 7"),
        ('shard_dim("model", 1)|shard_dim("data", -1)', "split over 'model' already"),
        ('shard_dim("model", 1)|replicate', "'replicate' comes after a tactic that splits 'w'"),
        ('shard_dim(axis="model")', r"is not known.*shard_dim\(axis=\"data\", dim=-1\)"),
        ('shard_dim(axis="model", dim="1")', "is not known"),
        ('shard_dim(axis="rows", dim=1)', r"axes of the mesh are \['data', 'model'\]"),
        ("model|fdsp", "'fdsp' is not known. Nearest: fsdp"),
        ("model|", "'' is not known"),
        ("data|fsdp", "'fsdp' over which axis of the mesh"),
    ],
)
def test_a_step_that_does_not_fit_is_an_error_that_helps(tactic, message):
    with pytest.raises(ValueError, match=f"sharding_strategy: .*{message}"):
        spec_of(array(7, 16), tactic, TWO_AXES)


@pytest.mark.parametrize("tactic", ["data|data", ("data", "data")])
def test_an_axis_splits_one_dimension_of_an_array_only(tactic):
    with pytest.raises(ValueError, match=r"'w' of shape .* twice over \['data'\]"):
        spec_of(array(2048, 2048), tactic)


def test_fsdp_alone_is_ambiguous_on_a_mesh_of_several_axes():
    with pytest.raises(ValueError, match=r"which axis of the mesh\? Write one of \['data', 'mod"):
        spec_of(array(2048, 2048), "fsdp", {"data": 4, "model": 2})


def test_a_written_out_spec_is_taken_as_it_is():
    assert spec_of(array(8, 3), ("data", None)) == P("data", None)
    assert spec_of(array(8, 3), [["data"], None]) == P(("data",), None)


def test_a_scalar_is_replicated_by_every_tactic():
    for tactic in ("replicate", "fsdp", "data", ()):
        assert spec_of(array(), tactic) == P()


@pytest.mark.parametrize(
    ("tactic", "message"),
    [
        ("fdsp", "'fdsp' is not known. Nearest: fsdp"),
        ("replicated", "Nearest: replicate"),
        ('fsdp(axes="data")', r"Nearest: fsdp\(axis=\"data\"\)"),
        ('fsdp("data", 4, 4)', "is not known"),
        ('fsdp(axis="model")', r"the axes of the mesh are \['data'\]"),
        ("logical_partitioning()", "the axis of each dimension as a tuple"),
        ("__import__('os').getcwd()", "is not known"),
        (("data",), r"has 1 entries, but 'w' has shape \(7, 16\)"),
        (("data", None), "into 8 parts, which does not divide 7"),
        ((None, "model"), r"names \['model'\]; the axes of the mesh are \['data'\]"),
    ],
)
def test_a_wrong_tactic_is_an_error_that_helps(tactic, message):
    with pytest.raises(ValueError, match=f"sharding_strategy: .*{message}"):
        spec_of(array(7, 16), tactic)


def test_the_first_matching_rule_wins_and_unmatched_rules_are_errors():
    arrays = {"img/w": array(2048, 2048), "llm/w": array(2048, 2048)}
    rules = [("img/.*", "replicate"), (".*", "fsdp")]
    found = sharding.specs(arrays, rules, EIGHT)
    assert found == {"img/w": P(None, None), "llm/w": P(None, "data")}
    with pytest.raises(
        ValueError, match=r"sharding_strategy: rule 'image/.*' matches no parameter"
    ):
        sharding.specs(arrays, [("image/.*", "replicate"), *rules], EIGHT)


# Only their number matters: the sizes are checked before a device is looked at.
@pytest.mark.parametrize(
    ("spec", "num_devices", "message"),
    [
        ([("data", 8)], 4, r"mesh data=8 but 4 devices"),
        ([("data", 2)], 1, r"mesh data=2 but 1 device:"),
        ([("data", 2), ("model", -1)], 5, "mesh data=2, model=-1 but 5 devices: 2 does not divide"),
        ([("data", -1), ("model", -1)], 4, "one of them may be -1"),
        ([("data", 0)], 4, "sizes are 1 or more"),
        ([("data", 2), ("data", 2)], 4, "different names"),
        ([], 4, "one or more axes"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_an_error(spec, num_devices, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(spec, devices=jax.devices()[:1] * num_devices)


def test_minus_one_is_all_the_devices_that_are_left():
    mesh = sharding.make_mesh([("data", -1), ("model", 1)], devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "model": 1}


def layout(rules, shapes, *, axes):
    """A layout on a mesh of the sizes `axes`, which needs no devices: nothing is placed."""
    mesh = jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes))
    return sharding.make_layout(mesh, rules, shapes)


def test_weights_come_together_over_the_axes_of_the_batch_and_stay_split_over_the_models():
    shapes = {"mlp": array(2048, 4096), "small": array(8)}
    rules = [("mlp", 'shard_dim(axis="model", dim=1)|fsdp(axis="data")'), (".*", "data")]
    made = layout(rules, shapes, axes=TWO_AXES)
    assert made.where_stored("mlp").spec == P("data", "model")
    assert made.where_used("mlp").spec == P(None, "model")
    assert made.where_stored("small") is None
    assert (made.rows.spec, made.num_rows) == (P("data"), 4)


def test_a_weight_that_only_the_models_axis_splits_stays_where_it_is():
    made = layout([(".*", (None, "model"))], {"w": array(8, 8)}, axes=TWO_AXES)
    assert made.where_stored("w") is None


def test_logits_are_split_as_the_rows_of_the_table_are_and_over_all_devices():
    for spec, expected in [
        (("model", None), ("model", "data")),
        ((None, "data"), ("data", "model")),
    ]:
        made = layout([(".*", spec)], {"table": array(64, 64)}, axes=TWO_AXES)
        assert made.last_as_first_of("table").spec == P(None, None, expected)


def test_one_device_needs_no_layout():
    assert layout([(".*", "fsdp")], {"w": array(8)}, axes={"data": 1}) is None


ON_FOUR_DEVICES = """
import jax, numpy as np
from jax.sharding import PartitionSpec as P
from paligemma_jax.params import sharding

mesh = sharding.make_mesh([("data", 2), ("model", -1)])
assert dict(mesh.shape) == {"data": 2, "model": 2}

values = np.arange(4 * MIB, dtype="float32").reshape(2048, 2048)
where = sharding.shardings({"w": values, "b": values[0]}, [(".*", "model")], mesh)
placed = sharding.place("w", values, where["w"])
assert placed.sharding.spec == P(None, "model") and where["b"].spec == P(None)
assert {shard.data.shape for shard in placed.addressable_shards} == {(2048, 1024)}
np.testing.assert_array_equal(placed, values)

batch = {"text": np.arange(24).reshape(8, 3), "_mask": np.ones(8, bool)}
placed = sharding.place_batch(batch, mesh)
assert placed["text"].sharding.spec == P(("data", "model"))
assert {shard.data.shape for shard in placed["text"].addressable_shards} == {(2, 3)}
np.testing.assert_array_equal(placed["text"], batch["text"])
try:
    sharding.place_batch({"text": batch["text"][:6]}, mesh)
except ValueError as error:
    assert "'text' of shape (6, 3)" in str(error) and "data=2, model=2" in str(error), error
else:
    raise AssertionError("6 rows went onto 4 devices")
"""


def test_arrays_and_batches_are_split_over_four_devices():
    four = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    env = os.environ | four
    code = ON_FOUR_DEVICES.replace("MIB", str(MIB))
    root = pathlib.Path(__file__).parents[2]
    ran = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
