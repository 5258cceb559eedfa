"""The small files beside the weights that transformers reads: model, processor, tokenizer.

Written for transformers 4.57 and 5.23; where these read different keys, both are written.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from paligemma_jax.checkpoints import huggingface_names, huggingface_tokenizer
from paligemma_jax.models.paligemma import variants

IMAGE_TOKEN = "<image>"
BILINEAR = 2  # as PIL numbers it; PIL's resizing always smooths before it shrinks, as ours does
# Longest sequence, unless the image alone needs more: 4096 image tokens at 896 px, and text.
MAX_LENGTH = 8192


def config(model: variants.PaliGemma, *, dtype: Any) -> dict[str, Any]:
    """Returns config.json.

    Args:
      model: dimensions and switches; a soft-cap of 0 becomes null.
      dtype: what transformers loads the weights as.

    Raises:
      ValueError: what transformers' Gemma 1 cannot express: a soft-cap, another query scale.
    """
    rows = model.vocab_size + huggingface_names.EXTRA_ROWS
    name = jnp.dtype(dtype).name
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "image_token_index": model.vocab_size,
        "vocab_size": rows,
        "hidden_size": model.llm.width,
        "projection_dim": model.llm.width,
        "tie_word_embeddings": True,
        "torch_dtype": name,  # 4.x
        "dtype": name,  # 5.x
        "text_config": _text_config(model, rows) | {"torch_dtype": name},
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": model.img.width,
            "num_hidden_layers": model.img.depth,
            "intermediate_size": model.img.mlp_dim,
            "num_attention_heads": model.img.num_heads,
            "patch_size": model.img.patch_size,
            "image_size": model.res,
            "num_channels": 3,
            "num_image_tokens": model.num_image_tokens,
            "projection_dim": model.llm.width,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "attention_dropout": 0.0,
            "vision_use_head": False,
            "torch_dtype": name,
        },
    }


def _text_config(model: variants.PaliGemma, rows: int) -> dict[str, Any]:
    llm, activation = model.llm, "gelu_pytorch_tanh"
    longest = max(MAX_LENGTH, model.num_image_tokens + MAX_LENGTH // 2)
    shared = {
        "vocab_size": rows,
        "hidden_size": llm.width,
        "num_hidden_layers": llm.depth,
        "intermediate_size": llm.mlp_dim,
        "num_attention_heads": llm.num_heads,
        "num_key_value_heads": llm.num_kv_heads,
        "head_dim": llm.head_dim,
        "num_image_tokens": model.num_image_tokens,
        "max_position_embeddings": longest,
        "hidden_act": activation,
        "hidden_activation": activation,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    scalar = llm.head_dim if llm.query_scale == "head_dim" else llm.width // llm.num_heads
    if llm.post_norms:
        return shared | {
            "model_type": "gemma2",
            "query_pre_attn_scalar": scalar,
            "attn_logit_softcapping": llm.attn_logits_softcap or None,
            "final_logit_softcapping": llm.final_logits_softcap or None,
            # PaliGemma has no sliding window: no layer uses one, and where a version looks at the
            # number only, it is longer than any sequence.
            "sliding_window": longest,
            "layer_types": ["full_attention"] * llm.depth,
        }
    if llm.attn_logits_softcap or llm.final_logits_softcap or scalar != llm.head_dim:
        raise ValueError(
            "transformers' Gemma 1 (no norms behind attention and MLP) has no soft-caps and scales "
            f"queries by head_dim; this model has attn_logits_softcap={llm.attn_logits_softcap}, "
            f"final_logits_softcap={llm.final_logits_softcap}, query_scale={llm.query_scale}"
        )
    return shared | {"model_type": "gemma"}


def generation_config(model: variants.PaliGemma) -> dict[str, Any]:
    """Returns generation_config.json: greedy, and never one of the extra rows of the embedding."""
    extra = range(model.vocab_size, model.vocab_size + huggingface_names.EXTRA_ROWS)
    return {
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "do_sample": False,
        "suppress_tokens": list(extra),
    }


def preprocessor_config(model: variants.PaliGemma) -> dict[str, Any]:
    """Returns preprocessor_config.json: images resized as in training (bilinear), in -1..1."""
    return {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "PaliGemmaProcessor",
        "image_seq_length": model.num_image_tokens,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": model.res, "width": model.res},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def processor_config(model: variants.PaliGemma) -> dict[str, Any]:
    """Returns processor_config.json: which class joins images and text."""
    return {"processor_class": "PaliGemmaProcessor", "image_seq_length": model.num_image_tokens}


def special_tokens_map(control: Mapping[str, tuple[int, str]]) -> dict[str, Any]:
    """Returns special_tokens_map.json; `control` as of `tokenizer_config`."""
    named = {f"{name}_token": piece for name, (_, piece) in control.items()}
    return named | {"additional_special_tokens": [IMAGE_TOKEN]}


def tokenizer_config(
    control: Mapping[str, tuple[int, str]], plain: Mapping[int, str], *, num_pieces: int
) -> dict[str, Any]:
    """Returns tokenizer_config.json, for a tokenizer.model beside it.

    Args:
      control: "bos", "eos", "pad", "unk" -> (id, piece).
      plain: id -> piece of `<loc>` and `<seg>`, which must never be split.
      num_pieces: of the tokenizer; `<image>` gets the id behind them.
    """
    added = added_tokens(control, plain, num_pieces=num_pieces)
    return {
        "tokenizer_class": "GemmaTokenizer",
        "processor_class": "PaliGemmaProcessor",
        **{f"{name}_token": piece for name, (_, piece) in control.items()},
        "mask_token": None,
        "added_tokens_decoder": {str(number): token for number, token in added.items()},
        "additional_special_tokens": [IMAGE_TOKEN],
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "spaces_between_special_tokens": False,
        "padding_side": "left",
        "model_max_length": MAX_LENGTH,
    }


def added_tokens(
    control: Mapping[str, tuple[int, str]], plain: Mapping[int, str], *, num_pieces: int
) -> dict[int, dict[str, Any]]:
    """Returns id -> what transformers knows of a piece that is never split, ids ascending.

    Args: as of `tokenizer_config`.
    """
    special = {**dict(control.values()), num_pieces: IMAGE_TOKEN}
    added = {number: _added_token(piece, is_special=False) for number, piece in plain.items()}
    added |= {number: _added_token(piece, is_special=True) for number, piece in special.items()}
    return dict(sorted(added.items()))


def _added_token(piece: str, *, is_special: bool) -> dict[str, Any]:
    # Runs of spaces are searched for in a text whose spaces are written as in the pieces.
    normalized = huggingface_tokenizer.SPACE in piece
    flags = {"lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}
    return {"content": piece, **flags, "special": is_special}
