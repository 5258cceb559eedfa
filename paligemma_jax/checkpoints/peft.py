"""LoRA adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors.

Format: https://huggingface.co/docs/peft/developer_guides/checkpoint. Tensors are named as modules
are in memory; `write` uses the names of transformers 5, `read` understands all that
`huggingface_names.hub_name` does.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from paligemma_jax.checkpoints import huggingface_factors, huggingface_names
from paligemma_jax.params import lora as lora_lib
from paligemma_jax.params import names

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Settings that make another computation of the same factors -> the value that leaves it plain.
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


def is_folder(path: pathlib.Path) -> bool:
    """Whether a folder holds an adapter of PEFT."""
    return (path / CONFIG).exists()


def read(
    folder: pathlib.Path, shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[lora_lib.Lora, dict[str, np.ndarray]]:
    """Returns (settings, our factors in float32) of an adapter.

    Where several weights are one array of ours and only some have factors (PEFT's usual q_proj and
    v_proj), the others' are zero: these change nothing, and never learn.

    Args:
      folder: of the adapter.
      shapes: of the base model's parameters.

    Raises:
      ValueError: not a plain LoRA, or tensors that are missing, foreign or misshapen, all listed.
    """
    lora = _settings(folder)
    stored = safetensors.numpy.load_file(folder / WEIGHTS)
    layers = {
        piece.theirs: piece
        for piece in huggingface_names.pieces(shapes)
        if huggingface_factors.is_linear(piece)
    }
    factors_of: dict[str, dict[str, np.ndarray]] = {}
    foreign = []
    for key, tensor in stored.items():
        theirs, which = linear_layer(key)
        if theirs not in layers or which not in ("A", "B"):
            foreign.append(key)
        else:
            factors_of.setdefault(theirs, {})[which] = tensor.astype(np.float32)
    wrong = [f"{key}: no such linear layer in the base model" for key in foreign]
    for theirs, pair in factors_of.items():
        outputs, inputs = layers[theirs].shape
        expected = {"A": (lora.rank, inputs), "B": (outputs, lora.rank)}
        sizes = {which: tensor.shape for which, tensor in pair.items()}
        if sizes != expected:
            wrong.append(f"{theirs}: lora_A and lora_B are {sizes}, expected {expected}")
    if wrong or not factors_of:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit the base model:\n  " + "\n  ".join(wrong or ["empty"])
        )
    factors: dict[str, np.ndarray] = {}
    for theirs, pair in factors_of.items():
        piece = layers[theirs]
        parts = huggingface_factors.to_ours(piece, pair["A"], pair["B"])
        for which, part in zip(names.FACTORS, parts, strict=True):
            stacked = shapes[piece.ours].shape[: len(piece.index)]
            name = names.factor(piece.ours, which)
            whole = factors.setdefault(name, np.zeros((*stacked, *part.shape), np.float32))
            whole[piece.index] = part
    targets = "|".join(lora_lib.pairs(factors))
    return dataclasses.replace(lora, targets=targets), dict(sorted(factors.items()))


def write(
    folder: pathlib.Path,
    factors: Mapping[str, np.ndarray],
    lora: lora_lib.Lora,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    *,
    base: str | None,
) -> None:
    """Writes an adapter that `PeftModel.from_pretrained(model, folder)` loads.

    Args:
      folder: exists.
      factors: ours, by name.
      lora: how they act.
      shapes: of the base model's parameters.
      base: name or folder of the base for transformers, if it is known.
    """
    tensors, modules = {}, set()
    pairs = lora_lib.pairs(factors)
    for name, layers in huggingface_factors.pieces({**shapes, **factors}).items():
        for piece in layers:
            a, b = huggingface_factors.to_theirs(piece, *(factors[n] for n in pairs[name]))
            module = _in_memory(piece.theirs).removesuffix(".weight")
            tensors[f"{PREFIX}{module}.lora_A.weight"] = np.ascontiguousarray(a)
            tensors[f"{PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray(b)
            tower, _, rest = module.removeprefix("model.").partition(".")
            modules.add(f".*{tower}\\..*{re.escape(re.sub(r'.*layers[.][0-9]+', '', rest))}")
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilized,
        "target_modules": "|".join(sorted(modules)),
        "inference_mode": True,
        "init_lora_weights": True,
        **PLAIN,
    }
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    # save_file would leave the file to its owner alone; so it gets the mode that the others have.
    content = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    (folder / WEIGHTS).write_bytes(content)


def linear_layer(key: str) -> tuple[str, str]:
    """Returns (the weight's name on the Hub, "A" or "B") of a tensor of PEFT's."""
    module, _, which = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
    return huggingface_names.hub_name(f"{module}.weight"), which


def _settings(folder: pathlib.Path) -> lora_lib.Lora:
    path = folder / CONFIG
    stored = json.loads(path.read_text())
    if stored.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type is {stored.get('peft_type')!r}, expected 'LORA'")
    special = {key: stored[key] for key, plain in PLAIN.items() if stored.get(key, plain) != plain}
    if special:
        raise ValueError(
            f"{path}: {special}: only plain LoRA is understood. Merge it with PEFT first"
        )
    return lora_lib.Lora(
        targets=".*",  # until the tensors are seen
        rank=stored["r"],
        alpha=float(stored["lora_alpha"]),
        dropout=float(stored.get("lora_dropout", 0.0)),
        rank_stabilized=bool(stored.get("use_rslora", False)),
    )


def _in_memory(hub_name: str) -> str:
    """Returns the name that a tensor of the Hub has in a model of transformers 5."""
    name = hub_name.replace("vision_tower.vision_model.", "vision_tower.")
    return "model." + name.replace("language_model.model.", "language_model.")
