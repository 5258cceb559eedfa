"""npz files of parameters, streamed: one array at a time, in and out, with hardly any extra memory.

The format is numpy's: a zip of `.npy` members. bfloat16 is written as two opaque bytes (`|V2`), as
`np.savez` does, so that `np.load` and big_vision read our files. What numpy cannot say (which type
opaque bytes are, the model, the resolution) is JSON in the zip's comment, which both ignore.
Nothing is ever pickled.
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

from paligemma_jax.checkpoints import part_files, zipped_arrays
from paligemma_jax.files import atomic, direct_file, disk_space
from paligemma_jax.wording import near_misses

Path = str | os.PathLike[str]
Progress = Callable[[int, int], None]  # bytes done, bytes in all

PREFIX = "params/"
MAX_COMMENT_BYTES = 65_535  # by the zip format
OVERHEAD_BYTES = 1024  # at most, for each array: headers, and its line in the table of contents


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says of itself: shape and dtype of each array by name, and the metadata."""

    arrays: dict[str, jax.ShapeDtypeStruct]
    metadata: dict[str, Any]


def read_header(path: Path) -> Header:
    """Returns names, shapes, dtypes and metadata without reading any data. Raises as `read`."""
    with zipped_arrays.open_zip(path) as archive:
        members = _members(archive)
        arrays = {name: jax.ShapeDtypeStruct(m.shape, m.dtype) for name, m in members.items()}
        return Header(arrays, _metadata(archive))


def read(
    path: Path,
    *,
    names: Iterable[str] | None = None,
    transform: Callable[[str, np.ndarray], Any] | None = None,
    place: Callable[[str, Any], Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Returns the arrays of a file by name; a `params/` that every name starts with is dropped.

    Memory: what stays, and one array as the file stores it. Arrays never share memory with the
    file, and every byte read is checked against its CRC.

    Args:
      path: an .npz file of numbers: float32, float16, bfloat16 (also as `|V2`), integers, bool;
        also one that is there in parts, as FILE.npz.part0.
      names: what to read; None: everything. Names that the file lacks are an error.
      transform: what becomes of an array on the way: a cast, a quantization. It gets the name and
        memory of its own.
      place: puts the result on its devices; without it, arrays stay on the host as numpy's.
      progress: called after each array with the bytes read so far, and in all.

    Raises:
      ValueError: not a zip, cut off or damaged, a type that is no number, names with and without
        `params/`, or arrays that are missing (counted and named).
    """
    with zipped_arrays.open_zip(path) as archive, part_files.open_raw(path) as file:
        chosen = _choose(_members(archive), names, path)
        total, done, params = sum(member.num_bytes for member in chosen.values()), 0, {}
        for name, member in chosen.items():
            # A function of its own: the host's copy of an array is gone before the next is read.
            params[name] = _load(archive, file, name, member, transform, place)
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
      metadata: anything JSON can say; the key "dtypes" is ours.
      dtypes: name -> dtype to cast to on the way; arrays that are not named keep theirs.
      progress: called after each array with the bytes written so far, and in all.

    Raises:
      ValueError: an array that is not of numbers or is spread over several hosts, metadata that is
        not JSON or too long.
      OSError: too little space (looked at before anything is written), or the disk failed.
    """
    path = pathlib.Path(path)
    types = _stored_types(params, dtypes or {})
    comment = _comment(metadata or {}, types)
    total = sum(math.prod(np.shape(params[name])) * types[name].itemsize for name in params)
    needed = total + OVERHEAD_BYTES * len(params) + len(comment)
    disk_space.require(path.parent, needed, what=str(path), remedy="nothing was written")
    try:
        with atomic.new_file(path) as unfinished, direct_file.DirectFile(unfinished) as file:
            _write_zip(file, params, types, comment, total, progress)
            file.sync()
    except OSError as error:
        message = f"{path} is not written ({error.strerror}); what was there is unchanged"
        raise OSError(error.errno, message) from error
    atomic.sync_folder(path.parent)


def _metadata(archive: zipfile.ZipFile) -> dict[str, Any]:
    """Returns our JSON from the zip's comment, {} where there is none or someone else's."""
    try:
        found = json.loads(archive.comment)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _members(archive: zipfile.ZipFile) -> dict[str, zipped_arrays.Member]:
    recorded = _metadata(archive).get("dtypes")
    recorded = recorded if isinstance(recorded, dict) else {}
    members = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename or name in members:
            problem = "is there twice" if name in members else "is no array (.npy)"
            raise ValueError(
                f"{archive.filename}: member '{info.filename}' {problem}; expected an .npz of "
                f"parameters, as np.savez writes it"
            )
        members[name] = zipped_arrays.describe(archive, info, recorded.get(name))
    prefixed = [name for name in members if name.startswith(PREFIX)]
    others = [name for name in members if not name.startswith(PREFIX)]
    if prefixed and others:
        raise ValueError(
            f"{archive.filename}: {len(prefixed)} names start with '{PREFIX}' and {len(others)} do "
            f"not ({', '.join(others[:3])}): a whole training state? Expected parameters only"
        )
    return {name.removeprefix(PREFIX): member for name, member in members.items()}


def _choose(
    members: Mapping[str, zipped_arrays.Member], names: Iterable[str] | None, path: Path
) -> dict[str, zipped_arrays.Member]:
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
        lines = [f"\n  {name}{_near(name, spare)}" for name in missing[:5]]
        raise ValueError(
            f"{os.fspath(path)}: {len(missing)} of {len(names)} arrays missing. A file of trained "
            f"arrays only needs its base too. Missing:{''.join(lines)}"
            + (f"\n  and {len(missing) - 5} more" if len(missing) > 5 else "")
        )
    return {name: members[name] for name in names}


def _near(name: str, candidates: Iterable[str]) -> str:
    near = near_misses.nearest(name, candidates)
    return f" (there is {', '.join(near)})" if near else ""


def _load(
    archive: zipfile.ZipFile,
    file: io.RawIOBase,
    name: str,
    member: zipped_arrays.Member,
    transform: Callable[[str, np.ndarray], Any] | None,
    place: Callable[[str, Any], Any] | None,
) -> Any:
    array = zipped_arrays.read_array(archive, file, member)
    if transform:
        array = transform(name, array)
    # Waiting keeps the host's copy of this array from living on while the next one is read.
    return jax.block_until_ready(place(name, array)) if place else array


def _stored_types(params: Mapping[str, Any], dtypes: Mapping[str, Any]) -> dict[str, np.dtype]:
    """Returns the dtype that each array is written in; refuses what cannot be written."""
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


def _comment(metadata: Mapping[str, Any], types: Mapping[str, np.dtype]) -> bytes:
    """Returns the metadata as JSON, with the names of the types that numpy stores as opaque."""
    if "dtypes" in metadata:
        raise ValueError("metadata: the key 'dtypes' is filled in by write()")
    opaque = {name: dtype.name for name, dtype in types.items() if dtype.kind == "V"}
    try:
        text = json.dumps({**metadata, "dtypes": opaque}, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be what JSON can say: {error}") from error
    if len(text) > MAX_COMMENT_BYTES:
        raise ValueError(
            f"metadata takes {len(text)} bytes; a zip's comment holds {MAX_COMMENT_BYTES}"
        )
    return text.encode()


def _write_zip(
    file: direct_file.DirectFile,
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
            zipped_arrays.write_array(archive, name, _fetch(array).astype(types[name], copy=False))
            done += math.prod(np.shape(array)) * types[name].itemsize
            if progress:
                progress(done, total)


def _fetch(array: Any) -> np.ndarray:
    """Returns an array on the host."""
    if isinstance(array, jax.Array):
        # A jax.Array keeps what was fetched from it as long as it lives; a second one that shares
        # its buffers is dropped with the copy.
        shards = [shard.data for shard in array.addressable_shards]
        array = jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)
    return np.asarray(array)
