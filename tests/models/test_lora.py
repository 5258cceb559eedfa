"""Low-rank factors: how many, that they start without effect, and how they act."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paligemma_jax.models.common import projections
from paligemma_jax.models.paligemma import paligemma, variants
from paligemma_jax.params import lora as lora_lib
from paligemma_jax.params import names

LLM = "llm/layers/.*"
HF = f"{LLM}|img/.*/(query|key|value)/kernel"
# As transformers and PEFT print them for r=8 on q, k, v, o, gate, up, down (HF: SigLIP's q, k, v
# have the same names).
COUNTS = [
    ("paligemma1-3b", LLM, 9_805_824),
    ("paligemma1-3b", HF, 11_298_816),
    ("paligemma2-3b", LLM, 10_383_360),
    ("paligemma2-3b", HF, 11_876_352),
    ("paligemma2-10b", LLM, 27_009_024),
    ("paligemma2-10b", HF, 28_502_016),
]


def make(targets=HF, rank=4, alpha=8.0, **settings) -> lora_lib.Lora:
    return lora_lib.Lora(targets, rank, alpha, **settings)


def factors(model, lora, *, seed=0) -> dict[str, jax.Array]:
    """Returns random factors, none of them zero."""
    rng = np.random.default_rng(seed)
    shapes = paligemma.shapes(dataclasses.replace(model, lora=lora))
    return {
        name: jnp.asarray(rng.normal(size=shape.shape, scale=0.1), jnp.float32)
        for name, shape in shapes.items()
        if names.is_factor(name)
    }


@pytest.mark.parametrize(("name", "targets", "count"), COUNTS)
def test_counts_are_those_of_peft(name, targets, count):
    model = variants.released(name, res=224)
    shapes = paligemma.shapes(dataclasses.replace(model, lora=make(targets, rank=8)))
    assert sum(x.size for name, x in shapes.items() if names.is_factor(name)) == count


def test_each_of_several_weights_in_one_array_has_its_own_factors():
    model = variants.make("tiny/14", "tiny2", res=56, vocab_size=9)
    shapes = paligemma.shapes(dataclasses.replace(model, lora=make()))
    found = {name: x.shape for name, x in shapes.items() if names.is_factor(name)}
    attn = "img/Transformer/encoderblock/MultiHeadDotProductAttention_0"
    assert found == {
        f"{attn}/key/kernel_lora_a": (3, 48, 4),
        f"{attn}/key/kernel_lora_b": (3, 4, 4, 12),
        f"{attn}/query/kernel_lora_a": (3, 48, 4),
        f"{attn}/query/kernel_lora_b": (3, 4, 4, 12),
        f"{attn}/value/kernel_lora_a": (3, 48, 4),
        f"{attn}/value/kernel_lora_b": (3, 4, 4, 12),
        "llm/layers/attn/attn_vec_einsum/lora_a": (3, 4, 16, 4),
        "llm/layers/attn/attn_vec_einsum/lora_b": (3, 4, 64),
        "llm/layers/attn/kv_einsum/lora_a": (3, 2, 64, 4),
        "llm/layers/attn/kv_einsum/lora_b": (3, 2, 4, 2, 16),
        "llm/layers/attn/q_einsum/lora_a": (3, 64, 4),
        "llm/layers/attn/q_einsum/lora_b": (3, 4, 4, 16),
        "llm/layers/mlp/gating_einsum_lora_a": (3, 2, 64, 4),
        "llm/layers/mlp/gating_einsum_lora_b": (3, 2, 4, 128),
        "llm/layers/mlp/linear_lora_a": (3, 128, 4),
        "llm/layers/mlp/linear_lora_b": (3, 4, 64),
    }


def test_factors_start_as_pefts(model):
    model = dataclasses.replace(model, lora=make("llm/layers/(attn|mlp)/.*"))
    params = jax.jit(functools.partial(paligemma.init_factors, model=model))(jax.random.key(0))
    assert all(names.is_factor(name) for name in params)
    assert not any(x.any() for name, x in params.items() if name.endswith("lora_b"))
    # Uniform within 1 / sqrt(inputs): kaiming_uniform(a=sqrt(5)) in torch's words.
    for name, inputs in {"mlp/gating_einsum_lora_a": 64, "attn/attn_vec_einsum/lora_a": 64}.items():
        a = np.asarray(params[f"llm/layers/{name}"])
        assert np.abs(a).max() < inputs**-0.5
        np.testing.assert_allclose(a.std(), inputs**-0.5 / 3**0.5, rtol=0.1)
        assert not np.array_equal(a[0], a[1]), "every layer has its own"


def test_b_at_zero_leaves_the_logits_of_the_base_bit_for_bit(params, inputs, model, run_logits):
    zero = {name: x * (not name.endswith("lora_b")) for name, x in factors(model, make()).items()}
    base = run_logits(params, inputs, model=model)
    found = run_logits({**params, **zero}, inputs, model=dataclasses.replace(model, lora=make()))
    np.testing.assert_array_equal(found, base)


def test_factors_act_as_their_product_added_to_the_weight(params, inputs, model, run_logits):
    lora = make()
    pairs = factors(model, lora)
    merged = dict(params)
    # Axes of (w, A, B) behind that of the layers, each of several weights in one array by itself.
    axes = {
        "query/kernel": "lDNH,lDr,lrNH",
        "key/kernel": "lDNH,lDr,lrNH",
        "value/kernel": "lDNH,lDr,lrNH",
        "q_einsum/w": "lNDH,lDr,lrNH",
        "kv_einsum/w": "lpKDH,lpDr,lprKH",
        "attn_vec_einsum/w": "lNHD,lNHr,lrD",
        "mlp/gating_einsum": "lpDF,lpDr,lprF",
        "mlp/linear": "lFD,lFr,lrD",
    }
    for base, (a, b) in lora_lib.pairs(pairs).items():
        w, *ab = next(x for name, x in axes.items() if base.endswith(name)).split(",")
        delta = jnp.einsum(f"{','.join(ab)}->{w}", pairs[a], pairs[b])
        merged[base] = merged[base] + 2.0 * delta  # alpha / rank
    expected = run_logits(merged, inputs, model=model)
    found = run_logits({**params, **pairs}, inputs, model=dataclasses.replace(model, lora=lora))
    assert np.abs(expected - run_logits(params, inputs, model=model)).max() > 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("is_unstacked", [False, True])
def test_decoding_sees_the_factors_too(params, inputs, model, run_logits, is_unstacked):
    lora = make()
    params = {**params, **factors(model, lora)}
    kw = dict(model=dataclasses.replace(model, lora=lora), compute=paligemma.Compute())
    # Row 0: its prefix as the prompt, then the first token of its suffix.
    expected = run_logits(params, inputs, model=kw["model"])[0]
    prefix = int(np.argmax(inputs.mask_ar[0]))
    row = [x[:1] for x in inputs]
    prompt = [*row[:2], *(x[:, :prefix] for x in row[2:])]
    if is_unstacked:
        layers = paligemma.LAYERS
        others = {k: x for k, x in params.items() if not k.startswith(layers)}
        params = {**others, **paligemma.unstack(params)}

    @jax.jit
    def decode(params, prompt, token):
        sizes = dict(cache_len=40, cache_dtype="float32")
        first, cache = paligemma.prefill(params, *prompt, **sizes, **kw)
        return first, paligemma.decode_step(params, cache, token, **kw)[0]

    first, second = decode(params, prompt, row[2][:, prefix])
    np.testing.assert_allclose(first[0], expected[prefix - 1], rtol=0, atol=1e-4)
    np.testing.assert_allclose(second[0], expected[prefix], rtol=0, atol=1e-4)


def test_dropout_acts_on_what_a_sees_and_needs_an_rng(params, inputs, model, run_logits):
    base = run_logits(params, inputs, model=model)
    lora = make(dropout=0.5)
    pairs = factors(model, lora)
    with_lora = dataclasses.replace(model, lora=lora)

    def run(rng, scale=1.0):
        scaled = {k: x * (scale if k.endswith("lora_b") else 1.0) for k, x in pairs.items()}
        given = {**params, **scaled}
        return run_logits(given, inputs, model=with_lora, rng=rng)

    plain = run(None)
    first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1 and np.abs(first - plain).max() > 0.1
    # The weight itself sees all of x: without B, dropout changes nothing.
    np.testing.assert_array_equal(run(jax.random.key(0), scale=0.0), base)


def test_dropout_keeps_the_expected_value():
    x = jnp.ones((1, 2, 10_000))
    leaf = {
        "w": jnp.zeros((10_000, 1)),
        "lora_a": jnp.ones((10_000, 1)),
        "lora_b": jnp.ones((1, 1)),
    }
    keep = jax.random.bernoulli(jax.random.key(0), 0.75, x.shape)
    found = projections.project(leaf, "BTD,DF->BTF", x, lora_x=jnp.where(keep, x / 0.75, 0.0))
    np.testing.assert_allclose(found, 10_000, rtol=0.02)


def test_scale():
    assert make(rank=16, alpha=8.0).scale == 0.5
    assert make(rank=16, alpha=8.0, rank_stabilized=True).scale == 2.0


def test_factors_without_lora_are_an_error_not_ignored(params, inputs, model, run_logits):
    given = {**params, **factors(model, make(LLM))}
    with pytest.raises(ValueError, match=r"attn/q_einsum/lora_a', but the model has no LoRA"):
        run_logits(given, inputs, model=model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(targets="llm/layer/attn/.*"), r"lora.targets: rule .* Nearest.*llm/layers/attn"),
        (dict(targets="llm/.*/scale"), r"matches no parameter.*can have factors: img/Transformer"),
        (
            dict(rank=17, targets=".*/attn/.*"),
            r"'llm/layers/attn/kv_einsum/w' has 64 inputs and 16",
        ),
        (dict(rank=0), r"lora.rank=0: expected 1"),
        (dict(dropout=1.0), r"lora.dropout=1.0 is not in"),
    ],
)
def test_wrong_settings_are_errors_that_name_the_leaf(settings, message, model):
    with pytest.raises(ValueError, match=message):
        paligemma.shapes(dataclasses.replace(model, lora=make(**settings)))
