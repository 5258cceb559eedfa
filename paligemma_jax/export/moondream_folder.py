"""Moondream2 between npz files and the folder of its authors: one file model.safetensors.

Names and axes: `checkpoints.moondream_names`; what a release has besides, a model of regions that
its authors call not ready for use, is left out. One array is in memory at a time. What the folder
holds besides, their code and its config.json, is neither read nor written: their modules load the
file with `load_state_dict`.
"""

import math
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
    tensor_files,
)
from paligemma_jax.console import say
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
) -> tuple[int, int]:
    """Writes npz weights as the authors' model.safetensors; returns as `read`.

    Raises:
      ValueError: arrays that the authors have no place for, as low-rank factors.
    """
    arrays = stored.arrays
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
        tensor_files.create(made, layout)
        with say.progress(f"writing {folder}", unit="B", unit_scale=True) as report:
            stored.read(pieces_of, transform=write_array, progress=report)
        tensor_files.sync(made, layout)
    return len(arrays), layout.num_bytes


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
