"""The members of an npz file, read: what they say of themselves is compared with what is there.

A file from elsewhere can be damaged anywhere, and can claim anything: sizes that do not fit, an
encryption, that a few bytes unpack to gigabytes. All of it is a ValueError that names the file and
the member, before memory is taken for it.
"""

import contextlib
import dataclasses
import errno
import io
import json
import math
import os
import pathlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from paligemma_jax.checkpoints import lazy_array
from paligemma_jax.files import large_files
from paligemma_jax.wording import phrases

Path = str | os.PathLike[str]

PREFIX = "params/"
CHUNK_BYTES = 2**20
# XLA on CPU takes over a host buffer without a copy if it is aligned to this.
ALIGNMENT = 64
# Weights hardly shrink. What says that it unpacks to more than a small file may, and to many times
# its size, is no file of weights.
UNPACKED_BYTES, UNPACKED_RATIO = 2**30, 20
MAX_AXES, MAX_ELEMENTS = 32, 2**56
HEADER_BYTES = 10_000  # numpy itself refuses longer ones
HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# A version's field that says how long the header is.
HEADER_LENGTHS = {(1, 0): "<H", (2, 0): "<I"}
# What zipfile and zlib raise for files that are not as they should be.
DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, struct.error),
    *(RuntimeError, ValueError, OverflowError),
)
# What numpy raises for headers, which it reads as Python literals.
NO_HEADER = (*DAMAGE, LookupError, TypeError, AttributeError, SyntaxError, MemoryError)
AGAIN = "Download or copy the file again"


@dataclasses.dataclass(frozen=True)
class Member:
    """An entry of the zip, with the contents of its .npy header, which is `header_bytes` long."""

    info: zipfile.ZipInfo
    header_bytes: int
    shape: tuple[int, ...]
    dtype: np.dtype
    is_fortran: bool

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens a zip, also one in parts; a file that is not a complete zip is a ValueError."""
    for part in large_files.find_parts(path):
        if part.exists() and not part.is_file():
            raise ValueError(f"{part}: a folder or a device, expected an .npz file")
    with io.BufferedReader(large_files.open_raw(path)) as file:
        try:
            archive = zipfile.ZipFile(file)
            # The last record is 22 bytes that end in the length of the comment, then the comment.
            # zipfile would take a comment that is cut off for a shorter one.
            last = file.seek(0, os.SEEK_END) - 22 - len(archive.comment)
            file.seek(max(last, 0))
            (length,) = struct.unpack("<20xH", file.read(22))
            if last < 0 or length != len(archive.comment):
                raise zipfile.BadZipFile("its end is damaged")
        except (*DAMAGE, OSError, MemoryError) as error:
            if _is_of_the_disk(error):
                raise
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


def metadata(archive: zipfile.ZipFile) -> dict[str, Any]:
    """Returns our JSON from the zip's comment, {} where there is none or someone else's.

    Raises:
      ValueError: it begins like ours, and is no JSON.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        content = json.loads(archive.comment, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        if not archive.comment.startswith(b'{"'):
            return {}
        raise ValueError(
            f"{archive.filename}: its metadata (the zip's comment) is damaged ({error!s:.80}). "
            f"{AGAIN}"
        ) from error
    return content if isinstance(content, dict) else {}


def read_all(archive: zipfile.ZipFile) -> dict[str, Member]:
    """Returns name -> member of an archive, `params/` dropped; reads their headers.

    Raises:
      ValueError: members that are no arrays of numbers or not as long as they say, that are there
        twice or unpack to far more than the file, or names that no parameter has.
    """
    recorded = metadata(archive).get("dtypes")
    recorded = recorded if isinstance(recorded, dict) else {}
    num_bytes = sum(part.stat().st_size for part in large_files.find_parts(str(archive.filename)))
    _check_unpacked(archive, num_bytes)
    members = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename or name in members or not _is_plain(name):
            problem = "is there twice" if name in members else "is no array (.npy)"
            problem = problem if _is_plain(name) else "has no name of a parameter"
            raise ValueError(
                f"{_where(archive, info)} {problem}; expected an .npz of parameters, as np.savez "
                f"writes it"
            )
        members[name] = _read_member(archive, info, recorded.get(name), num_bytes)
    prefixed = [name for name in members if name.startswith(PREFIX)]
    others = [name for name in members if not name.startswith(PREFIX)]
    if prefixed and others:
        raise ValueError(
            f"{archive.filename}: {len(prefixed)} names start with '{PREFIX}' and {len(others)} do "
            f"not ({', '.join(others[:3])}): a whole training state? Expected parameters only"
        )
    return {name.removeprefix(PREFIX): member for name, member in members.items()}


def read_array(
    archive: zipfile.ZipFile, file: io.RawIOBase, member: Member, dtype: Any = None
) -> np.ndarray:
    """Returns the array in memory of its own, its CRC verified.

    Args:
      archive: that it is in.
      file: of the archive, opened once more, unbuffered.
      member: what to read.
      dtype: of the result; the array is never there in its own one too. None: its own.

    Raises:
      ValueError: it is damaged, or holds numbers that the dtype cannot.
    """
    dtype = member.dtype if dtype is None else np.dtype(dtype)
    num_bytes = math.prod(member.shape) * dtype.itemsize
    memory = np.empty(num_bytes + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    data = memory[first : first + num_bytes].view(dtype)
    rooms = _Rooms(data, member.dtype)
    try:
        if member.info.compress_type == zipfile.ZIP_STORED:
            _read_stored(file, member, rooms)
        else:
            _read_compressed(archive, member, rooms)
    except (*DAMAGE, OSError) as error:
        if _is_of_the_disk(error):
            raise
        raise ValueError(f"{_where(archive, member.info)} is damaged ({error}). {AGAIN}") from error
    lazy_array.require_held(rooms.largest, dtype, name=member.info.filename.removesuffix(".npy"))
    if member.is_fortran:
        return data.reshape(member.shape[::-1]).T
    return data.reshape(member.shape)


class _Rooms:
    """The memory that a member is read into, part by part: iterate, and fill each part.

    That is an array's own, or where its dtype is another one a buffer's, which is emptied into it.
    `largest` is then as `lazy_array.put` tells; it waits for the CRC, as damage has odd numbers.
    """

    def __init__(self, made: np.ndarray, dtype: np.dtype):
        self._made, self._dtype, self.largest = made, dtype, 0.0

    def __iter__(self) -> Iterator[memoryview]:
        made = self._made
        if made.dtype == self._dtype:
            data = made.view(np.uint8).data
            yield from (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
            return
        size = max(1, CHUNK_BYTES // self._dtype.itemsize)
        buffer = np.empty(min(size, made.size), self._dtype)
        for at in range(0, made.size, size):
            part = buffer[: made.size - at]
            yield part.view(np.uint8).data
            self.largest = max(self.largest, lazy_array.put(made[at : at + size], part))


def _describe_broken(path: Path) -> str:
    with large_files.open_raw(path) as file:
        start = file.read(6)
    if not start:
        return "the file is empty. Download or copy it again"
    if start.startswith(b"PK\x03\x04"):
        names = [part.name for part in large_files.find_parts(path)]
        if len(names) > 1 or names != [pathlib.Path(path).name]:
            return f"cut off or damaged at its end; is a part missing? Found {', '.join(names)}"
        return "a zip that is cut off or damaged at its end. Download or copy it again"
    if start == b"\x93NUMPY":
        return "a single .npy array; expected an .npz of parameters"
    return f"not an .npz: it starts with {start!r}; expected one, as np.savez writes it"


def _is_of_the_disk(error: BaseException) -> bool:
    """Whether an error is of the disk, and not of a place in the file that cannot be."""
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def _where(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    name = info.filename if len(info.filename) <= 200 else f"{info.filename[:200]}..."
    return f"{archive.filename}: member {name!r}"


def _is_plain(name: str) -> bool:
    """Whether a name can be a parameter's: words between slashes, none a way out of a folder."""
    has_words = all(part not in ("", ".", "..") for part in name.split("/"))
    return has_words and name.isprintable() and "\\" not in name


def _check_unpacked(archive: zipfile.ZipFile, num_bytes: int) -> None:
    unpacked = sum(
        info.file_size for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED
    )
    if unpacked > max(UNPACKED_BYTES, UNPACKED_RATIO * num_bytes):
        raise ValueError(
            f"{archive.filename}: {phrases.size(num_bytes)} that say they unpack to "
            f"{phrases.size(unpacked)}, which weights do not. If that is meant, write the file "
            f"without compression (np.savez) where it comes from"
        )


def _read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, recorded: Any, num_bytes: int
) -> Member:
    """Reads the header of a member. One that does not fit its data is a ValueError.

    Args:
      recorded: the dtype's name in the metadata, which tells the type of opaque bytes.
      num_bytes: of the whole file.
    """
    where = _where(archive, info)
    if info.flag_bits & 1:
        raise ValueError(f"{where} is encrypted; expected an .npz as np.savez writes it")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"{where} is compressed with method {info.compress_type}, expected 0 (stored) or 8 "
            f"(deflated), as np.savez and np.savez_compressed write it"
        )
    stored = info.file_size if info.compress_type == zipfile.ZIP_STORED else info.compress_size
    if stored != info.compress_size or info.header_offset + stored > num_bytes:
        raise ValueError(
            f"{where} is damaged: it says that it takes {info.compress_size} bytes from byte "
            f"{info.header_offset} on, the file has {num_bytes}. {AGAIN}"
        )
    try:
        shape, is_fortran, dtype, header_bytes = _read_header(archive, info)
    except (*NO_HEADER, OSError, tokenize.TokenError) as error:
        if _is_of_the_disk(error):
            raise
        raise ValueError(
            f"{where} is damaged or no array: no .npy header ({error!s:.200}). {AGAIN}"
        ) from error
    dtype = _number_type(dtype, recorded, where)
    is_shape = all(type(size) is int and size >= 0 for size in shape) and len(shape) <= MAX_AXES
    if not is_shape or math.prod(max(1, size) for size in shape) > MAX_ELEMENTS:
        raise ValueError(f"{where} is damaged: no array has the shape {shape!s:.80}. {AGAIN}")
    member = Member(info, header_bytes, shape, dtype, is_fortran)
    if header_bytes + member.num_bytes != info.file_size:
        raise ValueError(
            f"{where} is damaged: {shape} of {dtype} takes {member.num_bytes} bytes, found "
            f"{info.file_size - header_bytes}. {AGAIN}"
        )
    return member


def _read_header(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Returns shape, whether it is in Fortran's order, dtype, and the header's length in bytes."""
    with archive.open(info) as stream:
        start = stream.read(np.lib.format.MAGIC_LEN)
        version = np.lib.format.read_magic(io.BytesIO(start))
        form = HEADER_LENGTHS[version]
        length = stream.read(struct.calcsize(form))
        (num_bytes,) = struct.unpack(form, length)
        if num_bytes > HEADER_BYTES:
            raise ValueError(f"{num_bytes} bytes long")
        header = length + stream.read(num_bytes)
    return *HEADER_READERS[version](io.BytesIO(header)), len(start) + len(header)


def _number_type(dtype: np.dtype, recorded: Any, where: str) -> np.dtype:
    """Returns the type of the numbers; opaque bytes are what was recorded, else bfloat16."""
    if dtype.hasobject:
        raise ValueError(
            f"{where} holds pickled Python objects, which are never loaded: expected numbers"
        )
    if dtype.kind in "biuf" and dtype.isnative:
        return dtype
    if dtype.kind == "V" and dtype.names is None and (recorded or dtype.itemsize == 2):
        try:
            known = jnp.dtype(recorded or "bfloat16") if isinstance(recorded, str | None) else None
        except TypeError:
            known = None
        if known is not None and known.itemsize == dtype.itemsize and not known.hasobject:
            return known
    raise ValueError(
        f"{where} has the dtype {dtype.str}{f' recorded as {recorded!s:.40}' if recorded else ''}; "
        f"expected float32, float16, bfloat16 (|V2), integers or bool"
    )


def _read_stored(file: io.RawIOBase, member: Member, rooms: Iterable[memoryview]) -> None:
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
    for room in rooms:
        crc = zlib.crc32(_read_exactly(file, room), crc)
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


def _read_compressed(archive: zipfile.ZipFile, member: Member, rooms: Iterable[memoryview]) -> None:
    with archive.open(member.info) as stream:
        stream.read(member.header_bytes)
        for room in rooms:
            # zipfile compares the CRC when the last byte is read.
            chunk = stream.read(len(room))
            if len(chunk) < len(room):
                raise EOFError("the data ends too early")
            room[:] = chunk
