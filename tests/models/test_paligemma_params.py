"""Parameters of the joined model: their names, how they start, and that all of them learn."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.models.paligemma import paligemma, variants

CONTRACT = pathlib.Path(__file__).parents[1] / "reference" / "param_contract"
RELEASED = [
    ("paligemma1-3b", 224),
    ("paligemma1-3b", 448),
    ("paligemma1-3b", 896),
    ("paligemma2-3b", 224),
    ("paligemma2-10b", 224),
    ("paligemma2-28b", 224),
]


@pytest.mark.parametrize(("name", "res"), RELEASED)
def test_names_and_shapes_are_those_of_the_released_file(name, res):
    expected = {}
    lines = (CONTRACT / f"params_{name.replace('-', '_')}_{res}.txt").read_text().splitlines()
    for line in lines[1:]:
        key, shape, _ = line.split("\t")
        expected[key] = tuple(int(size) for size in shape.split(","))
    found = paligemma.shapes(variants.released(name, res=res))
    assert {key: value.shape for key, value in found.items()} == expected
    assert {value.dtype for value in found.values()} == {jnp.dtype("float32")}


def test_shapes_are_traced_once_and_belong_to_who_asks(monkeypatch):
    model = variants.make("tiny/14", "tiny", res=14, vocab_size=11)
    expected = paligemma.shapes(model)
    monkeypatch.setattr(paligemma, "init", None)  # what would trace again
    paligemma.shapes(model).clear()
    assert expected and paligemma.shapes(model) == expected


@pytest.mark.slow
def test_parameters_start_as_in_big_vision():
    """Standard deviations from the initializers of models/vit.py and models/ppp/gemma.py.

    The head is the exception: it starts at LeCun normal, not at zero.
    """
    model = variants.make("mini/14", "mini", res=56, vocab_size=500)
    params = jax.jit(functools.partial(paligemma.init, model=model))(jax.random.key(0))
    block, layers = "img/Transformer/encoderblock", "llm/layers"
    attn, mlp = f"{block}/MultiHeadDotProductAttention_0", f"{block}/MlpBlock_0"
    expected = {
        "img/embedding/kernel": (14 * 14 * 3) ** -0.5,
        "img/pos_embedding": 96**-0.5,
        f"{attn}/query/kernel": (2 / (96 + 96)) ** 0.5,
        f"{attn}/out/kernel": (2 / (96 + 96)) ** 0.5,
        f"{mlp}/Dense_0/kernel": (2 / (96 + 384)) ** 0.5,
        f"{mlp}/Dense_1/bias": 1e-6,
        f"{attn}/query/bias": 0,
        f"{block}/LayerNorm_0/bias": 0,
        "img/head/kernel": 96**-0.5,
        "llm/embedder/input_embedding": 96**-0.5,
        f"{layers}/attn/q_einsum/w": 96**-0.5,
        f"{layers}/attn/kv_einsum/w": 96**-0.5,
        f"{layers}/attn/attn_vec_einsum/w": (4 * 32) ** -0.5,
        f"{layers}/mlp/gating_einsum": 96**-0.5,
        f"{layers}/mlp/linear": 768**-0.5,
        "llm/final_norm/scale": 0,
    }
    for name, std in expected.items():
        np.testing.assert_allclose(np.std(params[name]), std, rtol=0.1, err_msg=name)
    first, second = params[f"{layers}/mlp/linear"][:2]
    assert np.abs(first - second).max() > 0, "every layer has its own random numbers"


def test_every_parameter_gets_a_gradient_through_scan_and_remat(params, inputs, model):
    @jax.jit
    def gradient(params):
        def loss(params):
            compute = paligemma.Compute(remat="nothing_saveable")
            hidden = paligemma.apply(params, *inputs, model=model, compute=compute)
            return jnp.mean(jnp.abs(paligemma.logits(params, hidden, model=model)))

        return jax.grad(loss)(params)

    largest = {name: np.abs(gradient).max() for name, gradient in gradient(params).items()}
    # The same number added to all of a head's keys does not change its softmax.
    key_bias = [name for name in largest if name.endswith("/key/bias")]
    assert [name for name in largest if largest[name] < 1e-6 or np.isnan(largest[name])] == key_bias


def test_an_unknown_way_to_compute_is_an_error():
    with pytest.raises(ValueError, match=r"no policy named 'nothing'.*nothing_saveable"):
        paligemma.Compute(remat="nothing")
    with pytest.raises(ValueError, match=r"'float64' is not one of"):
        paligemma.Compute(dtype="float64")
    with pytest.raises(ValueError, match=r"dropout rate 1.5"):
        paligemma.Compute(dropout=1.5)
