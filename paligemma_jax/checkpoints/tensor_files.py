"""safetensors files in shards, as Hugging Face's transformers keeps a model's weights.

A file is 8 bytes (the length of the header), the header (JSON: dtype, shape and place of each
tensor), then the tensors' bytes. The library reads one tensor at a time, but writes only what is in
memory as a whole; so files are written here: first all headers, then each tensor into its place,
in any order. https://huggingface.co/docs/safetensors
"""

import dataclasses
import json
import math
import os
import pathlib
import re
import struct
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from paligemma_jax.checkpoints import config_files

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# What transformers writes up to: files of this size can be uploaded anywhere.
SHARD_BYTES = 5 * 10**9
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
WIDE_DTYPES = {**DTYPES, "F64": "float64"}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor lies: `start` counts bytes from the beginning of `file`."""

    file: str
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which files there will be: each one's header, and every tensor's place."""

    headers: dict[str, bytes]
    places: dict[str, Place]

    @property
    def num_bytes(self) -> int:
        """Of all files together."""
        tensors = sum(place.num_bytes for place in self.places.values())
        return tensors + sum(map(len, self.headers.values()))


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that hold a folder's weights: one, or those that the index names.

    Raises:
      ValueError: there are none, or some that the index names are not there.
    """
    if (folder / WHOLE).exists():
        return [folder / WHOLE]
    if not (folder / INDEX).exists():
        held = sorted(path.name for path in folder.iterdir())
        raise ValueError(f"{folder}: neither {WHOLE} nor {INDEX}; it holds {held or 'nothing'}")
    return _indexed(folder)


def _indexed(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that a folder's index names, which must lie in the folder."""
    where, example = folder / INDEX, "as {'weight_map': {'TENSOR': 'FILE.safetensors'}}"
    index = config_files.read(where, "it says which file holds which tensor")
    placed = index.get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ValueError(f"{where}: no weight_map; expected names of files, {example}")
    names = list(placed.values())
    if wrong := [name for name in names if not _is_file_name(name)]:
        raise ValueError(
            f"{where}: weight_map says {config_files.shown(wrong[0])}; expected names of "
            f"*.safetensors files in {folder}, {example}"
        )
    paths = [folder / name for name in sorted(set(names))]
    if missing := [path.name for path in paths if not path.is_file()]:
        shown = config_files.shown(missing)
        raise ValueError(f"{where} names {shown}, which are not there: copy them too")
    if outside := [path for path in paths if not _is_inside(path, folder)]:
        raise ValueError(
            f"{outside[0]}, named by {INDEX}, is a link to {outside[0].resolve()}, outside of the "
            f"folder: copy the file here"
        )
    return paths


def _is_file_name(name: Any) -> bool:
    plain = isinstance(name, str) and name.isprintable() and name.endswith(".safetensors")
    return plain and not re.search(r"[/\\:]", name) and not name.startswith(".")


def _is_inside(path: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether a file is no link out of its folder, but for those of Hugging Face's cache.

    The cache keeps files as MODEL/blobs/HASH, and MODEL/snapshots/REVISION/NAME links to them.
    """
    real, folder = path.resolve(), folder.resolve()
    return real.parent == folder or real.parent == folder.parent.parent / "blobs"


def read_headers(
    folder: pathlib.Path,
) -> tuple[dict[str, tuple[pathlib.Path, jax.ShapeDtypeStruct]], dict[str, str]]:
    """Returns (tensor's name -> (file, shape and dtype), metadata), reading no tensor.

    Raises:
      ValueError: files that are missing, cut off or none of this format, a tensor that is there
        twice, or one that is not of float32, float16 or bfloat16 (quantized weights, say).
    """
    tensors: dict[str, tuple[pathlib.Path, jax.ShapeDtypeStruct]] = {}
    metadata: dict[str, str] = {}
    for path in files(folder):
        with _open(path) as file:
            metadata |= file.metadata() or {}
            for name, described in _describe(file, path, DTYPES).items():
                if name in tensors:
                    raise ValueError(f"{path}: '{name}' is also in {tensors[name][0]}: remove one")
                tensors[name] = path, described
    return tensors, metadata


def read_whole(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns all tensors of one file, float64 too. Raises as `read_headers`."""
    with _open(path) as file:
        return {name: file.get_tensor(name) for name in _describe(file, path, WIDE_DTYPES)}


def _describe(
    file: Any, path: pathlib.Path, dtypes: Mapping[str, str]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and dtype of the tensors in an open file."""
    tensors = {}
    for name in file.keys():  # noqa: SIM118 (not a mapping)
        tensor = file.get_slice(name)
        if tensor.get_dtype() not in dtypes:
            raise ValueError(
                f"{path}: '{name}' is {tensor.get_dtype()}, expected one of {list(dtypes)}:"
                f" if these weights are quantized, give the dense ones"
            )
        dtype = jnp.dtype(dtypes[tensor.get_dtype()])
        tensors[name] = jax.ShapeDtypeStruct(tuple(tensor.get_shape()), dtype)
    return tensors


def read_rows(path: pathlib.Path, name: str, rows: slice) -> np.ndarray:
    """Returns rows of one tensor, as a copy."""
    with _open(path) as file:
        return file.get_slice(name)[rows]


def lay_out(
    tensors: Mapping[str, jax.ShapeDtypeStruct],
    *,
    metadata: Mapping[str, str],
    shard_bytes: int = SHARD_BYTES,
) -> Layout:
    """Distributes tensors over files of at most `shard_bytes`, at least one tensor each."""
    # Readers want each number at a multiple of its size, so wide types come first.
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    shards: list[dict[str, tuple[int, int]]] = [{}]
    end = 0
    for name in order:
        size = math.prod(tensors[name].shape) * tensors[name].dtype.itemsize
        if shards[-1] and end + size > shard_bytes:
            shards.append({})
            end = 0
        shards[-1][name] = end, end + size
        end += size
    headers, places = {}, {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else WHOLE
        headers[file] = _header({name: (tensors[name], at) for name, at in shard.items()}, metadata)
        for name, (start, _) in shard.items():
            start += len(headers[file])
            places[name] = Place(file, start, tensors[name].shape, tensors[name].dtype)
    return Layout(headers, places)


def create(folder: pathlib.Path, layout: Layout) -> None:
    """Writes the headers, and the index where there are several files; `put` fills in tensors."""
    for file, header in layout.headers.items():
        (folder / file).write_bytes(header)
    if len(layout.headers) > 1:
        total = sum(place.num_bytes for place in layout.places.values())
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: layout.places[name].file for name in sorted(layout.places)},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def put(folder: pathlib.Path, place: Place, *parts: np.ndarray) -> None:
    """Writes a tensor into its place, its rows in one or several parts."""
    with open(folder / place.file, "r+b") as file:
        file.seek(place.start)
        for part in parts:
            if part.dtype != place.dtype:
                raise ValueError(f"{place} is given {part.dtype}")
            file.write(np.asarray(part, order="C").reshape(-1).view(np.uint8).data)
        if file.tell() != place.start + place.num_bytes:
            raise ValueError(f"{place} is given {[part.shape for part in parts]}")


def sync(folder: pathlib.Path, layout: Layout) -> None:
    """Returns when the files are on the disk."""
    for file in layout.headers:
        with open(folder / file, "r+b") as opened:
            os.fsync(opened.fileno())


def _open(path: pathlib.Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; it holds the weights: copy it too")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: cut off, damaged or no safetensors file ({error}). Download or copy it again"
        ) from error


def _header(
    tensors: Mapping[str, tuple[jax.ShapeDtypeStruct, tuple[int, int]]], metadata: Mapping[str, str]
) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, (tensor, at) in tensors.items():
        code = CODES.get(tensor.dtype.name)
        if code is None:
            raise ValueError(f"'{name}' is {tensor.dtype}, expected one of {list(CODES)}")
        entries[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": list(at)}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
