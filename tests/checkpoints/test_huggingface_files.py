"""config.json and its neighbours: what transformers saved, and what training means."""

import json
import pathlib

import pytest

from paligemma_jax.checkpoints import huggingface_config, huggingface_files
from paligemma_jax.models.paligemma import variants

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
# What a version of transformers adds by itself, or what we differ in on purpose.
OTHERS = {
    "initializer_range",
    "use_bidirectional_attention",
    "rope_parameters",
    "use_cache",
    "transformers_version",
    "layer_types",
    "sliding_window",
}


def make_model(llm: str, *, res=56, cap=0.0) -> variants.PaliGemma:
    return variants.make("tiny/14", llm, res=res, vocab_size=1400, final_logits_softcap=cap)


def flat(config: dict) -> dict:
    inner = {f"{k}.{j}": y for k, x in config.items() if isinstance(x, dict) for j, y in x.items()}
    return {k: x for k, x in {**config, **inner}.items() if not isinstance(x, dict)}


@pytest.mark.parametrize(("case", "llm"), [("pg1", "tiny"), ("pg2", "tiny2")])
def test_config_says_what_transformers_saved(case, llm):
    theirs = flat(json.loads((REFERENCE / f"hf_{case}" / "config.json").read_text()))
    ours = flat(huggingface_files.config(make_model(llm), dtype="float32"))
    expected = {k: x for k, x in theirs.items() if k.rpartition(".")[2] not in OTHERS}
    assert {k: ours.get(k, "missing") for k in expected} == expected


def test_no_layer_of_an_896_px_model_has_a_window_that_could_cut_it():
    model = variants.released("paligemma2-3b", res=896)
    text = huggingface_files.config(model, dtype="float16")["text_config"]
    assert set(text["layer_types"]) == {"full_attention"}
    assert text["sliding_window"] == text["max_position_embeddings"] == 8192
    assert model.num_image_tokens == 4096


def test_the_final_softcap_is_the_trained_one_and_null_where_there_is_none():
    key = "final_logit_softcapping"
    for cap, expected in ((0.0, None), (30.0, 30.0)):
        config = huggingface_files.config(make_model("tiny2", cap=cap), dtype="float32")
        assert config["text_config"][key] == expected


def test_the_27b_query_scale_is_written_as_a_number():
    config = huggingface_files.config(make_model("tiny2_27b"), dtype="float32")
    assert config["text_config"]["query_pre_attn_scalar"] == 64 // 4
    assert huggingface_config.model(config, where="c").llm.query_scale == "width_per_head"


def test_what_gemma_1_cannot_express_is_refused():
    model = make_model("tiny", cap=30.0)
    with pytest.raises(ValueError, match=r"no soft-caps .* final_logits_softcap=30"):
        huggingface_files.config(model, dtype="float32")


def test_images_are_resized_bilinearly_to_the_models_resolution():
    config = huggingface_files.preprocessor_config(make_model("tiny", res=112))
    assert (config["size"], config["resample"]) == ({"height": 112, "width": 112}, 2)
    assert config["image_seq_length"] == 64


def test_extra_rows_are_never_generated():
    config = huggingface_files.generation_config(make_model("tiny"))
    assert config["suppress_tokens"] == list(range(1400, 1464))


def test_image_gets_the_id_behind_all_pieces():
    control = {"pad": (0, "<pad>"), "eos": (1, "</s>")}
    config = huggingface_files.tokenizer_config(control, {5: "<loc0000>"}, num_pieces=9)
    added = config["added_tokens_decoder"]
    assert {k: (x["content"], x["special"]) for k, x in added.items()} == {
        "0": ("<pad>", True),
        "1": ("</s>", True),
        "5": ("<loc0000>", False),
        "9": ("<image>", True),
    }
    assert (config["eos_token"], config["mask_token"]) == ("</s>", None)
