"""Dimensions in settings are checked by name and type."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from paligemma_jax.assembly import assembly, model_functions, weights
from paligemma_jax.settings import load


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        (dict(widht=8), "'widht'.* are no dimensions"),
        (dict(width="8"), "model.llm.dims.width='8': expected int, found str"),
        (dict(depth=0), "model.llm.dims.depth=0: expected 1 or more"),
        (dict(post_norms=1), "post_norms=1: expected bool, found int"),
        (dict(query_scale="width"), "query_scale 'width': expected"),
    ],
)
def test_wrong_dimension_is_named(config, dims, message):
    config.model.llm.dims = dims
    with pytest.raises(ValueError, match=message):
        model_functions.describe(load.typed(config), vocab_size=1500)


def test_whole_number_does_for_a_soft_cap(config):
    config.model.llm.dims = dict(attn_logits_softcap=50)
    assert (
        model_functions.describe(load.typed(config), vocab_size=1500).heads()["llm"].softcap == 50
    )


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("lm", "lora.targets='lm': expected 'llm', 'hf_compat' or .*Did you mean 'llm'"),
        ("all-linear", "'all-linear': expected 'llm', .*full names, as 'llm/layers/attn/"),
        ("hfcompat", "Did you mean 'hf_compat'"),
    ],
)
def test_a_word_that_is_no_short_form_of_the_family_is_named(config, targets, message):
    config.lora.targets = targets
    with pytest.raises(ValueError, match=message):
        model_functions.describe(load.typed(config), vocab_size=1500)


def test_short_forms_are_those_of_the_family(config, monkeypatch):
    own = model_functions.FAMILIES["paligemma"]
    names = dataclasses.replace(own.names, lora_targets={"decoder": "llm/layers/attn/.*"})
    monkeypatch.setitem(model_functions.FAMILIES, "other", dataclasses.replace(own, names=names))
    config.model.family, config.lora.targets = "other", "decoder"
    assert model_functions.make_lora(load.typed(config)).targets == "llm/layers/attn/.*"
    config.lora.targets = "llm"
    with pytest.raises(ValueError, match=r"lora.targets='llm': expected 'decoder' or a regex"):
        model_functions.make_lora(load.typed(config))


def test_published_weights_need_a_tokenizer_of_their_size(config):
    config.model.llm.vocab_size, config.model_init = 257_152, "pt_224.f16"
    assert model_functions.describe(load.typed(config), vocab_size=257_152).vocab_size == 257_152
    with pytest.raises(ValueError, match=r"has 1500 pieces, pt_224\.f16 knows 257152"):
        model_functions.describe(load.typed(config), vocab_size=1500)


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [
        ("cpu", None, "float32"),
        ("tpu", None, "bfloat16"),
        ("gpu", "7.5", "float16"),
        ("gpu", "7.0", "float16"),
        ("gpu", "8.0", "bfloat16"),
        ("gpu", "12.0", "bfloat16"),
        ("gpu", None, "float32"),
    ],
)
def test_auto_computes_in_what_the_device_has_units_for(
    config, monkeypatch, platform, capability, expected
):
    device = types.SimpleNamespace(platform=platform, device_kind="Kind")
    if capability is not None:
        device.compute_capability = capability
    monkeypatch.setattr(model_functions.jax, "local_devices", lambda: [device])
    config.compute_dtype = "auto"
    assert model_functions.make_compute(load.typed(config)).dtype == expected
    config.compute_dtype = "float32"
    assert model_functions.make_compute(load.typed(config)).dtype == "float32"


@pytest.mark.parametrize(
    ("num_tokens", "expected"), [(384, 0), (383, 1), (369, 15), (368, 0), (385, 0), (1, 0)]
)
def test_padding_costs_no_more_rows_than_are_computed_anyhow(num_tokens, expected):
    assert model_functions.padding(num_tokens) == expected
    rows = -(-num_tokens // 16)
    assert -(-(num_tokens + expected) // 16) == rows


def test_padded_sequences_give_the_same_hidden_states(config):
    settings = load.typed(config)
    model = model_functions.describe(settings, vocab_size=1500)
    functions = model.functions(model_functions.make_compute(settings), cache_dtype="float32")
    lengths = []

    def apply(params, batch, rng=None):
        lengths.append(batch["text"].shape[1])
        return functions.apply(params, batch, rng)

    padded = model_functions.pad_sequences(dataclasses.replace(functions, apply=apply), model)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (2, 1, 14, 14, 3), np.uint8),
        "mask_image": np.ones((2, 1), bool),
        "text": rng.integers(1, 1500, (2, 120), np.int32),
        "mask_ar": np.arange(120)[None] >= np.array([[3], [5]]),
        "mask_input": np.arange(120)[None] < np.array([[120], [40]]),
    }
    params = model.init(jax.random.key(0))
    is_text = batch["mask_input"]  # what padding's own places hold, nobody reads
    np.testing.assert_allclose(
        np.asarray(padded.apply(params, batch))[is_text],
        np.asarray(functions.apply(params, batch))[is_text],
        rtol=1e-5,
        atol=1e-5,
    )
    assert lengths == [127]  # beside the one token of the image


def test_the_plan_says_how_long_a_sequence_is_and_becomes(config):
    config.input.text_len = 120
    settings = load.typed(config)
    model = model_functions.describe(settings, vocab_size=1500)
    plain = "121 tokens, 1 of images and 120 of text"
    assert model_functions.describe_sequence(settings, model, platform="cpu") == plain
    on_gpu = model_functions.describe_sequence(settings, model, platform="gpu")
    assert on_gpu == f"{plain}, padded to 128 at no cost"


def test_the_type_that_was_chosen_is_said(config, capsys):
    config.compute_dtype = "auto"
    assert assembly.assemble(load.typed(config)).functions.compute.dtype == "float32"
    assert "compute_dtype: float32 (cpu: no units for 16 bits" in capsys.readouterr().err


GEMMA_1 = dict(head_dim=256, attn_logits_softcap=0.0)


def check(config, monkeypatch, *, capability: str | None, platform: str = "gpu"):
    device = types.SimpleNamespace(platform=platform, device_kind="Kind")
    if capability:
        device.compute_capability = capability
    monkeypatch.setattr(model_functions.jax, "local_devices", lambda: [device])
    model = model_functions.describe(load.typed(config), vocab_size=1500)
    model_functions.check_attention(
        load.typed(config), model, model_functions.make_compute(load.typed(config))
    )


@pytest.fixture
def cudnn(config):
    """Both towers by cuDNN, as a Hopper GPU can."""
    config.compute_dtype = "bfloat16"
    config.model.img.attention = config.model.llm.attention = "cudnn"
    config.model.llm.dims = {**(config.model.llm.dims or {}), **GEMMA_1}
    config.model.img.dims = {**(config.model.img.dims or {}), "width": 16, "num_heads": 2}
    config.input.text_len = 23  # beside one image token
    return config


def test_what_a_device_can_do_passes(cudnn, monkeypatch):
    check(cudnn, monkeypatch, capability="9.0")
    check(cudnn, monkeypatch, capability="10.0")
    cudnn.model.llm.attention = "xla"
    check(cudnn, monkeypatch, capability="8.0")
    cudnn.model.img.attention = "xla"
    check(cudnn, monkeypatch, capability=None, platform="cpu")


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (dict(capability=None, platform="cpu"), "img.attention='cudnn': it needs an NVIDIA GPU"),
        (dict(capability="gfx942"), "it needs an NVIDIA GPU, found Kind"),
        (dict(capability="7.5"), "img.*: heads of 8 need compute capability 8, found 7.5"),
        (dict(capability="8.9"), "llm.*: heads of 256 need compute capability 9, found 8.9"),
    ],
)
def test_a_device_that_has_no_kernel_is_named(cudnn, monkeypatch, device, message):
    with pytest.raises(ValueError, match=message):
        check(cudnn, monkeypatch, **device)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("compute_dtype", "float32", "img.*compute_dtype bfloat16, found float32"),
        ("compute_dtype", "float16", "img.*compute_dtype bfloat16, found float16"),
        ("model.llm.dims.attn_logits_softcap", 50.0, "llm.*no soft-cap, and this model's is 50"),
        ("model.llm.dims.head_dim", 264, "llm.*a multiple of 8 up to 256 long, found 264"),
        ("model.llm.dims.head_dim", 20, "llm.*a multiple of 8 up to 256 long, found 20"),
        ("input.text_len", 24, "llm.*even number of tokens, found 1 of images and 24 of text"),
        ("input.text_lens", [11, 12], "llm.*even number.* 12 of text.*or use 'xla'"),
    ],
)
def test_settings_that_the_kernel_does_not_serve_are_named(cudnn, monkeypatch, key, value, message):
    *folders, leaf = key.split(".")
    node = cudnn
    for folder in folders:
        node = node[folder]
    node[leaf] = value
    with pytest.raises(ValueError, match=message):
        check(cudnn, monkeypatch, capability="9.0")


def test_a_tower_that_nobody_knows_is_said_with_its_key(config):
    config.model.llm.variant = "2"
    with pytest.raises(ValueError, match="no language model named '2'") as error:
        model_functions.describe(load.typed(config), vocab_size=2048)
    assert "model.llm.variant" in error.value.__notes__[0]


def test_micro_batches_that_do_not_divide_a_batch_name_their_key(config):
    mesh = weights.make_mesh(load.typed(config))
    with pytest.raises(ValueError, match=r"3 micro-batches \(accumulation_steps\)"):
        weights.check_divisible(8, mesh, key="input.batch_size", parts=3)
