"""One array inside an .npz: where it lies, and how its bytes come in and go out at disk speed.

An .npz is a zip of `.npy` members, each a short header (shape, dtype, order) and the array's bytes.
`npz` decides which arrays are read and written, and what becomes of them.
"""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from paligemma_jax.checkpoints import part_files

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
class Member:
    """An entry of the zip, and what its .npy header (`header_bytes` long) says."""

    info: zipfile.ZipInfo
    header_bytes: int
    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@contextlib.contextmanager
def open_zip(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    """Opens a zip, also one in parts; a ValueError says what a file is if none or not whole."""
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
            raise ValueError(f"{os.fspath(path)}: {_what_is(path)}") from error
        with archive:
            yield archive


def is_whole(path: str | os.PathLike[str]) -> bool:
    """Tells whether a zip, or what there is of its parts, has an end."""
    try:
        with open_zip(path):
            return True
    except ValueError:
        return False


def _what_is(path: str | os.PathLike[str]) -> str:
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


def describe(archive: zipfile.ZipFile, info: zipfile.ZipInfo, recorded: str | None) -> Member:
    """Returns what the header of a member says, without reading its data.

    Args:
      archive: the open zip.
      info: the member's entry in it.
      recorded: the dtype's name as written beside the data; it tells what opaque bytes are.

    Raises:
      ValueError: a header that cannot be read or does not fit the data, or a type of no numbers.
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
    member = Member(info, header_bytes, shape, dtype, is_fortran)
    if header_bytes + member.num_bytes != info.file_size:
        raise ValueError(
            f"{where} is damaged: {shape} of {dtype} takes {member.num_bytes} bytes, found "
            f"{info.file_size - header_bytes}"
        )
    return member


def read_array(archive: zipfile.ZipFile, file: io.RawIOBase, member: Member) -> np.ndarray:
    """Returns the array in fresh memory that nothing else refers to, its CRC verified.

    Args:
      archive: the open zip.
      file: the same file, opened once more, unbuffered.
      member: what to read.
    """
    room = np.empty(member.num_bytes + ALIGNMENT, np.uint8)
    first = -room.ctypes.data % ALIGNMENT
    data = room[first : first + member.num_bytes]
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


def write_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
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


def _read_stored(file: io.RawIOBase, member: Member, data: memoryview) -> None:
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


def _read_exactly(file: io.RawIOBase, room: bytearray | memoryview) -> bytearray | memoryview:
    """Fills `room` from the file and returns it."""
    view = memoryview(room)
    while view:
        if not (count := file.readinto(view)):
            raise EOFError("the file ends too early")
        view = view[count:]
    return room


def _read_compressed(archive: zipfile.ZipFile, member: Member, data: memoryview) -> None:
    with archive.open(member.info) as stream:
        stream.read(member.header_bytes)
        for at in range(0, len(data), CHUNK_BYTES):
            # zipfile compares the CRC when the last byte is read.
            room = data[at : at + CHUNK_BYTES]
            chunk = stream.read(len(room))
            if len(chunk) < len(room):
                raise EOFError("the data ends too early")
            room[:] = chunk
