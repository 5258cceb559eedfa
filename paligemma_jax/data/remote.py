"""Images that lie elsewhere, gs:// s3:// https:// http://, read through fsspec.

gcsfs, s3fs and aiohttp do the work and find the user's credentials; what is missing is said. A
connection that breaks is tried again, what the server refuses is not.
"""

import re
import time
import urllib.parse

import fsspec

# "::" would let an address name another one inside it, a local file among them.
ADDRESS = r"(gs|s3|https?)://([^:]|:[^:])+"
ATTEMPTS = 4
WAIT_S = 0.5  # before the second attempt; twice as long before each further one
RETRIED = {408, 429, *range(500, 600)}
PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "https": "aiohttp", "http": "aiohttp"}


class RemoteError(ValueError):
    """What lies at an address cannot be had; the message names the address and the reason."""


def is_address(path: str) -> bool:
    """Tells an address from a local path."""
    return "://" in path and re.fullmatch(ADDRESS, path) is not None


def read(address: str) -> bytes:
    """Returns the bytes of what lies at an address.

    Raises:
      RemoteError: it is not there, not allowed or not to be had in four attempts, or a package is
        missing. Addresses are shown without user and query, which may hold keys.
    """
    scheme, problem = address.partition("://")[0], ""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            system, path = fsspec.url_to_fs(address)
            return system.cat_file(path)
        except ImportError:
            problem = f"{scheme}:// needs a package: pip install {PACKAGES[scheme]}"
            break
        except FileNotFoundError:
            problem = "it is not there"
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


def public(address: str) -> str:
    """Returns an address without user, password, query and fragment."""
    parts = urllib.parse.urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))
