"""Weights as transformers' PaliGemmaForConditionalGeneration keeps them, in and out, streamed.

Names and axes: `huggingface_names`; the other files of such a folder: `huggingface_files`.

Their embedding has 64 more rows: `<image>`, which image tokens replace, and padding. They are
written as the mean of the others: their logit is then the mean of the others' and never the
largest. The head is the embedding (tied), and not stored again.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.checkpoints import (
    huggingface_names,
    lazy_array,
    npz,
    partial_weights,
    tensor_files,
)
from paligemma_jax.params import names

Shapes = Mapping[str, jax.ShapeDtypeStruct]

# Key in the files' own metadata, where transformers does not look.
METADATA = "paligemma_jax"
CHUNK_ROWS = 2**14
_LAYER = re.compile(r"(.+?[.]layers[.])([0-9]+)[.]")


def plan(
    shapes: Shapes,
    *,
    dtype: Any = None,
    metadata: Mapping[str, Any] | None = None,
    shard_bytes: int = tensor_files.SHARD_BYTES,
) -> tensor_files.Layout:
    """Returns the files that `write` will make of such arrays, without making any.

    Args:
      shapes: our names -> shape and dtype.
      dtype: what all tensors are cast to; None: each keeps its own.
      metadata: anything that JSON can hold; travels with the tensors, and comes back with `read`.
      shard_bytes: a file's size at most, unless one tensor is larger.

    Raises:
      ValueError: arrays that transformers has no place or no dtype for.
    """
    tensors = {}
    for piece in huggingface_names.pieces(shapes):
        shape = list(piece.shape)
        if piece.ours == huggingface_names.EMBEDDING:
            shape[0] += huggingface_names.EXTRA_ROWS
        kind = jnp.dtype(dtype or shapes[piece.ours].dtype)
        tensors[piece.theirs] = jax.ShapeDtypeStruct(tuple(shape), kind)
    file_metadata = {"format": "pt", METADATA: json.dumps(dict(metadata or {}))}
    return tensor_files.lay_out(tensors, metadata=file_metadata, shard_bytes=shard_bytes)


def write(
    stored: partial_weights.Weights | partial_weights.Merged,
    folder: pathlib.Path,
    layout: tensor_files.Layout,
    *,
    progress: npz.Progress | None = None,
) -> None:
    """Writes the arrays of npz files as safetensors, one array in memory at a time.

    Args:
      stored: the npz files.
      folder: exists; files in it are replaced.
      layout: from `plan`, for these arrays.
      progress: called after each array with the bytes read so far, and in all.

    Raises:
      ValueError: a damaged file, or numbers that the dtype to cast to cannot hold.
    """
    pieces_of: dict[str, list[huggingface_names.Piece]] = {}
    for piece in huggingface_names.pieces(stored.arrays):
        pieces_of.setdefault(piece.ours, []).append(piece)

    def write_array(name: str, array: np.ndarray) -> None:
        for piece in pieces_of[name]:
            place = layout.places[piece.theirs]
            tensor = lazy_array.cast(piece.to_theirs(array), place.dtype, name=name)
            parts = [tensor]
            if name == huggingface_names.EMBEDDING:
                parts.append(_mean_rows(tensor))
            tensor_files.put(folder, place, *parts)

    tensor_files.create(folder, layout)
    stored.read(pieces_of, transform=write_array, progress=progress)
    tensor_files.sync(folder, layout)


def read(
    folder: pathlib.Path, expected: Shapes, *, dtype: Any = None
) -> tuple[dict[str, lazy_array.Deferred], dict[str, Any]]:
    """Returns (our arrays, each read when it is asked for; the metadata that `plan` was given).

    Args:
      folder: with one safetensors file, or several and their index.
      expected: our names and shapes: those of the model that config.json describes.
      dtype: of the arrays; None: as stored, the widest where an array's layers differ.

    Raises:
      ValueError: tensors that are missing, extra or misshapen, all of them listed, damaged files,
        or a head that is not the embedding.
    """
    pieces = huggingface_names.pieces(expected)
    stored, file_metadata = tensor_files.read_headers(folder)
    by_hub_name: dict[str, str] = {}
    for name in stored:
        hub = huggingface_names.hub_name(name)
        if hub in by_hub_name:
            raise ValueError(
                f"{folder}: '{name}' and '{by_hub_name[hub]}' are the same tensor: remove one"
            )
        by_hub_name[hub] = name
    heads = [by_hub_name.pop(head) for head in huggingface_names.HEADS if head in by_hub_name]
    shapes = plan(expected).places
    stored_shapes = {hub: stored[name][1].shape for hub, name in by_hub_name.items()}
    _compare_sizes(stored_shapes, shapes, folder)
    names.check_shapes(stored_shapes, shapes, where=str(folder))
    tensors = {hub: (stored[name][0], name) for hub, name in by_hub_name.items()}
    for head in heads:
        embedding = next(p.theirs for p in pieces if p.ours == huggingface_names.EMBEDDING)
        _check_tied((stored[head][0], head), tensors[embedding], stored_shapes[embedding][0])
    arrays = {}
    for ours, shape in expected.items():
        mine = [piece for piece in pieces if piece.ours == ours]
        kinds = {stored[by_hub_name[piece.theirs]][1].dtype for piece in mine}
        kind = jnp.dtype(dtype or jnp.result_type(*kinds))
        sources = [(piece, tensors[piece.theirs]) for piece in mine]
        arrays[ours] = lazy_array.Deferred(shape.shape, kind, _stacker(sources, shape.shape, kind))
    return arrays, _metadata(file_metadata)


def check_head(folder: pathlib.Path) -> None:
    """Raises a ValueError if a folder lacks the head, which then has to equal the embedding.

    For a config.json that says that the two are not one: transformers would make a random head.
    """
    held = {huggingface_names.hub_name(name) for name in tensor_files.read_headers(folder)[0]}
    if not held.intersection(huggingface_names.HEADS):
        raise ValueError(
            f"{folder}: config.json says tie_word_embeddings=false, and there is no "
            f"{huggingface_names.HEADS[0]}. PaliGemma's head is its embedding: copy the files that "
            f"hold the head, or set tie_word_embeddings=true if it was never another"
        )


def _compare_sizes(
    stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, Any], folder: pathlib.Path
) -> None:
    """Raises a ValueError if config.json and the tensors differ in layers or in the vocabulary."""
    held_layers, config_layers = (_count_layers(tensors) for tensors in (stored, expected))
    for place in config_layers.keys() & held_layers.keys():
        if held_layers[place] != config_layers[place]:
            raise ValueError(
                f"{folder}: config.json says num_hidden_layers={config_layers[place]}, and the "
                f"files hold {held_layers[place]} layers {place}*: copy all files again, "
                f"from one model"
            )
    for name, tensor in expected.items():
        if name.endswith("embed_tokens.weight") and name in stored:
            rows = stored[name][0] if stored[name] else 0
            if rows != tensor.shape[0]:
                raise ValueError(
                    f"{folder}: config.json says vocab_size={tensor.shape[0]}, and '{name}' has "
                    f"{rows} rows: copy all files again, from one model"
                )


def _count_layers(tensors: Mapping[str, Any]) -> dict[str, int]:
    """Returns what stands before the number of a layer -> how many numbers there are."""
    layers: dict[str, set[str]] = {}
    for name in tensors:
        if match := _LAYER.match(name):
            layers.setdefault(match[1], set()).add(match[2])
    return {place: len(numbers) for place, numbers in layers.items()}


def _stacker(
    sources: list[tuple[huggingface_names.Piece, tuple[pathlib.Path, str]]],
    shape: tuple[int, ...],
    dtype: np.dtype,
) -> Callable[[], np.ndarray]:
    """Returns a function that reads tensors one by one into an array of ours."""

    def make() -> np.ndarray:
        array = np.empty(shape, dtype)
        for piece, (path, name) in sources:
            rows = slice(piece.shape[0])  # without the extra rows of the embedding
            tensor = tensor_files.read_rows(path, name, rows)
            array[piece.index] = piece.to_ours(lazy_array.cast(tensor, dtype, name=name))
        return array

    return make


def _mean_rows(embedding: np.ndarray) -> np.ndarray:
    # Summed in parts: float32 sums of 257,152 rows at once would lose digits.
    starts = range(0, len(embedding), CHUNK_ROWS)
    sums = [embedding[at : at + CHUNK_ROWS].astype(np.float32).sum(0) for at in starts]
    mean = np.sum(sums, axis=0, dtype=np.float64) / len(embedding)
    return np.tile(mean.astype(embedding.dtype), (huggingface_names.EXTRA_ROWS, 1))


def _check_tied(
    head: tuple[pathlib.Path, str], embedding: tuple[pathlib.Path, str], num_rows: int
) -> None:
    for at in range(0, num_rows, CHUNK_ROWS):
        rows = slice(at, min(at + CHUNK_ROWS, num_rows))
        if not np.array_equal(
            tensor_files.read_rows(*head, rows), tensor_files.read_rows(*embedding, rows)
        ):
            raise ValueError(
                f"{head[0]}: '{head[1]}' differs from the embedding '{embedding[1]}' in rows "
                f"{at}..{rows.stop - 1}. PaliGemma's head is its embedding: train with "
                f"tie_word_embeddings=true"
            )


def _metadata(file_metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        metadata = json.loads(file_metadata.get(METADATA, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(metadata, dict):
        return {}
    return {key: value for key, value in metadata.items() if key != "dtypes"}  # those of an npz
