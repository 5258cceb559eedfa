"""Files and folders at addresses (gs://, s3://, whatever fsspec opens), fetched and sent.

Keys are found by the packages that fsspec uses (gcsfs, s3fs) and are never shown. A run that works
in a folder there: `files.mirror`.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import fsspec

from paligemma_jax.files import atomic, run_folder

LOGGER = logging.getLogger("paligemma_jax")

MANIFEST, LOCK = "manifest.json", "in-use-by.json"  # of a run's folder there
CACHE_ENV, DEFAULT_CACHE = "PALIGEMMA_JAX_CACHE", "~/.cache/paligemma_jax"
# By the scheme of an address: the package that fsspec needs, and our extra that brings it.
PACKAGES = {
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "s3": ("s3fs", "s3"),
    "http": ("aiohttp", "http"),
    "https": ("aiohttp", "http"),
}
ATTEMPTS, WAIT_S = 5, 1.0  # of a call; twice as long before each further one
UNFINISHED = (atomic.SUFFIX, "-checkpoint-tmp")
HASHED = 2**20


class Store:
    """The files below an address: calls that try again, and whose errors name the address.

    Raises:
      ValueError: a scheme that fsspec does not know, or whose package is missing.
    """

    def __init__(self, address: str):
        self.shown = without_keys(address.rstrip("/"))
        scheme = address.partition("://")[0]
        try:
            self.system, root = fsspec.url_to_fs(address.rstrip("/"))
        except ImportError as error:
            package, extra = PACKAGES.get(scheme, (f"of {scheme}://", ""))
            how = f"pip install 'paligemma-jax[{extra}]'" if extra else str(error)
            raise ValueError(f"{self.shown} needs the package {package}: {how}") from None
        except ValueError as error:
            raise ValueError(
                f"{self.shown}: {scheme}:// is no address to fsspec: {error}"
            ) from None
        self._root = str(root).rstrip("/")

    def read_json(self, name: str) -> Any:
        """Returns what a file of JSON holds; None where there is none, or half of one."""
        content = self._try(name, lambda path: self.system.cat_file(path))
        try:
            return None if content is None else json.loads(content)
        except ValueError:
            return None

    def write_json(self, name: str, value: Any) -> None:
        content = json.dumps(value).encode()
        self._write(name, lambda path: self.system.pipe_file(path, content))

    def sizes(self) -> dict[str, int]:
        """Returns name -> bytes of all files, as they are now."""
        self.system.invalidate_cache()
        entries = self._try("", lambda path: self.system.find(path, detail=True)) or {}
        start = len(self._root.lstrip("/")) + 1
        named = {path.lstrip("/")[start:]: entry for path, entry in entries.items()}
        return {name: int(one["size"]) for name, one in named.items() if name}

    def is_file(self) -> bool:
        """Whether the address is that of one file."""
        entry = self._try("", lambda path: self.system.info(path))
        return bool(entry) and entry["type"] == "file"

    def fetch(self, name: str, file: pathlib.Path, digest: str | None = None) -> None:
        """Writes a file here. `digest`: what it must have; one that differs is fetched twice."""
        file.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            with atomic.new_file(file) as unfinished:
                there = self._try(name, lambda path: self._get(path, unfinished))
                if there is None:
                    raise OSError(f"{self.shown}/{name} is not there any more")
            if digest is None or hash_file(file) == digest:
                return
        file.unlink()
        raise OSError(
            f"{self.shown}/{name} is damaged: its sha256 is not that which was noted when it was "
            f"sent. Remove it there, and what it belongs to"
        )

    def send(self, file: pathlib.Path, name: str) -> None:
        """Sends a file, and compares what the store says of it."""
        size = file.stat().st_size
        self._write(name, lambda path: self.system.put_file(str(file), path))
        self.system.invalidate_cache()
        there = self._try(name, lambda path: self.system.info(path))
        # One that grows meanwhile is sent again, as it has changed since.
        if there is None or there["size"] < size:
            arrived = there["size"] if there else "none"
            raise OSError(f"{self.shown}/{name}: of {size} bytes {arrived} arrived")

    def remove(self, name: str) -> None:
        self._try(name, lambda path: self.system.rm_file(path))

    def _get(self, path: str, file: pathlib.Path) -> bool:
        self.system.get_file(path, str(file))
        return True

    def _write(self, name: str, write: Callable[[str], Any]) -> None:
        def with_folder(path: str) -> bool:
            # Stores have none; what has them, as a disk elsewhere, needs it.
            with contextlib.suppress(Exception):
                self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
            write(path)
            return True

        if self._try(name, with_folder) is None:
            raise OSError(f"{self.shown}: there is no such bucket, or not for your account")

    def _try(self, name: str, function: Callable[[str], Any]) -> Any:
        """Returns what a call gives for a file's path; None where the file is not there.

        Raises:
          OSError: it is not allowed, or does not succeed in `ATTEMPTS`.
        """
        place = f"{self.shown}/{name}".rstrip("/")
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return function(f"{self._root}/{name}".rstrip("/"))
            except FileNotFoundError:
                return None
            except Exception as error:  # each client raises its own
                status = str(getattr(error, "status", None) or getattr(error, "code", None))
                # Not chained: a client's error may show an address that is signed with a key.
                if isinstance(error, PermissionError) or status in ("401", "403"):
                    raise OSError(
                        f"{place}: not allowed, or not with your credentials "
                        f"({type(error).__name__})"
                    ) from None
                if attempt == ATTEMPTS:
                    said_by = re.sub(r"\?\S*", "?...", str(error))[:200]
                    raise OSError(
                        f"{place}: {type(error).__name__}, {ATTEMPTS} times: {said_by}"
                    ) from None
            time.sleep(WAIT_S * 2 ** (attempt - 1))
        raise AssertionError("not reached")


@contextlib.contextmanager
def sending(address: str) -> Iterator[pathlib.Path]:
    """Yields an empty folder, whose files are sent to an address when the block is done."""
    store = Store(address)
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made) / _name_of(address)
        folder.mkdir()
        yield folder
        for name in sorted(files_of(folder)):
            store.send(folder / name, name)
        LOGGER.info(f"sent to {store.shown}")


@contextlib.contextmanager
def opened(address: str, *, leave_out: str = "") -> Iterator[pathlib.Path]:
    """Yields a copy here of a folder, as `fetch`; what the block changes is sent there."""
    place, store = fetch(address, leave_out=leave_out), Store(address)
    before = files_of(place)
    yield place
    for name, entry in files_of(place).items():
        if before.get(name) != entry:
            store.send(place / name, name)


def fetch(address: str, *, leave_out: str = "") -> pathlib.Path:
    """Returns where a file or folder of an address is here, fetched where it has changed there.

    Args:
      leave_out: the start of names of a folder's files that are not needed.

    Raises:
      FileNotFoundError: nothing is there.
    """
    store, place = Store(address), place_of(address)
    if store.is_file():
        store.fetch("", place)
        return place
    manifest = (store.read_json(MANIFEST) or {}).get("files", {})
    sizes = {name: size for name, size in store.sizes().items() if name not in (MANIFEST, LOCK)}
    if not sizes:
        raise FileNotFoundError(f"{store.shown}: nothing is there")
    for name in sizes:
        file = place / name
        if leave_out and name.startswith(leave_out):
            continue
        digest = manifest.get(name, {}).get("sha256") if is_frozen(name) else None
        is_here = file.exists() and digest is not None and hash_file(file) == digest
        if not is_here:
            store.fetch(name, file, digest)
    return place


def hash_file(path: pathlib.Path) -> str:
    """Returns the sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASHED):
            digest.update(block)
    return digest.hexdigest()


def without_keys(address: str) -> str:
    """Returns an address without user, password and query."""
    parts = urllib.parse.urlsplit(address)
    return urllib.parse.urlunsplit(
        (parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")
    )


def place_of(address: str) -> pathlib.Path:
    """Returns where a folder or file of an address lies on this machine."""
    cache = pathlib.Path(os.environ.get(CACHE_ENV) or DEFAULT_CACHE).expanduser()
    tag = hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:16]
    return cache / "mirrors" / tag / _name_of(address)


def _name_of(address: str) -> str:
    name = urllib.parse.urlsplit(address.rstrip("/")).path.rpartition("/")[2]
    return re.sub(r"[^\w.\-=,]", "_", name).strip(".") or "folder"


def files_of(folder: pathlib.Path) -> dict[str, dict[str, int]]:
    """Returns name -> size and time of the files of a folder that are complete."""
    files = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.endswith(UNFINISHED)]
        folders[:] = [name for name in folders if UNFINISHED[1] not in name]
        for name in names:
            path = pathlib.Path(place, name)
            if (
                name in (atomic.LOCK, run_folder.OWNER)
                or name.endswith(UNFINISHED)
                or path.is_symlink()
            ):
                continue
            with contextlib.suppress(FileNotFoundError):
                entry = path.stat()
                key = path.relative_to(folder).as_posix()
                files[key] = {"size": entry.st_size, "time": entry.st_mtime_ns}
    return files


def is_frozen(name: str) -> bool:
    """Whether a file of a run is written once: what it holds is then known for good."""
    return name.startswith(f"{run_folder.CHECKPOINTS}/") or name == run_folder.FINAL
