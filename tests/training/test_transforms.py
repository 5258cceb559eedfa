"""Transformations of our own: the moving average, and 8-bit Adam against bitsandbytes."""

import functools
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from paligemma_jax.training import optimizer, step, transforms


def test_the_average_follows_its_formula_and_changes_no_update():
    tx = optax.chain(optax.scale(-1.0), transforms.keep_average(0.5))
    params = {"a": jnp.array([1.0, 2.0])}
    state = tx.init(params)
    expected = np.array([1.0, 2.0])
    for t in (1, 2, 3, 20):
        updates, state = tx.update({"a": jnp.ones(2)}, state, params)
        np.testing.assert_array_equal(updates["a"], [-1.0, -1.0])
        params = optax.apply_updates(params, updates)
        if t <= 3:
            d = min(0.5, t / (t + 9))
            expected = d * expected + (1 - d) * np.asarray(params["a"])
            np.testing.assert_allclose(transforms.find(state)["a"], expected, rtol=1e-6)


def test_evaluation_sees_the_average_of_what_is_trained(toy, quick_jit):
    params = toy.params()
    schedule = [("llm/out", dict(decay_type="constant")), (".*", None)]
    opt = optimizer.make_optimizer(
        params, schedule=schedule, total_steps=3, lr=0.1, optax_name="adam", ema_decay=0.9
    )
    train_step = quick_jit(step.make_train_step(toy.apply_fn, toy.logits_fn, opt.tx, seed=0))
    state = step.init_state(params, opt.trainable, opt.tx)
    np.testing.assert_array_equal(state.averaged["llm/out"], params["llm/out"])
    state, _ = train_step(state, toy.batch())
    expected = 0.1 * params["llm/out"] + 0.9 * state.params["llm/out"]
    np.testing.assert_allclose(state.averaged["llm/out"], expected, rtol=1e-6)
    np.testing.assert_array_equal(state.averaged["llm/mix"], params["llm/mix"])
    assert state.averaged.keys() == state.params.keys()
    before = np.asarray(state.averaged["llm/out"])
    broken = toy.batch() | {"text": np.full((8, 7), 99, np.int32)}  # no such token: a NaN loss
    state, metrics = train_step(state, broken)
    assert not metrics["finite"]
    np.testing.assert_array_equal(state.averaged["llm/out"], before)


def test_without_an_average_evaluation_sees_the_parameters(toy):
    opt = optimizer.make_optimizer(
        toy.params(), schedule=dict(decay_type="constant"), total_steps=3, lr=0.1
    )
    state = step.init_state(toy.params(), opt.trainable, opt.tx)
    assert transforms.find(state.opt_state) is None
    assert all(state.averaged[name] is x for name, x in state.params.items())


@pytest.mark.parametrize("decay", [1.0, 1.5, -0.1])
def test_a_decay_out_of_range_is_an_error(decay):
    with pytest.raises(ValueError, match="ema_decay="):
        transforms.keep_average(decay)


@pytest.fixture(scope="module")
def theirs() -> dict[str, np.ndarray]:
    """Numbers of bitsandbytes, made by tests/reference/make_adam_8bit.py."""
    with np.load(pathlib.Path(__file__).parents[1] / "reference" / "adam_8bit.npz") as file:
        return dict(file)


@pytest.mark.parametrize(("kind", "is_signed"), [("signed", True), ("unsigned", False)])
def test_blocks_in_8_bits_equal_those_of_bitsandbytes(theirs, kind, is_signed):
    values = transforms.dynamic_map(is_signed=is_signed)
    np.testing.assert_array_equal(values, theirs[f"map/{kind}"])
    x = theirs["blocks/x"] if is_signed else np.abs(theirs["blocks/x"])
    made = jax.jit(functools.partial(transforms.encode, is_signed=is_signed))(x)
    np.testing.assert_array_equal(made.codes, theirs[f"blocks/{kind}"])
    np.testing.assert_array_equal(made.greatest, theirs[f"blocks/{kind}/greatest"])
    back = transforms.decode(made, is_signed=is_signed)
    np.testing.assert_array_equal(back, theirs[f"blocks/{kind}/back"])


@pytest.mark.parametrize("is_signed", [True, False])
def test_every_value_and_bound_of_the_table_gets_its_nearest_code(is_signed):
    values = transforms.dynamic_map(is_signed=is_signed)
    bounds = (values[:-1] + values[1:]) / np.float32(2)
    rng = np.random.default_rng(0)
    x = [values, bounds, np.nextafter(bounds, 2), np.nextafter(bounds, -2)]
    x += [sign * 10 ** rng.uniform(-9, 0, 5000) for sign in ((1, -1) if is_signed else (1,))]
    x += [np.float32([0, 1])]
    # Of one block each, with 1 as the greatest.
    blocks = [np.append(part, np.ones(-len(part) % 255)).reshape(-1, 255) for part in x]
    x = np.concatenate(blocks).astype(np.float32)
    x = np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
    made = jax.jit(functools.partial(transforms.encode, is_signed=is_signed))(x)
    np.testing.assert_array_equal(made.codes, np.searchsorted(bounds, x))


@pytest.mark.parametrize("name", ["adam_8bit", "paged_adamw_8bit"])
def test_ten_steps_of_8_bit_adam_equal_those_of_bitsandbytes(theirs, name):
    made = optimizer.make_transform(name, {"b1": 0.9, "b2": 0.95, "eps": 1e-6})
    params = {name: jnp.asarray(theirs[f"start/{name}"]) for name in ("w", "small")}
    state = made.init(params)
    assert state.mu["small"].dtype == jnp.float32
    assert {x.dtype.name for x in state.mu["w"]} == {"uint8", "float32"}
    for step_number in range(10):
        gradients = {name: theirs[f"gradient/{name}"][step_number] for name in params}
        updates, state = jax.jit(made.update)(gradients, state)
        params = {name: x - 0.01 * updates[name] for name, x in params.items()}
    for name, x in params.items():
        np.testing.assert_allclose(x, theirs[f"trained/{name}"], rtol=0, atol=1e-5)
    for moment in ("mu", "nu"):
        codes, greatest = getattr(state, moment)["w"]
        np.testing.assert_array_equal(codes, theirs[f"{moment}/codes"])
        np.testing.assert_allclose(greatest, theirs[f"{moment}/greatest"], rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "blocks"), [((3, 40, 512), (3, 40, 2)), ((5, 8, 96), (5, 3)), ((7, 700), (20,))]
)
def test_numbers_come_back_near_and_axes_before_whole_blocks_stay(shape, blocks):
    x = jax.random.normal(jax.random.key(0), shape)
    made = transforms.encode(x, is_signed=True)
    assert made.codes.shape == shape and made.greatest.shape == blocks
    back = transforms.decode(made, is_signed=True)
    np.testing.assert_allclose(back, x, rtol=0, atol=0.02 * float(jnp.abs(x).max()))


def test_large_arrays_are_updated_layer_by_layer_to_the_same_numbers(monkeypatch):
    params = {"x/kernel": jnp.zeros((3, 40, 128))}
    gradients = {"x/kernel": jax.random.normal(jax.random.key(0), (3, 40, 128))}
    results = []
    for many in (transforms.MANY, 1):
        monkeypatch.setattr(transforms, "MANY", many)
        made = transforms.adam_8bit()
        results.append(made.update(gradients, made.init(params)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), *results)


def test_biases_and_norms_keep_their_moments_in_32_bits():
    shapes = {"a/kernel": (64, 64), "a/bias": (3, 8192), "norm/scale": (24, 2048)}
    state = transforms.adam_8bit().init({name: jnp.zeros(x) for name, x in shapes.items()})
    kinds = {name: isinstance(x, transforms.Codes) for name, x in state.nu.items()}
    assert kinds == {"a/kernel": True, "a/bias": False, "norm/scale": False}


def test_a_paged_state_is_in_the_memory_of_the_host():
    made = optimizer.make_transform("paged_adam_8bit", {})
    params = {"a/kernel": jnp.ones((64, 64)), "a/bias": jnp.ones(64)}
    state = step.init_state(params, params, made)
    places = {x.sharding.memory_kind for x in state.opt_state.mu["a/kernel"]}
    assert places == {transforms.HOST}
    assert state.opt_state.mu["a/bias"].sharding.memory_kind != transforms.HOST
    fetched = jax.jit(transforms.fetch_pages)(state.opt_state)
    assert fetched.mu["a/kernel"].codes.sharding.memory_kind != transforms.HOST


def test_a_device_that_cannot_reach_the_hosts_memory_is_refused():
    class Device:
        device_kind = "Potato"

        def addressable_memories(self):
            return []

    class Sharding:
        device_set = frozenset([Device()])

    with pytest.raises(ValueError, match="which Potato has not"):
        transforms.place_pages(transforms.PagedCodes(Sharding(), Sharding()))


SPREAD = """
import jax
import numpy as np

from paligemma_jax.training import optimizer, step, transforms

mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
assert mesh.size == 4
x, g = ({"a/kernel": jax.random.normal(jax.random.key(i), (2, 64, 1024))} for i in range(2))
plain = transforms.adam_8bit()
expected, alone = jax.jit(plain.update)(g, plain.init(x))
for axes in ((None, None, "d"), (None, "d")):
    where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    for name in ("adam_8bit", "paged_adam_8bit"):
        made = optimizer.make_transform(name, {})
        state = step.init_state(jax.device_put(x, where), ["a/kernel"], made).opt_state
        assert state.nu["a/kernel"].codes.sharding.spec == where.spec
        updates, spread = jax.jit(made.update)(jax.device_put(g, where), state)
        np.testing.assert_array_equal(updates["a/kernel"], expected["a/kernel"])
        np.testing.assert_array_equal(spread.mu["a/kernel"].codes, alone.mu["a/kernel"].codes)
"""


def test_arrays_that_are_spread_over_devices_get_the_same_codes():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-c", SPREAD]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
