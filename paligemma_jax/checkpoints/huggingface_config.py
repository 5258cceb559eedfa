"""config.json of transformers' PaliGemma, read: every key of it, against what the tensors say.

Read for what transformers 4.41 to 5.23 write. What a model of ours cannot express, or what would
make the same tensors another model, is refused by name.
"""

from collections.abc import Mapping
from typing import Any

from paligemma_jax.checkpoints import config_files, huggingface_names
from paligemma_jax.models.paligemma import variants

# What a config.json leaves out has these values: the defaults of transformers' classes.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {
        "hidden_size": 3072,
        "num_hidden_layers": 28,
        "intermediate_size": 24_576,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
    },
    "gemma2": {
        "hidden_size": 2304,
        "num_hidden_layers": 26,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "siglip_vision_model": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "patch_size": 16,
        "image_size": 224,
    },
}
# No model has more: a number that is larger was not meant, or not well.
MOST = {"num_hidden_layers": 1024, "image_size": 2**14, "vocab_size": 2**24}
MOST_OTHERS = 2**18
ACTIVATION = "gelu_pytorch_tanh"
REMEDY = "this would be another model, so nothing was converted. Give PaliGemma's own, unchanged"

# Settings of every configuration of transformers that only generation, training or loading reads.
WITHOUT_EFFECT = (
    *("architectures", "transformers_version", "_name_or_path", "name_or_path", "torch_dtype"),
    *("dtype", "tokenizer_class", "finetuning_task", "task_specific_params", "problem_type"),
    *("id2label", "label2id", "num_labels", "prefix", "use_cache", "cache_implementation"),
    *("_attn_implementation", "attn_implementation", "_attn_implementation_autoset"),
    *("_attn_implementation_internal", "_commit_hash", "return_dict", "use_return_dict"),
    *("output_hidden_states", "output_attentions", "output_scores", "return_dict_in_generate"),
    *("torchscript", "use_bfloat16", "tf_legacy_loss", "chunk_size_feed_forward"),
    *("tie_encoder_decoder", "remove_invalid_values", "is_composition", "is_decoder"),
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
    *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty"),
    *("length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
    *("num_return_sequences", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id"),
    *("suppress_tokens", "begin_suppress_tokens", "exponential_decay_length_penalty"),
    *("decoder_start_token_id", "sep_token_id", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("initializer_range", "attention_dropout", "unsloth_version", "unsloth_fixed"),
)
# The loss's own label; PaliGemma's projector is linear, and its width is that of the text.
TOP_WITHOUT_EFFECT = (*WITHOUT_EFFECT, "ignore_index", "hidden_size", "is_encoder_decoder")
# A position is never so late, and no layer has a window; image tokens are seen both ways always.
TEXT_WITHOUT_EFFECT = (
    *(*WITHOUT_EFFECT, "max_position_embeddings", "sliding_window", "sliding_window_size"),
    *("layer_types", "_sliding_window_pattern", "sliding_window_pattern"),
    "use_bidirectional_attention",
)
VISION_WITHOUT_EFFECT = (*WITHOUT_EFFECT, "projector_hidden_act", "vocab_size")
TOP_ALLOWED: dict[str, tuple[Any, ...]] = {"quantization_config": (None,)}
TEXT_ALLOWED: dict[str, tuple[Any, ...]] = {
    "hidden_act": (ACTIVATION,),
    "hidden_activation": (ACTIVATION,),
    "rms_norm_eps": (1e-6,),
    "rope_theta": (10_000,),
    "rope_scaling": (None,),
    "rope_parameters": ({"rope_theta": 10_000, "rope_type": "default"},),
    "attention_bias": (False,),
    "quantization_config": (None,),
}
VISION_ALLOWED: dict[str, tuple[Any, ...]] = {
    "hidden_act": (ACTIVATION,),
    "layer_norm_eps": (1e-6,),
    "num_channels": (3,),
    "vision_use_head": (False,),
    "quantization_config": (None,),
}
TOP_READ = (
    *("model_type", "text_config", "vision_config", "vocab_size", "_vocab_size"),
    *("projection_dim", "image_token_index", "image_token_id", "tie_word_embeddings"),
)


def model(stored: Mapping[str, Any], *, where: str) -> variants.PaliGemma:
    """Returns the model that a config.json describes.

    Args:
      stored: its content.
      where: its path, for messages.

    Raises:
      ValueError: another model, settings that PaliGemma does not have, or facts of the file that
        contradict each other.
    """
    if stored.get("model_type") != "paligemma":
        raise ValueError(
            f"{where}: model_type is {stored.get('model_type')!r:.60}, expected 'paligemma'"
        )
    _check_closed(stored, TOP_READ, TOP_WITHOUT_EFFECT, TOP_ALLOWED, where)
    text = _with_defaults(stored, "text_config", ("gemma", "gemma2"), where)
    vision = _with_defaults(stored, "vision_config", ("siglip_vision_model",), where)
    read_too = ("model_type", "num_image_tokens", "projection_dim")
    text_read = (*DEFAULTS[text["model_type"]], *read_too, "vocab_size", "tie_word_embeddings")
    in_text, in_vision = f"{where}: text_config", f"{where}: vision_config"
    _check_closed(text, text_read, TEXT_WITHOUT_EFFECT, TEXT_ALLOWED, in_text)
    vision_read = (*DEFAULTS["siglip_vision_model"], *read_too, "tie_word_embeddings")
    _check_closed(vision, vision_read, VISION_WITHOUT_EFFECT, VISION_ALLOWED, in_vision)
    rows = _rows(stored, text, where)
    try:
        img, llm = _vit(vision, in_vision), _gemma(text, in_text)
        paligemma = variants.PaliGemma(
            img, llm, _whole(vision, "image_size", in_vision), rows - huggingface_names.EXTRA_ROWS
        )
    except ValueError as error:
        message = str(error)
        raise ValueError(message if message.startswith(where) else f"{where}: {message}") from error
    _compare(stored, text, vision, paligemma, where)
    return paligemma


def is_tied(stored: Mapping[str, Any]) -> bool:
    """Whether a config.json says that the head is the embedding, and may so be left out."""
    places = stored, stored.get("text_config") or {}
    return not any(place.get("tie_word_embeddings") is False for place in places)


def _check_closed(
    settings: Mapping[str, Any],
    read: tuple[str, ...],
    without_effect: tuple[str, ...],
    allowed: Mapping[str, tuple[Any, ...]],
    where: str,
) -> None:
    config_files.check_closed(
        settings,
        read_elsewhere=read,
        without_effect=without_effect,
        allowed=allowed,
        where=where,
        remedy=REMEDY,
    )


def _rows(stored: Mapping[str, Any], text: Mapping[str, Any], where: str) -> int:
    """Returns how many rows the embedding has, those behind the pieces included."""
    for place, key in ((text, "vocab_size"), (stored, "vocab_size"), (stored, "_vocab_size")):
        if place.get(key):
            rows = _whole(place, key, where)
            break
    else:
        raise ValueError(f"{where}: no vocab_size; expected it in text_config")
    if rows <= huggingface_names.EXTRA_ROWS:
        raise ValueError(
            f"{where}: vocab_size is {rows}, expected more: {huggingface_names.EXTRA_ROWS} rows of "
            f"the embedding stand behind the tokenizer's pieces"
        )
    return rows


def _vit(vision: Mapping[str, Any], where: str) -> variants.Vit:
    return variants.Vit(
        width=_whole(vision, "hidden_size", where),
        depth=_whole(vision, "num_hidden_layers", where),
        mlp_dim=_whole(vision, "intermediate_size", where),
        num_heads=_whole(vision, "num_attention_heads", where),
        patch_size=_whole(vision, "patch_size", where),
    )


def _gemma(text: Mapping[str, Any], where: str) -> variants.Gemma:
    is_gemma2 = text["model_type"] == "gemma2"
    caps = [
        config_files.number(text, f"{which}_logit_softcapping", where, default=0.0)
        for which in (("attn", "final") if is_gemma2 else ())
    ]
    llm = variants.Gemma(
        width=_whole(text, "hidden_size", where),
        depth=_whole(text, "num_hidden_layers", where),
        mlp_dim=_whole(text, "intermediate_size", where),
        num_heads=_whole(text, "num_attention_heads", where),
        num_kv_heads=_whole(text, "num_key_value_heads", where),
        head_dim=_whole(text, "head_dim", where),
        post_norms=is_gemma2,
        query_scale=_query_scale(text, where) if is_gemma2 else "head_dim",
        attn_logits_softcap=caps[0] if caps else 0.0,
        final_logits_softcap=caps[1] if caps else 0.0,
    )
    return llm


def _compare(
    stored: Mapping[str, Any],
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    paligemma: variants.PaliGemma,
    where: str,
) -> None:
    """Raises a ValueError where a config.json says a thing twice, and not the same."""
    rows = paligemma.vocab_size + huggingface_names.EXTRA_ROWS
    images = {key: stored.get(key) for key in ("image_token_index", "image_token_id")}
    config_files.compare(
        images,
        paligemma.vocab_size,
        f"<image> is the first of {huggingface_names.EXTRA_ROWS} rows behind the pieces, of {rows} "
        f"in all (vocab_size). Was the embedding resized? Give the model without the new tokens",
        where,
    )
    sizes = {"vocab_size": stored.get("vocab_size") or rows}
    if sizes["vocab_size"] not in (rows, paligemma.vocab_size):
        config_files.compare(sizes, rows, "the same as text_config.vocab_size", where)
    grid = "the patches of image_size by patch_size. Set it right, or give the right image_size"
    for name, place in (("text_config", text), ("vision_config", vision)):
        tokens = {f"{name}.num_image_tokens": place.get("num_image_tokens")}
        config_files.compare(tokens, paligemma.num_image_tokens, grid, where)
    widths = {
        "projection_dim": stored.get("projection_dim"),
        "vision_config.projection_dim": vision.get("projection_dim"),
    }
    what = "the width of the text model (text_config.hidden_size). Set both right"
    config_files.compare(widths, paligemma.llm.width, what, where)


def _with_defaults(
    stored: Mapping[str, Any], key: str, known: tuple[str, ...], where: str
) -> dict[str, Any]:
    given = config_files.section(stored, key, where)
    kind = given.get("model_type", known[0] if len(known) == 1 else None)
    if kind not in known:
        raise ValueError(
            f"{where}: {key}.model_type is {kind!r:.60}, expected {' or '.join(known)}"
        )
    defaults = DEFAULTS[kind]
    # A null is what transformers writes for: the default, but for a soft-cap, which it turns off.
    null = {name for name, value in given.items() if value is None and "softcap" not in name}
    return {**defaults, "model_type": kind, **{k: v for k, v in given.items() if k not in null}}


def _whole(settings: Mapping[str, Any], key: str, where: str) -> int:
    return config_files.whole(settings, key, where, most=MOST.get(key, MOST_OTHERS))


def _query_scale(text: Mapping[str, Any], where: str) -> Any:
    scalar = config_files.number(text, "query_pre_attn_scalar", where, default=0.0)
    per_head = text["hidden_size"] / text["num_attention_heads"]
    if scalar == text["head_dim"]:
        return "head_dim"
    if scalar == per_head:
        return "width_per_head"
    raise ValueError(
        f"{where}: query_pre_attn_scalar is {scalar:g}, expected head_dim ({text['head_dim']}) or "
        f"hidden_size / num_attention_heads ({per_head:g})"
    )
