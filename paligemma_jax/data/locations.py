"""Where the files of a data set lie, and which are something else than their name says.

Images lie in a folder (`ImageFolder`) or elsewhere, at addresses that begin gs:// s3:// https:// or
http://, and are read through fsspec: gcsfs, s3fs and aiohttp do the work and find the user's
credentials; what is missing is said. A connection that breaks is tried again, what the server
refuses is not. What does not end, in time or in bytes, is given up.
"""

import os
import re
import time
import unicodedata
import urllib.parse
from typing import Any

import fsspec
import fsspec.asyn

from paligemma_jax.wording import phrases

# By the scheme of an address: the package that fsspec needs for it.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "https": "aiohttp", "http": "aiohttp"}
ATTEMPTS = 4
WAIT_S = 0.5  # before the second attempt; twice as long before each further one
DEADLINE_S = 60.0  # for one file, all attempts together
MAX_BYTES = 2**28  # of one file
CHUNK = 2**18
RETRIED = {408, 429, *range(500, 600)}

# What is wrong with a row of data: (kind, to count by; message, to show).
Problem = tuple[str, str]


class RemoteError(ValueError):
    """What lies at an address cannot be had; the message names the address and the reason."""


def pattern() -> str:
    """Returns the regular expression of all addresses that can be read: schemes of `PACKAGES`."""
    # "::" would let an address name another one inside it, a local file among them.
    return rf"({'|'.join(map(re.escape, PACKAGES))})://([^:]|:[^:])+"


def is_address(path: str) -> bool:
    """Tells an address from a local path."""
    return "://" in path and re.fullmatch(pattern(), path) is not None


def read(address: str) -> bytes:
    """Returns the bytes of what lies at an address.

    Raises:
      RemoteError: it is not there, not allowed or not to be had in four attempts; a package is
        missing; or it takes longer than DEADLINE_S, all attempts together, or has more than
        MAX_BYTES. Addresses are shown without user and query, which may hold keys.
    """
    scheme, problem, end = address.partition("://")[0], "", 0.0
    for attempt in range(1, ATTEMPTS + 1):
        try:
            system, path = fsspec.url_to_fs(address)
            end = end or time.monotonic() + DEADLINE_S  # the packages are imported by now
            return _fetch(system, path, max(end - time.monotonic(), 1e-3))  # 0 would be no limit
        except ImportError:
            problem = f"{scheme}:// needs a package: pip install {PACKAGES[scheme]}"
            break
        except FileNotFoundError:
            problem = "it is not there"
            break
        except _TooLargeError:
            problem = f"more than {phrases.size(MAX_BYTES)}, which no image here has"
            break
        except TimeoutError:
            problem = f"not had within {DEADLINE_S:g} s"
            break
        except Exception as error:  # each client raises its own
            status = getattr(error, "status", None) or getattr(error, "code", None)
            problem = f"{type(error).__name__}" + (f" {status}" if status else "")
            if isinstance(error, PermissionError) or (
                isinstance(status, int) and status not in RETRIED
            ):
                problem += ": not allowed, or not with your credentials"
                break
            if attempt == ATTEMPTS:
                problem += f", {ATTEMPTS} times; is there a network?"
            elif end and time.monotonic() > end:
                problem += f"; not had within {DEADLINE_S:g} s"
                break
            else:
                time.sleep(WAIT_S * 2 ** (attempt - 1))
    # Not chained: a client's error may show an address that is signed with a key.
    raise RemoteError(f"{public(address)}: {problem}") from None


class _TooLargeError(Exception):
    """A file has more than MAX_BYTES."""


def _fetch(system: Any, path: str, timeout_s: float) -> bytes:
    """Returns the bytes of a file, as far as time and size allow."""
    if not isinstance(system, fsspec.asyn.AsyncFileSystem):
        return system.cat_file(path)
    read = _read_stream if hasattr(system, "encode_url") else _read_object
    return fsspec.asyn.sync(system.loop, read, system, path, timeout=timeout_s)


async def _read_stream(system: Any, url: str) -> bytes:
    """Reads from a web server, which may send more than it announces, and without an end."""
    session, data = await system.set_session(), bytearray()
    async with session.get(system.encode_url(url), **system.kwargs) as answer:
        system._raise_not_found_for_status(answer, url)
        async for part in answer.content.iter_chunked(CHUNK):
            data += part
            if len(data) > MAX_BYTES:
                raise _TooLargeError
    return bytes(data)


async def _read_object(system: Any, path: str) -> bytes:
    """Reads from a store that knows the sizes of what it keeps."""
    if ((await system._info(path)).get("size") or 0) > MAX_BYTES:
        raise _TooLargeError
    return await system._cat_file(path)


def public(address: str) -> str:
    """Returns an address without user, password, query and fragment."""
    parts = urllib.parse.urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


# Finding a data set's images: inside its folder only, without asking the disk once per row.


class ImageFolder:
    """Finds images inside one folder, listing each subfolder once instead of asking per image.

    Addresses (see `is_address`) are taken as they are: nobody is asked whether they are there.

    Args:
      root: the folder, or its address.
      setting: what a user names another folder with, for errors.

    Raises:
      ValueError: no such folder.
    """

    def __init__(self, root: str | os.PathLike[str], *, setting: str = "image_dir"):
        self.setting = setting
        self._folders: dict[str, tuple[str, dict[str, bool] | None]] = {}
        self._by_key: dict[str, tuple[dict[str, list[str]], dict[str, list[str]]]] = {}
        self._address = os.fspath(root).rstrip("/") if is_address(os.fspath(root)) else None
        self.root = self._address or os.path.realpath(root)
        if not self._address and not os.path.isdir(self.root):
            raise ValueError(f"{setting} {os.fspath(root)}: no such folder")

    def locate(self, image: str) -> tuple[str, Problem | None]:
        """Returns (absolute path, None) of a row's image, or ("", what is wrong with it)."""
        if is_address(image):
            return image, None
        if self._address:
            return self._locate_below(self._address, image)
        folder, name = os.path.split(os.path.join(self.root, image))
        if folder not in self._folders:
            try:
                self._folders[folder] = self._list(folder)
            except (OSError, ValueError) as error:
                return "", ("image not found", f"image '{image}': {error}")
        real, is_link = self._folders[folder]
        path = os.path.join(real, name)
        if is_link is None or (is_link.get(name) and not self.contains(os.path.realpath(path))):
            return "", (
                "image outside the folder",
                f"image '{image}' is outside {as_typed(self.root)}; set {self.setting} to the "
                f"folder that holds all images",
            )
        if name not in is_link:
            near = self._find_near(folder, name)
            hint = f"; did you mean {near}?" if near else ""
            return "", (
                "image not found",
                f"image '{image}': no such file in {as_typed(real)}{hint}",
            )
        return path, None

    def look_alikes(self, image: str, *, is_ending_free: bool = False) -> list[str]:
        """Returns the paths of files that another system would not tell from this one.

        Their names differ by upper and lower case, by how accents are written, or by their ending
        where it is free.
        """
        folder, name = os.path.split(os.path.join(self.root, image))
        if self._address or self.locate(image)[1] is None:
            return []
        real = self._folders.get(folder, ("", None))[0]
        stem = os.path.splitext(name)[0]
        by_name, by_stem = self._keys(folder)
        alike = by_stem.get(key(stem), []) if is_ending_free else by_name.get(key(name), [])
        return [os.path.join(real, one) for one in alike] if stem else []

    def _find_near(self, folder: str, name: str) -> str | None:
        """Returns the file whose name differs by case, accents or its ending alone."""
        by_name, by_stem = self._keys(folder)
        stem = os.path.splitext(name)[0]
        alike = by_name.get(key(name)) or by_stem.get(key(stem))
        return alike[-1] if stem and alike else None

    def _keys(self, folder: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Returns the files of a folder that was listed: {key of name: names}, {of stem: names}."""
        if folder not in self._by_key:
            by_name: dict[str, list[str]] = {}
            by_stem: dict[str, list[str]] = {}
            for name in sorted(self._folders.get(folder, ("", None))[1] or ()):
                by_name.setdefault(key(name), []).append(name)
                by_stem.setdefault(key(os.path.splitext(name)[0]), []).append(name)
            self._by_key[folder] = by_name, by_stem
        return self._by_key[folder]

    def _locate_below(self, address: str, image: str) -> tuple[str, Problem | None]:
        location = f"{address}/{image}"
        if image.startswith("/") or ".." in image.split("/") or not is_address(location):
            return "", ("image outside the folder", f"image '{image}' is outside {address}")
        return location, None

    def contains(self, path: str) -> bool:
        return path == self.root or path.startswith(self.root.rstrip(os.sep) + os.sep)

    def _list(self, folder: str) -> tuple[str, dict[str, bool] | None]:
        """Returns (real path, {file name: is it a link}); None instead if it lies outside."""
        real = os.path.realpath(folder)
        if not self.contains(real):
            return real, None
        if not os.path.isdir(real):
            return real, {}
        with os.scandir(real) as entries:
            return real, {entry.name: entry.is_symlink() for entry in entries if _is_file(entry)}


def key(name: str) -> str:
    """Returns what names have in common that another system would not tell apart.

    Windows knows no upper and lower case, Macs take letters and their accents apart.
    """
    return unicodedata.normalize("NFC", name).casefold()


def as_typed(path: str) -> str:
    """Returns a path as one would type it here: from the working folder on, if it lies below."""
    near = os.path.relpath(path)
    return path if near.startswith(os.pardir) else near


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads in a circle
        return False


# Files that are something else than their name says, known by how they begin.

HEAD_BYTES = 512
LFS = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype html", b"<html", b"<head", b"<script")


def describe_head(head: bytes) -> str | None:
    """Returns "a web page: download ..." for a file that begins so, None where nothing is known."""
    if head.startswith(LFS):
        return "a Git LFS pointer: run 'git lfs pull' where it was cloned"
    begins = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if begins.startswith(PAGES):
        return "a web page: download the file itself"
    return None


def describe_file(path: str | os.PathLike[str]) -> str | None:
    """Returns `describe_head` of a file; None for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return describe_head(file.read(HEAD_BYTES))
    except OSError:
        return None
