"""Downloads a file over http(s): resumes where it was cut, and verifies the server's checksum.

What has arrived lies beside the file's place as `.part`, with what must not change between two
attempts (`.part.json`). The file itself appears whole and checked, or not at all.
"""

import base64
import binascii
import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import pathlib
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator

from paligemma_jax.files import atomic

Progress = Callable[[int, int], None]  # bytes done, bytes in all; 0: the server does not say

CHUNK_BYTES = 2**20
TIMEOUT_S = 30
ATTEMPTS = 4  # in a row that bring nothing new
CONNECT_S = 10  # more than any server that is there takes to accept a connection
PORTS = {"http": 80, "https": 443}
WAIT_S = 1.0  # before the second attempt; twice as long before each further one
# A server that sends next to nothing is given up: no file arrives at such a rate.
LEAST_BYTES, LEAST_WITHIN_S = 2**16, 60.0
# Of a file whose size the server does not say, which may have no end. The largest published one has
# 55 GB; other files than weights and archives are small.
LARGE = re.compile(r"\.(npz|zip|safetensors)\b")
MOST_BYTES, MOST_BYTES_OF_LARGE, MOST_S = 10**9, 64 * 10**9, 12 * 3600.0
RETRIED = {408, 416, 429, 500, 502, 503, 504}
# What another attempt may mend. A full disk is not among these.
INTERRUPTIONS = (
    http.client.HTTPException,
    urllib.error.URLError,
    ssl.SSLError,
    ConnectionError,
    TimeoutError,
)


class DownloadError(OSError):
    """A file that could not be fetched. `status` is the server's answer, None if it gave none."""

    def __init__(self, message: str, *, status: int | None = None):
        super().__init__(message)
        self.status = status


class EndlessError(DownloadError):
    """Of a file whose size nobody knows so much came, or for so long, that it may have no end."""


@contextlib.contextmanager
def alone(path: pathlib.Path, progress: Progress | None = None) -> Iterator[None]:
    """Lets one process at a time fetch a file; the others wait and report how far that one is.

    Two that wrote the same `.part` would spoil it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    lock_file = partial.with_name(partial.name + ".lock")

    def report() -> None:
        known = _recall(partial)
        if progress and known:
            progress(_size(partial), known.size or 0)

    with atomic.exclusive(lock_file, waiting=report):
        try:
            yield
        finally:
            if path.exists():
                # Whoever still waits for the lock finds the file.
                with contextlib.suppress(OSError):
                    lock_file.unlink()


@dataclasses.dataclass(frozen=True)
class _Remote:
    """How the server described the file when its first byte was sent.

    validator: its ETag or date, which must be the same for the rest; None: it cannot be resumed.
    size: in bytes, None if unknown.
    checksum: (algorithm, hexadecimal digest, where it stands), None if there is none.
    """

    validator: str | None
    size: int | None
    checksum: tuple[str, str, str] | None


def fetch(url: str, path: pathlib.Path, *, progress: Progress | None = None) -> None:
    """Downloads a file to `path`, going on where an earlier attempt was cut.

    Args:
      url: http(s) address; a fragment `#sha256=...` is what the file must have.
      path: where the file goes; folders are made.
      progress: called with the bytes that are there, and in all.

    Raises:
      DownloadError: the server refuses, cannot be reached, keeps cutting the connection or sends
        next to nothing; or the checksum differs, or what arrives has no end (then nothing is kept).
        Addresses are shown without queries and users, which may hold keys.
      OSError: too little space on the disk.
      ValueError: an address with a password, or a fragment that is no checksum.
    """
    url, _, fragment = url.partition("#")
    if "@" in urllib.parse.urlsplit(url).netloc:
        raise ValueError(f"{public(url)}: an address with user or password is not understood")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    remote = _fetch_all(url, partial, progress)
    checksum = _from_fragment(fragment) or remote.checksum
    if checksum and (actual := _digest(partial, checksum[0])) != checksum[1]:
        _forget(partial)
        raise DownloadError(
            f"{public(url)}: its {checksum[0]} is {actual}, but {checksum[2]} says {checksum[1]}. "
            f"What arrived is deleted; download it again"
        )
    os.replace(partial, path)
    _forget(partial)


def public(url: str) -> str:
    """Returns an address without user, password, query and fragment: these may hold keys."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


def has_route(url: str) -> bool:
    """Whether the server of an address can be connected to, at the second attempt at least.

    Behind a proxy only the proxy knows: True.
    """
    if {"http", "https", "all"} & urllib.request.getproxies().keys():
        return True
    parts = urllib.parse.urlsplit(url)
    place = parts.hostname, parts.port or PORTS[parts.scheme]
    for wait_s in (WAIT_S, 0):
        try:
            socket.create_connection(place, timeout=CONNECT_S).close()
        except OSError:
            time.sleep(wait_s)
        else:
            return True
    return False


def _fetch_all(url: str, partial: pathlib.Path, progress: Progress | None) -> _Remote:
    """Asks for what is missing until it is there, or until nothing more comes."""
    failures = 0
    while True:
        before = _size(partial)
        try:
            remote = _fetch_some(url, partial, progress)
            if remote.size is None or _size(partial) == remote.size:
                return remote
            problem = "the connection was cut"
        except urllib.error.HTTPError as error:
            error.close()
            problem = f"the server answers {error.code} {error.reason}"
            if error.code not in RETRIED:
                raise DownloadError(f"{public(url)}: {problem}", status=error.code) from None
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                _forget(partial)
        except INTERRUPTIONS as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 1 if _size(partial) > before else failures + 1
        is_first = failures == 1 and not _size(partial)
        if failures >= ATTEMPTS or (is_first and not has_route(url)):
            kept = f"; {_size(partial) / 1e6:.1f} MB are here, the same command goes on from there"
            raise DownloadError(
                f"{public(url)}: {problem}{kept if _size(partial) else '; is there a network?'}"
            )
        time.sleep(WAIT_S * 2 ** (failures - 1))


def _fetch_some(url: str, partial: pathlib.Path, progress: Progress | None) -> _Remote:
    """Makes one request and appends what it brings."""
    known, start = _recall(partial), _size(partial)
    if known and known.size == start:
        return known
    headers = {"Accept-Encoding": "identity", "User-Agent": "paligemma_jax"}
    if known and known.validator and start:
        # The whole file comes instead if it is not the same any more.
        headers |= {"Range": f"bytes={start}-", "If-Range": known.validator}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        is_rest = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if known and is_rest and _is_rest_of(known, start, response.headers):
            remote = known
        elif is_rest:
            _forget(partial)
            raise http.client.HTTPException("the server sent another part than was asked for")
        else:
            remote, start = _describe(response.headers), 0
            _check_space(partial, remote.size)
            _note(partial).write_text(json.dumps(dataclasses.asdict(remote)))
        room = atomic.free_bytes(partial.parent)
        most = min(room, MOST_BYTES_OF_LARGE if LARGE.search(partial.name) else MOST_BYTES)
        try:
            with atomic.writing(partial), open(partial, "r+b" if is_rest else "wb") as file:
                file.seek(start)
                shown = start
                for chunk in arriving(response, url, size=remote.size, most=most):
                    file.write(chunk)
                    done = file.tell()
                    if progress and (done - shown >= CHUNK_BYTES or done == remote.size):
                        shown = done
                        progress(done, remote.size or 0)
        except EndlessError:
            _forget(partial)
            raise
    return remote


def arriving(
    response: http.client.HTTPResponse, url: str, *, size: int | None, most: int
) -> Iterator[bytes]:
    """Yields what a server sends, as it comes, as long as that leads to an end.

    Args:
      response: of the server.
      url: what was asked for.
      size: in bytes, of what is asked for; None: the server does not say.
      most: bytes that are taken where it does not.

    Raises:
      DownloadError: next to nothing comes. EndlessError: of unknown size, and too much or too long.
    """
    begun = since = time.monotonic()
    arrived = before = 0
    # Not `read`, which comes back with a whole piece only, however long that takes.
    while chunk := response.read1(CHUNK_BYTES):
        yield chunk
        arrived, now = arrived + len(chunk), time.monotonic()
        if now - since >= LEAST_WITHIN_S:
            if arrived - before < LEAST_BYTES:
                raise DownloadError(
                    f"{public(url)}: the server sent {arrived - before} bytes in "
                    f"{now - since:.0f} s; try again later, or take the file from elsewhere"
                )
            since, before = now, arrived
        if size is None and (arrived > most or now - begun > MOST_S):
            raise EndlessError(
                f"{public(url)}: the server does not say how large it is, and after "
                f"{arrived / 1e6:,.1f} MB in {now - begun:.0f} s there is no end (at most "
                f"{most / 1e6:,.1f} MB and {MOST_S / 3600:.0f} h are waited for). Nothing of it is "
                f"kept; check the address, or fetch the file yourself and give its path"
            )


def _is_rest_of(known: _Remote, start: int, headers: http.client.HTTPMessage) -> bool:
    same = _describe(headers).validator in (known.validator, None)
    return same and headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _describe(headers: http.client.HTTPMessage) -> _Remote:
    etag, size = headers.get("ETag"), headers.get("Content-Length")
    validator = headers.get("Last-Modified") if not etag or etag.startswith("W/") else etag
    return _Remote(validator, int(size) if size else None, _checksum(headers))


def _checksum(headers: http.client.HTTPMessage) -> tuple[str, str, str] | None:
    """Returns the md5 that a server gives: Google's header, Content-MD5, or an ETag that is one."""
    google = ",".join(headers.get_all("x-goog-hash", []))
    for name, encoded in (
        ("x-goog-hash", next(iter(re.findall(r"md5=([^,\s]+)", google)), None)),
        ("Content-MD5", headers.get("Content-MD5")),
    ):
        if encoded:
            try:
                return "md5", base64.b64decode(encoded, validate=True).hex(), name
            except binascii.Error:
                continue
    # Object stores use the md5 as ETag, except for what they keep encrypted with a key of its own.
    encrypted = headers.get("x-amz-server-side-encryption", "AES256") != "AES256"
    etag = re.fullmatch(r'"([0-9a-f]{32})"', headers.get("ETag", ""))
    return ("md5", etag[1], "ETag") if etag and not encrypted else None


def _from_fragment(fragment: str) -> tuple[str, str, str] | None:
    key, _, digest = fragment.partition("=")
    if not fragment:
        return None
    if key != "sha256" or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise ValueError(f"'#{fragment}': expected #sha256= and 64 hexadecimal digits")
    return "sha256", digest.lower(), "the address"


def _digest(path: pathlib.Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _check_space(partial: pathlib.Path, size: int | None) -> None:
    # What is there already will be overwritten.
    needed = (size or 0) - _size(partial)
    atomic.require_space(
        partial.parent, needed, what="the download", remedy="choose another folder"
    )


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _partial(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".part")


def _note(partial: pathlib.Path) -> pathlib.Path:
    return partial.with_name(partial.name + ".json")


def _recall(partial: pathlib.Path) -> _Remote | None:
    try:
        stored = json.loads(_note(partial).read_text())
        checksum = tuple(stored["checksum"]) if stored["checksum"] else None
        return _Remote(stored["validator"], stored["size"], checksum)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _forget(partial: pathlib.Path) -> None:
    partial.unlink(missing_ok=True)
    _note(partial).unlink(missing_ok=True)
