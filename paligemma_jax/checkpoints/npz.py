"""npz files of parameters, streamed: one array at a time, in and out, with hardly any extra memory.

The format is numpy's: a zip of `.npy` members, each a short header (shape, dtype, order) and the
array's bytes. bfloat16 is written as two opaque bytes (`|V2`), as `np.savez` does, so that
`np.load` and big_vision read our files. What numpy cannot express (which type opaque bytes are, the
model, the resolution) is JSON in the zip's comment, which both ignore. Nothing is ever pickled.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.files import atomic, direct_file, disk_space, part_files
from paligemma_jax.wording import near_misses

Path = str | os.PathLike[str]
Progress = Callable[[int, int], None]  # bytes done, bytes in all
Transform = Callable[[str, np.ndarray], Any]
Place = Callable[[str, Any], Any]

PREFIX = "params/"
MAX_COMMENT_BYTES = 65_535  # by the zip format
OVERHEAD_BYTES = 1024  # at most, for each array: headers, and its line in the table of contents
# Small enough that a chunk is still in the cache when it is written after its CRC.
CHUNK_BYTES = 2**20
# XLA on CPU takes over a host buffer without a copy if it is aligned to this.
ALIGNMENT = 64
HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError)


@dataclasses.dataclass(frozen=True)
class Header:
    """Shape and dtype of each array of a file by name, and its metadata, without the data."""

    arrays: dict[str, jax.ShapeDtypeStruct]
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Member:
    """An entry of the zip, with the contents of its .npy header, which is `header_bytes` long."""

    info: zipfile.ZipInfo
    header_bytes: int
    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> Header:
    """Returns names, shapes, dtypes and metadata without reading any data. Raises as `read`."""
    with open_zip(path) as archive:
        members = _members(archive)
        arrays = {name: jax.ShapeDtypeStruct(m.shape, m.dtype) for name, m in members.items()}
        return Header(arrays, _metadata(archive))


def read(
    path: Path,
    *,
    names: Iterable[str] | None = None,
    transform: Transform | None = None,
    place: Place | None = None,
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
    with open_zip(path) as archive, part_files.open_raw(path) as file:
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


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip, also one in parts; a file that is not a complete zip is a ValueError."""
    with io.BufferedReader(part_files.open_raw(path)) as file:
        try:
            archive = zipfile.ZipFile(file)
            # The last record is 22 bytes that end in the length of the comment, then the comment.
            # zipfile would take a comment that is cut off for a shorter one.
            file.seek(-22 - len(archive.comment), os.SEEK_END)
            (length,) = struct.unpack("<20xH", file.read(22))
            if length != len(archive.comment):
                raise zipfile.BadZipFile("its end is damaged")
        except zipfile.BadZipFile as error:
            raise ValueError(f"{os.fspath(path)}: {_describe_broken(path)}") from error
        with archive:
            yield archive


def is_whole(path: Path) -> bool:
    """Returns whether a zip, or the parts of one, is complete to its end."""
    try:
        with open_zip(path):
            return True
    except ValueError:
        return False


def _describe_broken(path: Path) -> str:
    with part_files.open_raw(path) as file:
        start = file.read(6)
    if not start:
        return "the file is empty"
    if start.startswith(b"PK\x03\x04"):
        names = [part.name for part in part_files.find(path)]
        if len(names) > 1 or names != [pathlib.Path(path).name]:
            return f"cut off or damaged at its end; is a part missing? Found {', '.join(names)}"
        return "a zip that is cut off or damaged at its end. Download or copy it again"
    if start == b"\x93NUMPY":
        return "a single .npy array; expected an .npz of parameters"
    return f"not an .npz: it starts with {start!r}"


def _metadata(archive: zipfile.ZipFile) -> dict[str, Any]:
    """Returns our JSON from the zip's comment, {} where there is none or someone else's."""
    try:
        metadata = json.loads(archive.comment)
    except ValueError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _members(archive: zipfile.ZipFile) -> dict[str, _Member]:
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
        members[name] = _read_member(archive, info, recorded.get(name))
    prefixed = [name for name in members if name.startswith(PREFIX)]
    others = [name for name in members if not name.startswith(PREFIX)]
    if prefixed and others:
        raise ValueError(
            f"{archive.filename}: {len(prefixed)} names start with '{PREFIX}' and {len(others)} do "
            f"not ({', '.join(others[:3])}): a whole training state? Expected parameters only"
        )
    return {name.removeprefix(PREFIX): member for name, member in members.items()}


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, recorded: str | None) -> _Member:
    """Reads the header of a member. One that does not fit its data is a ValueError.

    `recorded`: the dtype's name in the metadata, which tells the type of opaque bytes.
    """
    where = f"{archive.filename}: member '{info.filename}'"
    try:
        with archive.open(info) as stream:
            read_header = HEADER_READERS[np.lib.format.read_magic(stream)]
            shape, is_fortran, dtype = read_header(stream)
            header_bytes = stream.tell()
    except (KeyError, ValueError, *DAMAGE) as error:
        raise ValueError(f"{where} is damaged or no array: no .npy header ({error})") from error
    dtype = _number_type(dtype, recorded, where)
    member = _Member(info, header_bytes, shape, dtype, is_fortran)
    if header_bytes + member.num_bytes != info.file_size:
        raise ValueError(
            f"{where} is damaged: {shape} of {dtype} takes {member.num_bytes} bytes, found "
            f"{info.file_size - header_bytes}"
        )
    return member


def _number_type(dtype: np.dtype, recorded: str | None, where: str) -> np.dtype:
    """Returns the type of the numbers; opaque bytes are what was recorded, else bfloat16."""
    if dtype.hasobject:
        raise ValueError(f"{where} holds pickled Python objects, which are never loaded")
    if dtype.kind in "biuf" and dtype.isnative:
        return dtype
    if dtype.kind == "V" and dtype.names is None and (recorded or dtype.itemsize == 2):
        try:
            known = jnp.dtype(recorded or "bfloat16")
        except TypeError:
            known = None
        if known is not None and known.itemsize == dtype.itemsize:
            return known
    raise ValueError(
        f"{where} has the dtype {dtype.str}{f' recorded as {recorded}' if recorded else ''}; "
        f"expected float32, float16, bfloat16 (|V2), integers or bool"
    )


def _choose(
    members: Mapping[str, _Member], names: Iterable[str] | None, path: Path
) -> dict[str, _Member]:
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
            near = ", ".join(near_misses.nearest(name, spare))
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
    member: _Member,
    transform: Transform | None,
    place: Place | None,
) -> Any:
    array = _read_array(archive, file, member)
    if transform:
        array = transform(name, array)
    # Waiting keeps the host's copy of this array from living on while the next one is read.
    return jax.block_until_ready(place(name, array)) if place else array


def _read_array(archive: zipfile.ZipFile, file: io.RawIOBase, member: _Member) -> np.ndarray:
    """Returns the array in memory of its own, its CRC verified.

    `file`: the file of the archive, opened once more, unbuffered.
    """
    memory = np.empty(member.num_bytes + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    data = memory[first : first + member.num_bytes]
    try:
        if member.info.compress_type == zipfile.ZIP_STORED:
            _read_stored(file, member, data.data)
        else:
            _read_compressed(archive, member, data.data)
    except DAMAGE as error:
        raise ValueError(
            f"{archive.filename}: member '{member.info.filename}' is damaged ({error}). "
            f"Download or copy the file again"
        ) from error
    if member.is_fortran:
        return data.view(member.dtype).reshape(member.shape[::-1]).T
    return data.view(member.dtype).reshape(member.shape)


def _read_stored(file: io.RawIOBase, member: _Member, data: memoryview) -> None:
    """Reads straight from the member's place in the file: zipfile would copy every byte twice.

    A mapped file is hardly faster (the array must not share its memory, so it is copied there too:
    experiments/benchmarks), and one that is cut off while it is read would kill the process.
    """
    file.seek(member.info.header_offset)
    # A zip entry: 30 bytes that end in the lengths of the name and of the extra field, then these
    # two, then the data.
    name_length, extra_length = struct.unpack("<26xHH", _read_exactly(file, bytearray(30)))
    file.seek(name_length + extra_length, os.SEEK_CUR)
    crc = zlib.crc32(_read_exactly(file, bytearray(member.header_bytes)))
    for at in range(0, len(data), CHUNK_BYTES):
        crc = zlib.crc32(_read_exactly(file, data[at : at + CHUNK_BYTES]), crc)
    if crc != member.info.CRC:
        raise zipfile.BadZipFile("its CRC is wrong")


def _read_exactly(file: io.RawIOBase, buffer: bytearray | memoryview) -> bytearray | memoryview:
    """Fills a buffer from the file and returns it."""
    view = memoryview(buffer)
    while view:
        if not (count := file.readinto(view)):
            raise EOFError("the file ends too early")
        view = view[count:]
    return buffer


def _read_compressed(archive: zipfile.ZipFile, member: _Member, data: memoryview) -> None:
    with archive.open(member.info) as stream:
        stream.read(member.header_bytes)
        for at in range(0, len(data), CHUNK_BYTES):
            # zipfile compares the CRC when the last byte is read.
            part = data[at : at + CHUNK_BYTES]
            chunk = stream.read(len(part))
            if len(chunk) < len(part):
                raise EOFError("the data ends too early")
            part[:] = chunk


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


def _comment(metadata: Mapping[str, Any], types: Mapping[str, np.dtype]) -> bytes:
    """Returns the metadata as JSON, with the names of the types that numpy stores as opaque."""
    if "dtypes" in metadata:
        raise ValueError("metadata: the key 'dtypes' is filled in by write()")
    opaque = {name: dtype.name for name, dtype in types.items() if dtype.kind == "V"}
    try:
        text = json.dumps({**metadata, "dtypes": opaque}, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be JSON: {error}") from error
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
