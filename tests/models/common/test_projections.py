import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.models.common import projections, quantize

SIZES = {"B": 2, "D": 3, "N": 4, "K": 5, "H": 6, "F": 7, "V": 8, "2": 2, "3": 3}
EQUATIONS = [
    "BTD,NDH->BTNH",
    "BTD,2KDH->2BKTH",
    "BTD,3KDH->3BKTH",
    "BTNH,NHD->BTD",
    "BTD,2DF->2BTF",
    "BTF,FD->BTD",
    "BTD,VD->BTV",
    "BTD,DNH->BTNH",
]


@pytest.mark.parametrize("eqn", EQUATIONS)
@pytest.mark.parametrize("num_tokens", [1, 4])
def test_project_equals_einsum(eqn, num_tokens):
    rng = np.random.default_rng(0)
    operands = eqn.split("->")[0].split(",")
    sizes = {**SIZES, "T": num_tokens}
    x, w = (rng.normal(size=[sizes[i] for i in letters]) for letters in operands)
    x, w = x.astype(np.float32), w.astype(np.float32)
    found = projections.project({"w": w}, eqn, x)
    np.testing.assert_allclose(found, jnp.einsum(eqn, x, w), rtol=0, atol=1e-5)


def test_the_activation_decides_the_dtype():
    w, bias = np.ones((3, 2), np.float32), np.full(2, 0.5, np.float32)
    x = jnp.ones((1, 2, 3), jnp.bfloat16)
    found = projections.project({"w": w, "bias": bias}, "BTD,DF->BTF", x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, np.full((1, 2, 2), 3.5))
    wide = projections.project({"w": w}, "BTD,DF->BTF", x, out_dtype=jnp.float32)
    assert wide.dtype == jnp.float32


def test_16_bit_weights_under_float32_compute_are_exact():
    w = np.array([[1.0], [2**-10]], np.float16)
    x = np.array([[[1.0, 2**-10]]], np.float32)
    found = projections.project({"w": w}, "BTD,DF->BTF", x)
    np.testing.assert_array_equal(found, [[[1 + 2.0**-20]]])


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_rows_looked_up_one_after_the_other_are_the_same(kind):
    table = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    unit = (16, 64)
    is_whole = kind != "int8"
    w = jnp.asarray(table, kind) if is_whole else quantize.quantize(table, kind, unit=unit)
    ids = jnp.array([[3], [15], [3], [99], [-7]])  # beyond the table: its last and first rows
    found = projections.look_up_each({"w": w}, ids, dtype="float32")
    assert found.shape == (5, 1, 64)
    np.testing.assert_array_equal(found, projections.look_up({"w": w}, ids, dtype="float32"))


def test_look_up_takes_rows():
    table = np.arange(6, dtype=np.float16).reshape(3, 2)
    found = projections.look_up({"w": table}, np.array([[2, 0]]), dtype="float32")
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, [[[4, 5], [0, 1]]])


@pytest.mark.parametrize("piece_bytes", [2**26, 2**10])
@pytest.mark.parametrize(
    ("eqn", "x_shape", "w_shape"),
    [
        ("BTD,VD->BTV", (2, 5, 64), (37, 64)),
        ("BTD,NDH->BTNH", (2, 5, 16), (4, 16, 64)),
        ("BTD,2DF->2BTF", (2, 5, 16), (2, 16, 64)),
        ("BTD,2DF->2BTF", (2, 1, 16), (2, 16, 64)),
        ("BTNH,NHD->BTD", (2, 5, 4, 16), (4, 16, 64)),
    ],
)
def test_a_quantized_weight_acts_as_what_it_stands_for(
    eqn, x_shape, w_shape, piece_bytes, monkeypatch
):
    monkeypatch.setattr(projections, "PIECE_BYTES", piece_bytes)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=x_shape), jnp.float32)
    w = quantize.quantize(jnp.asarray(rng.normal(size=w_shape)), "nf4", unit=w_shape)

    def run(w, x):
        y, pull = jax.vjp(lambda x: projections.project({"w": w}, eqn, x), x)
        return y, pull(jnp.cos(y))[0]

    for found, expected in zip(run(w, x), run(w.astype(jnp.float32), x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
