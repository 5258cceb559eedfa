"""Presets: complete, locked settings to start a config from, and the check of a finished one."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from paligemma_jax.params import released_models
from paligemma_jax.settings import eval_keys, keys, source_keys, spec

# Short forms of lora.targets. The projections of the language model; and what transformers and PEFT
# adapt when told q_proj, k_proj, ..., down_proj: SigLIP has layers of the first three names.
LORA_TARGETS = {
    "llm": "llm/layers/.*",
    "hf_compat": "llm/layers/.*|img/.*/(query|key|value)/kernel",
}
_SHORT_FORMS = ", ".join(f"'{name}'" for name in LORA_TARGETS)
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
# What configs/digits.py was found to learn with.
FROM_SCRATCH = {"optax_name": "scale_by_adam", "lr": 1e-3, "optax.b2": 0.99, "grad_clip_norm": 1.0}


def defaults(stored: Mapping[str, Any] | None = None) -> ml_collections.ConfigDict:
    """Returns all keys with their defaults, locked: a misspelled key is an error.

    Args:
      stored: nested values that replace the defaults, as a run's config.json holds them.
    """
    # Types are checked by `validate`: some keys may hold one of several (a schedule, or rules).
    config = ml_collections.ConfigDict(type_safe=False)
    for key in keys.KEYS:
        *folders, leaf = key.name.split(".")
        node = config
        for folder in folders:
            if folder not in node:
                node[folder] = ml_collections.ConfigDict(type_safe=False)
            node = node[folder]
        node[leaf] = _fresh(key.default)
    _overlay(config, stored or {})
    config.lock()
    # What may be in these is checked elsewhere: eval_keys, source_keys, the optimizer's own keys.
    for node in (config.evals, config.input.mixture, config.optax, config.schedule):
        if isinstance(node, ml_collections.ConfigDict):
            node.unlock()
    return config


def finetune(
    model: str, res: int = 224, text_len: int = 128, method: str = "full"
) -> ml_collections.ConfigDict:
    """Returns the settings of a fine-tuning run of a released model from its `pt` weights.

    Args:
      model: "paligemma1-3b", "paligemma2-3b", "paligemma2-10b" or "paligemma2-28b".
      res: 224, 448 or 896.
      text_len: tokens of prefix and suffix together.
      method: what is trained, with a fitting optimizer and learning rate: "full", "attention" (of
        the language model), "lora", or "qlora" (on an NF4 base).
    """
    for what, name, table in (
        ("model", model, released_models.MODELS),
        ("method", method, METHODS),
    ):
        if name not in table:
            hint = spec.did_you_mean(name, table)
            raise ValueError(f"{what} '{name}' is not known. {hint}Known: {', '.join(table)}")
    config = defaults()
    config.update_from_flattened_dict(METHODS[method])
    released = released_models.MODELS[model]
    config.model.img.variant, config.model.llm.variant = released.img, released.llm
    config.model_init = released.init.format(res=res)
    config.res = res
    config.input.text_len = text_len
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


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises a ValueError that lists every key that is unknown, of a wrong type or value."""
    table = {key.name: key for key in keys.KEYS}
    problems = []
    for name, value in _leaves(config, table):
        if name not in table:
            problems.append(f"config key '{name}' is not known. {spec.did_you_mean(name, table)}")
        else:
            problems += _check(table[name], value)
    problems += [
        f"config key '{name}' is missing" for name in table if not _has(config, name.split("."))
    ]
    for group, node, known in (
        ("evals", config.get("evals"), eval_keys.KEYS),
        ("input.mixture", config.input.get("mixture"), source_keys.KEYS),
    ):
        for name in node if isinstance(node, ml_collections.ConfigDict) else ():
            problems += _check_named(group, name, node[name], known)
    if config.input.get("mixture") and config.input.data.get("fname"):
        problems.append("input.mixture and input.data.fname are set: keep one")
    totals = [k for k in ("total_steps", "total_epochs", "total_examples") if config.get(k)]
    if len(totals) > 1:
        problems.append(f"{' and '.join(totals)} are set: keep one")
    if config.get("trainable") is not None and not isinstance(
        config.schedule, Mapping | ml_collections.ConfigDict
    ):
        problems.append("trainable is the short form of schedule rules: set one of the two")
    problems += _check_lora(config, table)
    if problems:
        raise ValueError("config:\n  " + "\n  ".join(problems))


def eval_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns one evaluation's settings with the defaults of eval_keys filled in."""
    return {key.name: settings.get(key.name, key.default) for key in eval_keys.KEYS}


def source_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of one source of a mixture, the defaults of source_keys filled in."""
    return {key.name: settings.get(key.name, key.default) for key in source_keys.KEYS}


def check_eval(eval_name: str, settings: Mapping[str, Any]) -> None:
    """Raises a ValueError that lists what is wrong with one evaluation's settings."""
    if problems := _check_named("evals", eval_name, settings, eval_keys.KEYS):
        raise ValueError("\n".join(problems))


def _check_named(group: str, name: str, settings: Any, known: Sequence[spec.Key]) -> list[str]:
    table = {key.name: key for key in known}
    where = f"{group}.{name}"
    if not name or set(name) & set("/\\. "):
        return [f"{where}: a name of files: letters, digits, '-' and '_'"]
    if not isinstance(settings, Mapping | ml_collections.ConfigDict):
        return [f"{where}: expected dict(fname=...), found {settings!r}"]
    problems = [
        f"config key '{where}.{unknown}' is not known. "
        + spec.did_you_mean(unknown, table, prefix=f"{where}.")
        for unknown in settings
        if unknown not in table
    ]
    for key in known:
        problems += _check(key, settings.get(key.name, key.default), where=f"{where}.")
    return problems


def _check_lora(config: ml_collections.ConfigDict, table: Mapping[str, spec.Key]) -> list[str]:
    """Returns what is wrong with `lora`: settings that nothing would use, an unknown short form."""
    if not _has(config, ["lora", "targets"]):
        return []
    targets = config.lora.targets
    is_word = isinstance(targets, str) and re.fullmatch(r"[\w-]+", targets)
    if is_word and targets not in LORA_TARGETS:
        # Names of parameters have a "/": a word alone matches none.
        return [
            f"lora.targets='{targets}': expected {_SHORT_FORMS} or a regex on full names, as "
            f"'llm/layers/attn/.*'. {spec.did_you_mean(targets, LORA_TARGETS)}"
        ]
    if targets is not None:
        return []
    return [
        f"lora.{name}={value!r} has no effect without lora.targets: {_SHORT_FORMS} or a regex"
        for name, value in config.lora.items()
        if f"lora.{name}" in table and value != table[f"lora.{name}"].default
    ]


def _check(key: spec.Key, value: Any, where: str = "") -> list[str]:
    name = where + key.name
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    right_type = isinstance(value, key.types) and (not isinstance(value, bool) or bool in key.types)
    if not right_type:
        expected, found = _type_names(key.types), type(value).__name__
        return [f"{name}={value!r}: expected {expected}, found {found}"]
    if isinstance(value, list | tuple) and key.rule_types:
        return [problem for rule in value if (problem := _check_rule(key, rule, name))]
    if key.choices and value not in key.choices:
        return [_not_chosen(key, value, name)]
    if key.least is not None and isinstance(value, int | float) and not value >= key.least:
        return [f"{name}={value!r}: expected {key.least} or more"]
    return []


def _not_chosen(key: spec.Key, value: Any, name: str) -> str:
    hint = spec.did_you_mean(str(value), map(str, key.choices))
    return f"{name}={value!r}: expected one of {key.choices}. {hint}"


def _check_rule(key: spec.Key, rule: Any, name: str) -> str | None:
    is_pair = isinstance(rule, list | tuple) and len(rule) == 2 and isinstance(rule[0], str)
    value = rule[1] if is_pair else None
    is_mapping = isinstance(value, ml_collections.ConfigDict)
    right_type = isinstance({} if is_mapping else value, key.rule_types)
    if is_pair and key.choices and value not in key.choices:
        return _not_chosen(key, value, f"{name} {rule[0]!r}")
    if is_pair and right_type and not isinstance(value, bool):
        return None
    return f"{name}: expected pairs ('text', {_type_names(key.rule_types)}), found {rule!r}"


def _type_names(types: tuple[type, ...]) -> str:
    return " or ".join("None" if t is type(None) else t.__name__ for t in types)


def _leaves(node: ml_collections.ConfigDict, table: Mapping[str, spec.Key], prefix: str = ""):
    for name in node:
        path, value = f"{prefix}{name}", node[name]
        is_folder = any(known.startswith(f"{path}.") for known in table)
        if is_folder and isinstance(value, ml_collections.ConfigDict):
            yield from _leaves(value, table, f"{path}.")
        else:
            yield path, value


def _overlay(node: ml_collections.ConfigDict, stored: Mapping[str, Any], prefix: str = "") -> None:
    for name, value in stored.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and any(k.name.startswith(f"{path}.") for k in keys.KEYS):
            _overlay(node[name], value, f"{path}.")
        else:
            node[name] = _fresh(value)


def _has(node: Any, folders: list[str]) -> bool:
    for folder in folders:
        if not isinstance(node, ml_collections.ConfigDict) or folder not in node:
            return False
        node = node[folder]
    return True


def _fresh(value: Any) -> Any:
    if isinstance(value, dict):
        return ml_collections.ConfigDict(value, type_safe=False)
    return list(value) if isinstance(value, list) else value
