"""Presets: complete, locked settings to start a config from."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from paligemma_jax.params import released_models
from paligemma_jax.settings import keys, schema

# What to train, and a rate that suits it: a recipe's own goes over it.
METHODS: dict[str, dict[str, Any]] = {
    # arXiv:2407.07726, 3.2.4
    "full": {"optax_name": "scale_by_adam", "lr": 1e-5},
    # big_vision's PaliGemma 2 Colab
    "attention": {"trainable": "llm/layers/attn/.*", "optax_name": "sgd", "lr": 0.03},
    # Factors need about ten times the rate of full fine-tuning (arXiv:2106.09685, D.4).
    "lora": {"lora.targets": "llm", "optax_name": "scale_by_adam", "lr": 1e-4},
}
# arXiv:2305.14314: the same on a base of 4 bits.
METHODS["qlora"] = {**METHODS["lora"], "quantize": "nf4"}
MOONDREAM_METHODS = ("full", "lora", "qlora")
# Release -> vision tower.
MOONDREAM_RELEASES = {
    "2024-04-02": "So400m/14",
    "2024-05-20": "So400m/14_crops",
    "2024-08-26": "So400m/14_crops",
}
# What configs/digits.py learns with.
FROM_SCRATCH = {"optax_name": "scale_by_adam", "lr": 1e-3, "optax.b2": 0.99, "grad_clip_norm": 1.0}


def defaults(stored: Mapping[str, Any] | None = None) -> ml_collections.ConfigDict:
    """Returns all keys with their defaults, locked: a misspelled key is an error.

    Args:
      stored: nested values that replace the defaults, as a run's config.json holds them.

    Raises:
      ValueError: a key with a dot.
    """
    # Types are checked by `validate`: some keys may hold one of several (a schedule, or rules).
    config = ml_collections.ConfigDict(type_safe=False)
    for key in schema.KEYS:
        *folders, leaf = key.name.split(".")
        node = config
        for folder in folders:
            if folder not in node:
                node[folder] = ml_collections.ConfigDict(type_safe=False)
            node = node[folder]
        node[leaf] = _fresh(key.default)
    _overlay(config, stored or {})
    config.lock()
    # Names and keys that the schema does not list: of evaluations, sources, an optimizer.
    nodes = [config.evals, config.optax, config.schedule]
    if isinstance(config.input, ml_collections.ConfigDict):
        nodes.append(config.input.mixture)
    for node in nodes:
        if isinstance(node, ml_collections.ConfigDict):
            node.unlock()
    return config


def finetune(
    model: str, res: int = 224, text_len: int = 128, method: str = "full"
) -> ml_collections.ConfigDict:
    """Returns the settings of a fine-tuning run of a released model from its `pt` weights.

    It computes, and remembers while decoding, in what the device has units for.

    Args:
      model: "paligemma1-3b", "paligemma2-3b", "paligemma2-10b" or "paligemma2-28b"; or "tiny_base",
        the small one in the package.
      res: 224, 448 or 896; of "tiny_base" 112 or 224.
      text_len: tokens of prefix and suffix together.
      method: what is trained, with a fitting optimizer and learning rate: "full", "attention" (of
        the language model), "lora", or "qlora" (on an NF4 base).
    """
    for what, name, table in (
        ("model", model, {**released_models.MODELS, **released_models.SHIPPED}),
        ("method", method, METHODS),
    ):
        if name not in table:
            hint = keys.did_you_mean(name, table)
            raise ValueError(f"{what} '{name}' is not known. {hint}Known: {', '.join(table)}")
    config = defaults()
    config.update_from_flattened_dict(METHODS[method])
    config.compute_dtype = config.cache_dtype = "auto"
    config.res = res
    config.input.text_len = text_len
    if model in released_models.SHIPPED:
        return _start_from(config, released_models.SHIPPED[model])
    released = released_models.MODELS[model]
    config.model.img.variant, config.model.llm.variant = released.img, released.llm
    config.model_init = released.init.format(res=res)
    return config


def tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the settings changed to start from the small base in the package.

    What trains, how and on what stays: a rehearsal of the run, on any machine. Images are of the
    nearest side that the base has; texts get twice the tokens, as its few pieces spell them longer.
    """
    base = released_models.SHIPPED["tiny_base"]
    config.res = min(base.resolutions, key=lambda side: abs(side - config.res))
    config.input.text_len *= 2
    return _start_from(config, base)


def _start_from(
    config: ml_collections.ConfigDict, base: released_models.ShippedModel
) -> ml_collections.ConfigDict:
    config.model.img.variant, config.model.llm.variant = base.img, base.llm
    config.model.img.dims = config.model.llm.dims = config.model.llm.vocab_size = None
    config.model.img.resample_posemb = config.res != base.resolutions[0]
    config.model_init, config.tokenizer = base.init, base.tokenizer
    config.mask_codec = base.mask_codec
    return config


def from_scratch(
    *, res: int, text_len: int, img: Mapping[str, int], llm: Mapping[str, int]
) -> ml_collections.ConfigDict:
    """Returns the settings of a small model trained from random weights (demo, digits, tests).

    They bring an optimizer and a rate that models of about a million parameters learn with.

    Args:
      res: side of the image in pixels.
      text_len: tokens of prefix and suffix together.
      img: dimensions of the vision tower that replace the tiny variant's.
      llm: dimensions of the language model that replace the tiny variant's.
    """
    config = defaults()
    config.update_from_flattened_dict(FROM_SCRATCH)
    config.res = res
    config.input.text_len = text_len
    config.model.img.variant, config.model.img.dims = "tiny/14", dict(img)
    config.model.llm.variant, config.model.llm.dims = "tiny", dict(llm)
    config.model.llm.vocab_size = None
    return config


def finetune_other(
    *,
    res: int,
    text_len: int,
    img: Mapping[str, Any],
    llm: Mapping[str, Any],
    vocab_size: int,
    method: str = "full",
) -> ml_collections.ConfigDict:
    """Returns the settings of a fine-tuning run of weights that are none of the released models'.

    Args:
      res, text_len, method: as in `finetune`; set `model_init`.
      img, llm: all dimensions of the towers.
      vocab_size: rows of the embedding.
    """
    config = defaults()
    config.update_from_flattened_dict(METHODS[method])
    config.model.img.variant, config.model.img.dims = "tiny/14", dict(img)
    config.model.llm.variant, config.model.llm.dims = "tiny", dict(llm)
    config.model.llm.vocab_size = vocab_size
    config.compute_dtype = config.cache_dtype = "auto"
    config.res, config.input.text_len = res, text_len
    return config


def finetune_moondream(
    *,
    init: str,
    tokenizer: str,
    text_len: int = 128,
    method: str = "full",
    release: str = "2024-04-02",
) -> ml_collections.ConfigDict:
    """Returns the settings of a fine-tuning run of Moondream2 at 378 px.

    Args:
      init: the npz file that `convert` makes of the authors' model.safetensors.
      tokenizer: their tokenizer.json.
      text_len: tokens of question and answer together.
      method: "full", "lora" or "qlora", as in `finetune`.
      release: "2024-04-02", or one that also sees large images in up to four squares of 378 px:
        "2024-05-20", "2024-08-26".
    """
    if release not in MOONDREAM_RELEASES:
        raise ValueError(f"release '{release}': expected one of {list(MOONDREAM_RELEASES)}")
    if method not in MOONDREAM_METHODS:
        raise ValueError(f"method '{method}': expected one of {list(MOONDREAM_METHODS)}")
    config = defaults()
    config.update_from_flattened_dict(METHODS[method])
    config.model.family = "moondream"
    config.model.img.variant = MOONDREAM_RELEASES[release]
    config.model.llm.variant = "phi_1_5"
    config.model.llm.vocab_size = 51_200
    config.model_init, config.tokenizer = init, tokenizer
    config.compute_dtype = config.cache_dtype = "auto"
    config.res, config.input.text_len = 378, text_len
    return config


def _overlay(node: ml_collections.ConfigDict, stored: Mapping[str, Any], prefix: str = "") -> None:
    for name, value in stored.items():
        path = f"{prefix}{name}"
        if "." in name:
            raise ValueError(f"config key '{path}': expected objects within objects, not a dot")
        if isinstance(value, Mapping) and any(k.name.startswith(f"{path}.") for k in schema.KEYS):
            _overlay(node[name], value, f"{path}.")
        else:
            node[name] = _fresh(value)


def _fresh(value: Any) -> Any:
    if isinstance(value, dict):
        return ml_collections.ConfigDict(value, type_safe=False)
    return list(value) if isinstance(value, list | tuple) else value
