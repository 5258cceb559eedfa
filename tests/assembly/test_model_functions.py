"""Dimensions in settings are checked by name and type."""

import types

import pytest

from paligemma_jax.assembly import assembly, model_functions
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


def test_the_type_that_was_chosen_is_said(config, capsys):
    config.compute_dtype = "auto"
    assert assembly.assemble(load.typed(config)).functions.compute.dtype == "float32"
    assert "compute_dtype: float32 (cpu: no units for 16 bits" in capsys.readouterr().err
