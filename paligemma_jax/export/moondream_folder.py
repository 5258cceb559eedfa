"""Moondream2 between npz files and the folder of its authors: one file model.safetensors.

Names and axes: `checkpoints.moondream_names`; what a release has besides, a model of regions that
its authors call not ready for use, is left out. One array is in memory at a time. Beside weights
stand config.json and, where one is given, the tokenizer: `from_pretrained` of the authors' classes
loads the folder, as transformers' AutoModelForCausalLM does with their modules copied into it.
Low-rank factors become an adapter of PEFT for these classes.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.assembly import weights
from paligemma_jax.checkpoints import (
    huggingface_names,
    lazy_array,
    moondream_names,
    npz,
    partial_weights,
    peft,
    tensor_files,
)
from paligemma_jax.console import say
from paligemma_jax.data import tokenizer_json
from paligemma_jax.files import atomic
from paligemma_jax.models.moondream import as_family, moondream, variants
from paligemma_jax.params import names
from paligemma_jax.wording import phrases

EMBEDDING = "text_model.transformer.embd.wte.weight"
POSITIONS = "vision_encoder.encoder.model.visual.pos_embed"
REGIONS = "region_model."
PROJECTION = "vision_encoder.projection.mlp.fc1.weight"


def is_folder(folder: pathlib.Path) -> bool:
    """Whether a folder holds the weights of a Moondream2 under its authors' names."""
    if not folder.is_dir() or not any(folder.glob("*.safetensors")):
        return False
    return EMBEDDING in tensor_files.read_headers(folder)[0]


def is_npz(stored: partial_weights.Weights | partial_weights.Merged) -> bool:
    """Whether weights are those of a Moondream2 under our names."""
    return as_family.NAMES.embedding in stored.arrays


def read(
    folder: pathlib.Path, path: pathlib.Path, *, variant: str | None, dtype: str | None
) -> tuple[int, int]:
    """Writes the weights of the authors' folder as an npz file.

    Args:
      folder: with their safetensors.
      path: the file to write.
      variant: a released model, or VIT,PHI of the tables; None: the released model, with crops or
        without. Their arrays do not tell into how many heads a width is cut.
      dtype: of all arrays; None: as stored.

    Returns:
      how many arrays of ours there are, and their bytes.

    Raises:
      ValueError: no such model; tensors that are missing, extra or misshapen, all of them listed.
    """
    stored, _ = tensor_files.read_headers(folder)
    shapes = {
        name: tuple(shape.shape)
        for name, (_, shape) in stored.items()
        if not name.startswith(REGIONS)
    }
    if len(shapes) < len(stored):
        say.info(f"{folder}: {len(stored) - len(shapes)} tensors of its {REGIONS}* are left out")
    model = _describe(shapes, variant)
    expected = moondream.shapes(model)
    pieces = moondream_names.pieces(expected)
    theirs = {
        piece.theirs: jax.ShapeDtypeStruct(piece.shape, stored[piece.theirs][1].dtype)
        for piece in pieces
        if piece.theirs in stored
    }
    missing = {piece.theirs: piece.shape for piece in pieces if piece.theirs not in stored}
    names.check_shapes(
        shapes,
        theirs | {name: jax.ShapeDtypeStruct(x, np.float32) for name, x in missing.items()},
        where=str(folder),
    )
    arrays = {}
    for ours, shape in expected.items():
        mine = [piece for piece in pieces if piece.ours == ours]
        kind = jnp.dtype(dtype or jnp.result_type(*{theirs[p.theirs].dtype for p in mine}))
        sources = [(piece, stored[piece.theirs][0]) for piece in mine]
        make = _Stack(sources, shape.shape, kind)
        arrays[ours] = lazy_array.Deferred(shape.shape, kind, make)
    metadata = {"format": "paligemma_jax", **weights.model_metadata(as_family.Model(model))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with say.progress(f"writing {path}", unit="B", unit_scale=True) as report:
        npz.write(path, arrays, metadata=metadata, progress=report)
    return len(arrays), sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays.values())


def write(
    stored: partial_weights.Weights | partial_weights.Merged,
    folder: pathlib.Path,
    *,
    dtype: str | None,
    tokenizer: pathlib.Path | None = None,
) -> tuple[int, int]:
    """Writes npz weights as the authors' model.safetensors; returns as `read`.

    Args:
      stored: the weights.
      folder: to write.
      dtype: of all arrays; None: as stored.
      tokenizer: a tokenizer.json, whatever its name; None: none is written.

    Raises:
      ValueError: arrays that the authors have no place for, or a tokenizer that is none of theirs.
    """
    arrays = stored.arrays
    texts = {"config.json": describe(stored)} | _tokenizer_files(tokenizer)
    pieces_of: dict[str, list[huggingface_names.Piece]] = {}
    tensors = {}
    for piece in moondream_names.pieces(arrays):
        pieces_of.setdefault(piece.ours, []).append(piece)
        kind = jnp.dtype(dtype or arrays[piece.ours].dtype)
        tensors[piece.theirs] = jax.ShapeDtypeStruct(piece.shape, kind)
    # Their loader reads one file.
    layout = tensor_files.lay_out(tensors, metadata={"format": "pt"}, shard_bytes=2**63)
    atomic.require_space(folder, layout.num_bytes, what=str(folder), remedy="nothing was written")

    def write_array(name: str, array: np.ndarray) -> None:
        for piece in pieces_of[name]:
            place = layout.places[piece.theirs]
            tensor = lazy_array.cast(piece.to_theirs(array), place.dtype, name=name)
            tensor_files.put(made, place, tensor)

    stale = ("model*.safetensors", tensor_files.INDEX)
    with atomic.files_of_folder(folder, stale=stale) as made:
        for name, text in texts.items():
            (made / name).write_bytes(text)
        tensor_files.create(made, layout)
        with say.progress(f"writing {folder}", unit="B", unit_scale=True) as report:
            stored.read(pieces_of, transform=write_array, progress=report)
        tensor_files.sync(made, layout)
    return len(arrays), layout.num_bytes


def describe(stored: partial_weights.Weights | partial_weights.Merged) -> bytes:
    """Returns the config.json of weights, as the authors' classes of the release read it."""
    arrays, metadata = stored.arrays, stored.metadata
    rows, width = arrays[as_family.NAMES.embedding].shape
    depth, _, _, num_heads, head_dim = arrays[f"{moondream.LAYERS}attn/qkv/kernel"].shape
    rotary_dim = metadata.get("rotary_dim", head_dim // 2)
    text = {
        "model_type": "phi",
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": arrays[f"{moondream.LAYERS}mlp/fc1/kernel"].shape[-1],
        "num_hidden_layers": depth,
        "num_attention_heads": num_heads,
        "partial_rotary_factor": rotary_dim / head_dim,
    }
    img_width = arrays[f"{moondream.BLOCKS}norm1/scale"].shape[-1]
    has_crops = arrays["img/projection/fc1/kernel"].shape[0] == 2 * img_width
    config = {
        "architectures": ["Moondream"],
        "auto_map": {
            "AutoConfig": "configuration_moondream.MoondreamConfig",
            "AutoModelForCausalLM": "moondream.Moondream",
        },
        "model_type": "moondream1",
        # The first of the releases calls it otherwise.
        "text_config" if has_crops else "phi_config": text,
    }
    return (json.dumps(config, indent=2) + "\n").encode()


def _tokenizer_files(path: pathlib.Path | None) -> dict[str, bytes]:
    """Returns name -> content of what transformers makes its tokenizer from."""
    if path is None:
        say.warning("no tokenizer: transformers will not find one. --tokenizer FILE adds it")
        return {}
    tokenizer = tokenizer_json.load_moondream(path.read_bytes(), str(path))
    end = tokenizer.piece(tokenizer.eos)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), end),
    }
    text = json.dumps(config, indent=2) + "\n"
    return {"tokenizer.json": tokenizer.model, "tokenizer_config.json": text.encode()}


def to_peft(stored: partial_weights.Weights, folder: pathlib.Path) -> tuple[int, int]:
    """Writes the factors of npz weights as a folder that PEFT loads for the authors' classes.

    Raises:
      ValueError: arrays of the base were trained too: such a folder cannot hold them.
    """
    lora = partial_weights.describe_lora(stored)
    assert lora is not None
    others = [name for name in stored.own if not names.is_factor(name)]
    if stored.base and others:
        raise ValueError(
            f"{stored.path}: besides factors it holds {len(others)} arrays of the base "
            f"({', '.join(others[:3])}, ...), which PEFT's folder cannot: convert it with --merge"
        )
    factors = stored.read(filter(names.is_factor, stored.arrays))
    with atomic.files_of_folder(folder) as made:
        peft.write(made, factors, lora, stored.arrays, base=None, pieces=moondream_names.pieces)
    return len(factors), (folder / peft.WEIGHTS).stat().st_size


def from_peft(
    folder: pathlib.Path, path: pathlib.Path, base: partial_weights.Weights
) -> tuple[int, int]:
    """Writes an adapter of PEFT as an npz file of factors that names its base; returns as `read`.

    Args:
      folder: of the adapter.
      path: the file to write.
      base: npz weights of the model that it was trained on.
    """
    lora, factors = peft.read(folder, base.arrays, moondream_names.pieces)
    kept = ("res", "vocab_size", "rotary_dim")
    metadata = {
        "format": "paligemma_jax",
        **{key: base.metadata[key] for key in kept if key in base.metadata},
        partial_weights.LORA: dataclasses.asdict(lora),
        partial_weights.NUM_ARRAYS: len(base.arrays) + len(factors),
        partial_weights.BASE: partial_weights.describe_base(os.fspath(base.path), base, dtype=None),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with say.progress(f"writing {path}", unit="B", unit_scale=True) as report:
        npz.write(path, factors, metadata=metadata, progress=report)
    return len(factors), sum(x.nbytes for x in factors.values())


class _Stack:
    """Reads tensors one by one into an array of ours, when it is called."""

    def __init__(
        self,
        sources: list[tuple[huggingface_names.Piece, pathlib.Path]],
        shape: tuple[int, ...],
        dtype: np.dtype,
    ):
        self._sources, self._shape, self._dtype = sources, shape, dtype

    def __call__(self) -> np.ndarray:
        array = np.empty(self._shape, self._dtype)
        for piece, path in self._sources:
            tensor = tensor_files.read_rows(path, piece.theirs, slice(piece.shape[0]))
            array[piece.index] = piece.to_ours(
                lazy_array.cast(tensor, self._dtype, name=piece.theirs)
            )
        return array


def _describe(shapes: Mapping[str, tuple[int, ...]], variant: str | None) -> variants.Moondream:
    """Returns the model: the towers that are named, the rest as the shapes say."""
    default, *later = variants.RELEASED
    towers: Any = variants.RELEASED.get(variant or default) or tuple((variant or "").split(","))
    known = (variants.VITS, variants.PHIS)
    if len(towers) != 2 or any(t not in table for t, table in zip(towers, known, strict=True)):
        raise ValueError(
            f"--variant {variant}: expected {default}, {' or '.join(later)}, or one of "
            f"{list(variants.VITS)} and one of {list(variants.PHIS)}, as 'So400m/14,phi_1_5'. "
            f"{phrases.did_you_mean(str(variant), variants.RELEASED)}"
        )
    img, llm = variants.VITS[towers[0]], variants.PHIS[towers[1]]
    inputs = shapes.get(PROJECTION, (0, img.width))[1]
    if inputs == 2 * img.width and variant is None:
        img = variants.VITS[f"{towers[0]}_crops"]
    grid = math.isqrt(shapes.get(POSITIONS, (1, 729))[1])
    rows = shapes[EMBEDDING][0]
    return variants.Moondream(img, llm, res=grid * img.patch_size, vocab_size=rows)
