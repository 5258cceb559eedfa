"""npz files of parameters, streamed: one array at a time, in and out, with hardly any extra memory.

The format is numpy's: a zip of `.npy` members, each a short header (shape, dtype, order) and the
array's bytes. bfloat16 is written as two opaque bytes (`|V2`), as `np.savez` does, so that
`np.load` and big_vision read our files. What numpy cannot express (which type opaque bytes are, the
model, the resolution) is JSON in the zip's comment, which both ignore. Nothing is ever pickled.
"""

import dataclasses
import io
import json
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.checkpoints import npz_members
from paligemma_jax.files import atomic, large_files
from paligemma_jax.wording import phrases

Path = str | os.PathLike[str]
Progress = Callable[[int, int], None]  # bytes done, bytes in all
Transform = Callable[[str, np.ndarray], Any]
Place = Callable[[str, Any], Any]

MAX_COMMENT_BYTES = 65_535  # by the zip format
OVERHEAD_BYTES = 1024  # at most, for each array: headers, and its line in the table of contents
# Small enough that a chunk is still in the cache when it is written after its CRC.
CHUNK_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Header:
    """Shape and dtype of each array of a file by name, and its metadata, without the data."""

    arrays: dict[str, jax.ShapeDtypeStruct]
    metadata: dict[str, Any]


def read_header(path: Path) -> Header:
    """Returns names, shapes, dtypes and metadata without reading any data. Raises as `read`."""
    with npz_members.open_zip(path) as archive:
        members = npz_members.read_all(archive)
        arrays = {name: jax.ShapeDtypeStruct(m.shape, m.dtype) for name, m in members.items()}
        return Header(arrays, npz_members.metadata(archive))


def read(
    path: Path,
    *,
    names: Iterable[str] | None = None,
    dtypes: Mapping[str, Any] | None = None,
    transform: Transform | None = None,
    place: Place | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Returns the arrays of a file by name; a `params/` that every name starts with is dropped.

    Memory: what stays, and one array, as the file stores it or as `dtypes` has it. Arrays never
    share memory with the file, and every byte read is checked against its CRC.

    Args:
      path: an .npz file of numbers: float32, float16, bfloat16 (also as `|V2`), integers, bool;
        also one that is there in parts, as FILE.npz.part0.
      names: what to read; None: everything. Names that the file lacks are an error.
      dtypes: name -> type to read an array in; those that are not named keep theirs.
      transform: what becomes of an array on the way, as a quantization. It gets the name and memory
        of its own.
      place: puts the result on its devices; without it, arrays stay on the host as numpy's.
      progress: called after each array with the bytes read so far, and in all.

    Raises:
      ValueError: not a zip, cut off or damaged, a type that is no number, numbers that `dtypes`
        cannot hold, names with and without `params/`, or arrays that are missing (counted and
        named).
    """
    with npz_members.open_zip(path) as archive, large_files.open_raw(path) as file:
        chosen = _choose(npz_members.read_all(archive), names, path)
        total, done, params = sum(member.num_bytes for member in chosen.values()), 0, {}
        for name, member in chosen.items():
            # A function of its own: the host's copy of an array is gone before the next is read.
            dtype = (dtypes or {}).get(name)
            params[name] = _load(archive, file, name, member, dtype, transform, place)
            done += member.num_bytes
            if progress:
                progress(done, total)
    return params


def write(
    path: Path,
    params: Mapping[str, Any],
    *,
    metadata: Mapping[str, Any] | None = None,
    dtypes: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes arrays as an .npz file, each fetched from its devices when its turn comes.

    The file appears whole or not at all: it is written beside its place (name + ".tmp"), synced to
    disk and renamed. Equal arrays and metadata give equal bytes.

    Args:
      path: the file to write or replace; its folder exists.
      params: name -> jax or numpy array.
      metadata: anything that JSON can hold; the key "dtypes" is ours.
      dtypes: name -> dtype to cast to on the way; arrays that are not named keep theirs.
      progress: called after each array with the bytes written so far, and in all.

    Raises:
      ValueError: an array that is not of numbers or is spread over several hosts, metadata that is
        not JSON or too long.
      OSError: too little space (looked at before anything is written), or the disk failed.
    """
    path = pathlib.Path(path)
    types = _stored_types(params, dtypes or {})
    comment = _comment(metadata or {}, types, path)
    total = sum(math.prod(np.shape(params[name])) * types[name].itemsize for name in params)
    needed = total + OVERHEAD_BYTES * len(params) + len(comment)
    atomic.require_space(path.parent, needed, what=str(path), remedy="nothing was written")
    try:
        with atomic.new_file(path) as unfinished, large_files.DirectFile(unfinished) as file:
            _write_zip(file, params, types, comment, total, progress)
            file.sync()
    except atomic.WriteError as error:
        message = f"{error}; what was there is unchanged"
        raise atomic.WriteError(error.errno, message) from error
    atomic.sync_folder(path.parent)


def _choose(
    members: Mapping[str, npz_members.Member], names: Iterable[str] | None, path: Path
) -> dict[str, npz_members.Member]:
    if names is None:
        return dict(members)
    names = list(names)
    missing = [name for name in names if name not in members]
    if names and len(missing) == len(names):
        held = list(members)
        raise ValueError(
            f"{os.fspath(path)}: none of the {len(names)} arrays asked for ({names[0]}, ...); it "
            f"holds {len(held)} others ({', '.join(held[:4])}{', ...' if len(held) > 4 else ''})"
        )
    if missing:
        spare = members.keys() - set(names)
        lines = []
        for name in missing[:5]:
            near = ", ".join(phrases.nearest(name, spare))
            lines.append(f"\n  {name}" + (f" (there is {near})" if near else ""))
        raise ValueError(
            f"{os.fspath(path)}: {len(missing)} of {len(names)} arrays missing. A file of trained "
            f"arrays only needs its base too. Missing:{''.join(lines)}"
            + (f"\n  and {len(missing) - 5} more" if len(missing) > 5 else "")
        )
    return {name: members[name] for name in names}


def _load(
    archive: zipfile.ZipFile,
    file: io.RawIOBase,
    name: str,
    member: npz_members.Member,
    dtype: Any,
    transform: Transform | None,
    place: Place | None,
) -> Any:
    array = npz_members.read_array(archive, file, member, dtype)
    if transform:
        array = transform(name, array)
    # Waiting keeps the host's copy of this array from living on while the next one is read.
    return jax.block_until_ready(place(name, array)) if place else array


def _stored_types(params: Mapping[str, Any], dtypes: Mapping[str, Any]) -> dict[str, np.dtype]:
    """Returns the dtype that each array is written in; one that cannot be is a ValueError."""
    if unknown := dtypes.keys() - params.keys():
        raise ValueError(f"dtypes for arrays that are not there: {sorted(unknown)}")
    types = {}
    for name, array in params.items():
        if not hasattr(array, "dtype") or np.dtype(array.dtype).kind not in "biufV":
            kind = getattr(array, "dtype", type(array).__name__)
            raise ValueError(f"'{name}' is {kind}; expected an array of numbers")
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            raise ValueError(
                f"'{name}' is spread over several hosts ({array.sharding}): gather it first"
            )
        types[name] = jnp.dtype(dtypes.get(name, array.dtype))
    return types


def _comment(
    metadata: Mapping[str, Any], types: Mapping[str, np.dtype], path: pathlib.Path
) -> bytes:
    """Returns the metadata as JSON, with the names of the types that numpy stores as opaque."""
    if "dtypes" in metadata:
        raise ValueError(f"{path}: metadata: the key 'dtypes' is filled in by write()")
    opaque = {name: dtype.name for name, dtype in types.items() if dtype.kind == "V"}
    try:
        text = json.dumps({**metadata, "dtypes": opaque}, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: metadata must be JSON: {error}") from error
    if len(text) > MAX_COMMENT_BYTES:
        raise ValueError(
            f"{path}: metadata takes {len(text)} bytes; a zip's comment holds {MAX_COMMENT_BYTES}"
        )
    return text.encode()


def _write_zip(
    file: large_files.DirectFile,
    params: Mapping[str, Any],
    types: Mapping[str, np.dtype],
    comment: bytes,
    total: int,
    progress: Progress | None,
) -> None:
    done = 0
    with zipfile.ZipFile(file, "w") as archive:  # pyright: ignore[reportArgumentType]
        archive.comment = comment
        for name, array in params.items():
            _write_array(archive, name, _fetch(array).astype(types[name], copy=False))
            done += math.prod(np.shape(array)) * types[name].itemsize
            if progress:
                progress(done, total)


def _write_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    """Adds an array to a zip that is open for writing, as `np.savez` stores it."""
    # Types that numpy has no name for, such as bfloat16, go as opaque bytes: what np.load expects.
    descr = f"|V{array.dtype.itemsize}" if array.dtype.kind == "V" else array.dtype.str
    header = {"descr": descr, "fortran_order": False, "shape": array.shape}
    data = np.asarray(array, order="C").reshape(-1).view(np.uint8).data
    # A ZipInfo without a date: equal arrays give equal files.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for at in range(0, len(data), CHUNK_BYTES):
            stream.write(data[at : at + CHUNK_BYTES])


def _fetch(array: Any) -> np.ndarray:
    """Returns an array on the host."""
    if isinstance(array, jax.Array):
        # A jax.Array keeps what was fetched from it as long as it lives; a second one that shares
        # its buffers is dropped with the copy.
        shards = [shard.data for shard in array.addressable_shards]
        array = jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)
    return np.asarray(array)
