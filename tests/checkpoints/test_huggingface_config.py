"""config.json read: what transformers writes is understood, what makes another model refused."""

import json
import pathlib

import pytest

from paligemma_jax.checkpoints import huggingface_config, huggingface_files
from paligemma_jax.models.paligemma import variants

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
# Of generation and of other models: transformers once wrote them into the towers' settings.
OF_ALL_MODELS = {
    "return_dict": True,
    "max_length": 20,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "id2label": {"0": "LABEL_0"},
    "pruned_heads": {},
    "tie_encoder_decoder": False,
    "torch_dtype": None,
}


def make_model(llm: str, *, res=56, cap=0.0) -> variants.PaliGemma:
    return variants.make("tiny/14", llm, res=res, vocab_size=1400, final_logits_softcap=cap)


def released_config() -> dict:
    """As the released 448 px file is described: defaults left out, facts said twice."""
    return {
        "_name_or_path": "somewhere",
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "hidden_size": 2048,
        "ignore_index": -100,
        "image_token_index": 257_152,
        "_vocab_size": 257_152,
        "model_type": "paligemma",
        "projection_dim": 2048,
        "transformers_version": "4.44.0",
        "text_config": OF_ALL_MODELS
        | {
            "hidden_size": 2048,
            "intermediate_size": 16_384,
            "model_type": "gemma",
            "num_attention_heads": 8,
            "num_hidden_layers": 18,
            "num_image_tokens": 1024,
            "num_key_value_heads": 1,
            "vocab_size": 257_216,
        },
        "vision_config": OF_ALL_MODELS
        | {
            "hidden_size": 1152,
            "image_size": 448,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "num_image_tokens": 1024,
            "patch_size": 14,
            "projection_dim": 2048,
            "projector_hidden_act": "gelu_fast",
            "vision_use_head": False,
        },
    }


def change(config: dict, path: tuple[str, ...], value) -> dict:
    node = config if len(path) == 1 else config[path[0]]
    node[path[-1]] = value
    return config


def test_a_config_with_everything_that_older_versions_wrote_is_understood():
    found = huggingface_config.model(released_config(), where="config.json")
    assert found == variants.released("paligemma1-3b", res=448)


@pytest.mark.parametrize("name", variants.RELEASED)
@pytest.mark.parametrize("cap", [0.0, 30.0])
def test_every_released_model_is_read_back_from_its_config(name, cap):
    cap = cap if name.startswith("paligemma2") else 0.0
    model = variants.released(name, res=448, final_logits_softcap=cap)
    config = json.loads(json.dumps(huggingface_files.config(model, dtype="bfloat16")))
    assert huggingface_config.model(config, where="config.json") == model
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"


def test_a_config_that_leaves_defaults_out_is_understood():
    text = {"model_type": "gemma2", "vocab_size": 257_216}
    vision = {
        "hidden_size": 1152,
        "num_hidden_layers": 27,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    config = {"model_type": "paligemma", "text_config": text, "vision_config": vision}
    found = huggingface_config.model(config, where="config.json")
    assert found == variants.released("paligemma2-3b", res=224, final_logits_softcap=30.0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model_type",), "llava", "model_type is 'llava', expected 'paligemma'"),
        (("text_config", "model_type"), "gemma3", "text_config.model_type is 'gemma3'"),
        (("text_config", "query_pre_attn_scalar"), 99, "query_pre_attn_scalar is 99, expected"),
    ],
)
def test_another_model_is_refused(path, value, message):
    config = huggingface_files.config(make_model("tiny2"), dtype="float32")
    change(config, path, value)
    with pytest.raises(ValueError, match=message):
        huggingface_config.model(config, where="config.json")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("quantization_config",), {"bits": 4}, "quantization_config is .*another model"),
        (("text_config", "rope_scaling"), {"factor": 2.0}, r"text_config: rope_scaling is"),
        (("text_config", "rope_theta"), 500_000.0, "rope_theta is 500000.0, expected 10000"),
        (("text_config", "hidden_act"), "silu", 'hidden_act is "silu", expected "gelu_py'),
        (("text_config", "attention_bias"), True, "attention_bias is true, expected false"),
        (("text_config", "new_norm"), 3, "text_config: new_norm is 3, and this key is not known"),
        (("vision_config", "layer_norm_eps"), 1e-5, "layer_norm_eps is 1e-05, expected 1e-06"),
        (("vision_config", "vision_use_head"), True, "vision_use_head is true"),
        (("image_token_index",), 256_000, "image_token_index is 256000, expected 257152"),
        (("image_token_id",), 257_200, "image_token_id is 257200, expected 257152"),
        (("text_config", "vocab_size"), 257_280, "257152, expected 257216.*Was the embedding"),
        (("text_config", "num_image_tokens"), 256, "num_image_tokens is 256, expected 1024"),
        (("vision_config", "projection_dim"), 2304, "projection_dim is 2304, expected 2048"),
        (("vocab_size",), 300_000, "vocab_size is 300000, expected 257216"),
        (
            ("text_config", "num_hidden_layers"),
            10**18,
            "num_hidden_layers is 10+, expected a whole",
        ),
        (("text_config", "head_dim"), -256, "head_dim is -256, expected a whole number from 1"),
        (("vision_config", "patch_size"), "14", 'patch_size is "14", expected a whole number'),
        (("vision_config", "num_attention_heads"), 7, "width 1152 is not a multiple"),
        (("vision_config",), [1], r"vision_config is \[1\], expected an object"),
        (("text_config",), None, "text_config.model_type is None, expected gemma or gemma2"),
    ],
)
def test_what_would_be_another_model_is_refused_by_name(path, value, message):
    with pytest.raises(ValueError, match=f"config.json.*{message}"):
        huggingface_config.model(change(released_config(), path, value), where="config.json")


@pytest.mark.parametrize("value", [None, False, {}, [], ""])
def test_a_key_that_says_it_is_not_used_is_as_good_as_absent(value):
    expected = huggingface_config.model(released_config(), where="c")
    config = change(released_config(), ("text_config", "some_new_feature"), value)
    assert huggingface_config.model(config, where="c") == expected


@pytest.mark.parametrize("path", [("tie_word_embeddings",), ("text_config", "tie_word_embeddings")])
def test_a_head_of_its_own_is_told_from_a_tied_one(path):
    assert huggingface_config.is_tied(released_config())
    assert not huggingface_config.is_tied(change(released_config(), path, False))
