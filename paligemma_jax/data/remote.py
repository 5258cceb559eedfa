"""Images that lie elsewhere, gs:// s3:// https:// http://, read through fsspec.

gcsfs, s3fs and aiohttp do the work and find the user's credentials; what is missing is said. A
connection that breaks is tried again, what the server refuses is not. What does not end, in time
or in bytes, is given up.
"""

import re
import time
import urllib.parse
from typing import Any

import fsspec
import fsspec.asyn

from paligemma_jax.wording import phrases

# By the scheme of an address: the package that fsspec needs for it.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "https": "aiohttp", "http": "aiohttp"}
ATTEMPTS = 4
WAIT_S = 0.5  # before the second attempt; twice as long before each further one
DEADLINE_S = 60.0  # for one file
MAX_BYTES = 2**28  # of one file
CHUNK = 2**18
RETRIED = {408, 429, *range(500, 600)}


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
        missing; or it takes longer than DEADLINE_S, or has more than MAX_BYTES. Addresses are shown
        without user and query, which may hold keys.
    """
    scheme, problem = address.partition("://")[0], ""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            system, path = fsspec.url_to_fs(address)
            return _fetch(system, path)
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
            else:
                time.sleep(WAIT_S * 2 ** (attempt - 1))
    # Not chained: a client's error may show an address that is signed with a key.
    raise RemoteError(f"{public(address)}: {problem}") from None


class _TooLargeError(Exception):
    """A file has more than MAX_BYTES."""


def _fetch(system: Any, path: str) -> bytes:
    """Returns the bytes of a file, as far as deadline and size allow."""
    if not isinstance(system, fsspec.asyn.AsyncFileSystem):
        return system.cat_file(path)
    read = _read_stream if hasattr(system, "encode_url") else _read_object
    return fsspec.asyn.sync(system.loop, read, system, path, timeout=DEADLINE_S)


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
