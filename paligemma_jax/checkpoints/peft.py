"""LoRA adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors.

Format: https://huggingface.co/docs/peft/developer_guides/checkpoint. Tensors are named as modules
are in memory; `write` uses the names of transformers 5, `read` understands all that
`huggingface_names.hub_name` does.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from paligemma_jax.checkpoints import config_files, huggingface_names, tensor_files
from paligemma_jax.params import lora as lora_lib
from paligemma_jax.params import names

Pieces = Callable[..., list[huggingface_names.Piece]]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# What `write` writes of other kinds of adapters: that this is none.
PLAIN: dict[str, Any] = {
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layer_replication": None,
    "lora_bias": False,
    "trainable_token_indices": None,
    "target_parameters": None,
}
# Settings of LoraConfig in PEFT 0.17 to 0.21. Whatever is not here must be neutral.
READ = (
    *("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora"),
    *("target_modules", "exclude_modules", "layers_to_transform"),
    *("rank_pattern", "alpha_pattern"),
)
# Where the adapter came from, and what acts while it is made or with other settings only.
WITHOUT_EFFECT = (
    *("task_type", "inference_mode", "auto_mapping", "base_model_name_or_path", "revision"),
    *("peft_version", "layers_pattern", "megatron_core", "qalora_group_size", "eva_config"),
    *("ensure_weight_tying", "runtime_config"),
)
# PiSSA, OLoRA, LoftQ, CorDA and LoRA-GA change the base too, so their factors alone mean nothing;
# these begin with factors of their own, and leave the base as it is.
ALLOWED: dict[str, tuple[Any, ...]] = {
    **{key: (plain,) for key, plain in PLAIN.items() if key not in READ},
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}
REMEDY = (
    "only plain LoRA is understood. Merge it with PEFT first, or (an initialization that changes "
    "the base) save it with path_initial_model_for_weight_conversion"
)
MAX_RANK = 2**16
# Of the regexes that ranks and alphas are given by, those that are names, or the ends of names.
NAME_PATTERN = re.compile(r"\^?[\w.-]+")
MAX_LINES = 5


def is_folder(path: pathlib.Path) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (path / CONFIG).exists()


def read(
    folder: pathlib.Path,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    pieces: Pieces = huggingface_names.pieces,
) -> tuple[lora_lib.Lora, dict[str, np.ndarray]]:
    """Returns (settings, our factors in float32) of an adapter.

    Of ranks by pattern, all become the largest: factors of a smaller one are filled up with zeros,
    which never learn. Alphas by pattern go into B. What the adapter adds to a weight is the same.

    Where several weights are one array of ours and only some have factors (PEFT's usual q_proj and
    v_proj), the others' are zero: these change nothing, and never learn.

    Args:
      folder: of the adapter.
      shapes: of the base model's parameters.
      pieces: of the base model's family.

    Raises:
      ValueError: not a plain LoRA, or tensors that are missing, foreign or misshapen, all listed.
    """
    settings = config_files.read(folder / CONFIG, "it says how the adapter acts")
    lora = _lora(settings, str(folder / CONFIG))
    stored = tensor_files.read_whole(folder / WEIGHTS)
    _check_places(settings, stored, folder)
    layers = {piece.theirs: piece for piece in pieces(shapes) if huggingface_names.is_linear(piece)}
    factors_of, wrong = _collect(stored, layers)
    modules = {linear_layer(key)[0]: _module(key) for key in stored}
    own = {theirs: _own(settings, modules[theirs], lora, folder) for theirs in factors_of}
    for theirs, pair in factors_of.items():
        outputs, inputs = layers[theirs].shape
        expected = {"A": (own[theirs].rank, inputs), "B": (outputs, own[theirs].rank)}
        sizes = {which: tensor.shape for which, tensor in pair.items()}
        if sizes != expected:
            wrong.append(f"{theirs}: lora_A and lora_B are {sizes}, expected {expected}")
    if wrong or not factors_of:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit the base model:\n  " + "\n  ".join(wrong or ["empty"])
        )
    lora = _common(lora, own.values())
    factors: dict[str, np.ndarray] = {}
    for theirs, pair in factors_of.items():
        piece = layers[theirs]
        parts = huggingface_names.factors_to_ours(piece, *_as_common(pair, own[theirs], lora))
        for which, part in zip(names.FACTORS, parts, strict=True):
            stacked = shapes[piece.ours].shape[: len(piece.index)]
            name = names.factor(piece.ours, which)
            whole = factors.setdefault(name, np.zeros((*stacked, *part.shape), np.float32))
            whole[piece.index] = part
    targets = "|".join(lora_lib.pairs(factors))
    return dataclasses.replace(lora, targets=targets), dict(sorted(factors.items()))


def _collect(
    stored: Mapping[str, np.ndarray], layers: Mapping[str, Any]
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """Returns ({weight's name on the Hub: its "A" and "B"}, what is wrong with tensors)."""
    factors_of: dict[str, dict[str, np.ndarray]] = {}
    foreign, twice = [], []
    for key, tensor in stored.items():
        theirs, which = linear_layer(key)
        if theirs not in layers or which not in ("A", "B"):
            foreign.append(f"{key}: no such linear layer in the base model")
        elif which in factors_of.setdefault(theirs, {}):
            twice.append(f"{key}: the same tensor is there under another name")
        else:
            factors_of[theirs][which] = tensor.astype(np.float32)
    return factors_of, foreign + twice


def _own(
    settings: Mapping[str, Any], module: str, lora: lora_lib.Lora, folder: pathlib.Path
) -> lora_lib.Lora:
    """Returns how the factors of one module act: with the first pattern that matches its name.

    As `peft.utils.other.get_pattern_key` matches.
    """
    where, values = str(folder / CONFIG), {}
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = config_files.section(settings, key, where)
        if unknown := [one for one in patterns if not NAME_PATTERN.fullmatch(one)]:
            raise ValueError(
                f"{where}: {key} has the regex {unknown[0]!r:.60}, expected names of modules or "
                f"their ends: {REMEDY}"
            )
        hit = next((one for one in patterns if re.match(rf"(.*\.)?({one})$", module)), None)
        values[key] = {} if hit is None else {key: patterns[hit]}
    place = f"{where}: {module}"
    rank, alpha = (
        lora.rank,
        config_files.number(values["alpha_pattern"], "alpha_pattern", place, default=lora.alpha),
    )
    if values["rank_pattern"]:
        rank = config_files.whole(values["rank_pattern"], "rank_pattern", place, most=MAX_RANK)
    return dataclasses.replace(lora, rank=rank, alpha=alpha)


def _common(lora: lora_lib.Lora, own: Iterable[lora_lib.Lora]) -> lora_lib.Lora:
    """Returns how factors act that all have the largest rank."""
    own = list(own)
    alpha = lora.alpha or max(one.alpha for one in own)
    return dataclasses.replace(lora, rank=max(one.rank for one in own), alpha=alpha)


def _as_common(
    pair: Mapping[str, np.ndarray], own: lora_lib.Lora, common: lora_lib.Lora
) -> tuple[np.ndarray, np.ndarray]:
    """Returns A and B that add the same to a weight where they act as the common ones do."""
    more = common.rank - own.rank
    b = pair["B"] if own == common or not common.scale else pair["B"] * (own.scale / common.scale)
    return np.pad(pair["A"], ((0, more), (0, 0))), np.pad(b, ((0, 0), (0, more)))


def write(
    folder: pathlib.Path,
    factors: Mapping[str, np.ndarray],
    lora: lora_lib.Lora,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    *,
    base: str | None,
    pieces: Pieces = huggingface_names.pieces,
) -> None:
    """Writes an adapter that `PeftModel.from_pretrained(model, folder)` loads.

    Args:
      folder: exists.
      factors: ours, by name.
      lora: how they act.
      shapes: of the base model's parameters.
      base: name or folder of the base for transformers, if it is known.
      pieces: of the base model's family. Of another than PaliGemma modules in memory have the names
        that they have in its files, and are named one by one.
    """
    tensors, modules, names_of = {}, set(), []
    pairs, is_own = lora_lib.pairs(factors), pieces is huggingface_names.pieces
    whole = {**shapes, **factors}
    for name, layers in huggingface_names.pieces_with_factors(whole, pieces).items():
        for piece in layers:
            a, b = huggingface_names.factors_to_theirs(piece, *(factors[n] for n in pairs[name]))
            in_memory = _in_memory(piece.theirs) if is_own else piece.theirs
            module = in_memory.removesuffix(".weight")
            names_of.append(module)
            tensors[f"{PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a)
            tensors[f"{PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(b)
            tower, _, rest = module.removeprefix("model.").partition(".")
            modules.add(f".*{tower}\\..*{re.escape(re.sub(r'.*layers[.][0-9]+', '', rest))}")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if is_own else None,
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilized,
        "target_modules": "|".join(sorted(modules)) if is_own else sorted(names_of),
        "inference_mode": True,
        "init_lora_weights": True,
        **PLAIN,
    }
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    # save_file would leave the file to its owner alone; so it gets the mode that the others have.
    content = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (folder / WEIGHTS).write_bytes(content)


def _module(key: str) -> str:
    """Returns the name that a tensor's module has in the model that PEFT saw."""
    return key.removeprefix(PREFIX).partition(".lora_")[0]


def linear_layer(key: str) -> tuple[str, str]:
    """Returns (the weight's name on the Hub, "A" or "B") of a tensor of PEFT's."""
    module, _, which = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
    return huggingface_names.hub_name(f"{module}.weight"), which


def _lora(settings: Mapping[str, Any], where: str) -> lora_lib.Lora:
    """Returns how the factors act, `targets` aside. What is no plain LoRA is a ValueError."""
    if settings.get("peft_type") != "LORA":
        peft_type = settings.get("peft_type")
        raise ValueError(f"{where}: peft_type is {peft_type!r:.60}, expected 'LORA': {REMEDY}")
    config_files.check_closed(
        settings,
        read_elsewhere=READ,
        without_effect=WITHOUT_EFFECT,
        allowed=ALLOWED,
        where=where,
        remedy=REMEDY,
    )
    is_stabilized = settings.get("use_rslora") or False
    if not isinstance(is_stabilized, bool):
        value = config_files.shown(is_stabilized)
        raise ValueError(f"{where}: use_rslora is {value}, expected true or false")
    if settings.get("lora_alpha") is None:
        raise ValueError(f"{where}: lora_alpha is missing, expected the adapter's strength")
    dropout = config_files.number(settings, "lora_dropout", where, default=0.0)
    if dropout >= 1:
        raise ValueError(f"{where}: lora_dropout is {dropout:g}, expected a rate below 1")
    return lora_lib.Lora(
        targets=".*",  # until the tensors are seen
        rank=config_files.whole(settings, "r", where, most=MAX_RANK),
        alpha=config_files.number(settings, "lora_alpha", where, default=0.0),
        dropout=dropout,
        rank_stabilized=is_stabilized,
    )


def _check_places(
    settings: Mapping[str, Any], stored: Mapping[str, Any], folder: pathlib.Path
) -> None:
    """Raises a ValueError for factors where the settings say that there are none.

    PEFT leaves such tensors out without an error, so the adapter would mean something else there.
    A pattern (text) is not applied here: the tensors say which layers it hit.
    """
    targets, excluded, numbers = (
        _as_list(settings.get(key), key, folder / CONFIG)
        for key in ("target_modules", "exclude_modules", "layers_to_transform")
    )
    wrong = []
    for key in stored:
        module = _module(key)
        layer = re.search(r"[.]layers[.]([0-9]{1,6})[.]", module)
        if targets and not _names_module(targets, module):
            wrong.append(f"{key}: target_modules does not name it")
        elif excluded and _names_module(excluded, module):
            wrong.append(f"{key}: exclude_modules names it")
        elif numbers and layer and int(layer[1]) not in numbers:
            wrong.append(f"{key}: layers_to_transform lacks layer {layer[1]}")
    if wrong:
        more = f"\n  and {len(wrong) - MAX_LINES} more" if len(wrong) > MAX_LINES else ""
        raise ValueError(
            f"{folder / WEIGHTS} and {CONFIG} contradict each other. Download or copy both "
            f"again:\n  " + "\n  ".join(wrong[:MAX_LINES]) + more
        )


def _as_list(value: Any, key: str, path: pathlib.Path) -> list[Any]:
    """Returns the values of a setting that may be one, several, a pattern (here: none) or null."""
    if value is None or isinstance(value, str):
        return []
    values = value if isinstance(value, list) else [value]
    kind = int if key == "layers_to_transform" else str
    if not all(isinstance(one, kind) for one in values):
        raise ValueError(
            f"{path}: {key} is {config_files.shown(value)}, expected a list of "
            f"{'numbers' if kind is int else 'names, or a pattern'}"
        )
    return values


def _names_module(ends: list[str], module: str) -> bool:
    return any(module == end or module.endswith(f".{end}") for end in ends)


def _in_memory(hub_name: str) -> str:
    """Returns the name that a tensor of the Hub has in a model of transformers 5."""
    name = hub_name.replace("vision_tower.vision_model.", "vision_tower.")
    return "model." + name.replace("language_model.model.", "language_model.")
