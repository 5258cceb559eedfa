"""Results of the checks of a large data set, kept for the next start.

An entry's name is a hash of all that it depends on (texts, tokenizer, settings), so nothing has to
be thrown away when one of them changes. Entries are some megabytes in $PALIGEMMA_JAX_CACHE/starts,
and may be deleted at any time.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from paligemma_jax.checkpoints import npz
from paligemma_jax.files import atomic
from paligemma_jax.hub import sites

# To be raised when a check becomes stricter or lengths are counted in another way.
VERSION = 1
# Smaller data sets are looked at again: that takes a second or two.
MIN_ROWS, MIN_BYTES = 20_000, 4 * 2**20


def name(what: str, parts: Iterable[bytes]) -> str:
    """Returns the name of the entry that depends on these bytes, in this order."""
    digest = hashlib.sha256()
    for part in (f"{what} {VERSION}".encode(), *parts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return f"{what}-{digest.hexdigest()[:32]}"


def hash_file(path: str | os.PathLike[str]) -> bytes:
    """Returns a hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def load(entry: str) -> dict[str, np.ndarray] | None:
    """Returns the arrays of an entry; None if there is none, or none that is whole."""
    path = _folder() / f"{entry}.npz"
    try:
        return npz.read(path) if path.exists() else None
    except (OSError, ValueError):
        return None


def store(entry: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps arrays; a disk that does not take them is no reason to stop a run."""
    path = _folder() / f"{entry}.npz"
    own = path.with_name(f"{entry}-{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.new_file(path, temporary=own):
            npz.write(own, arrays)
    except OSError:
        pass


def _folder() -> pathlib.Path:
    return sites.own_cache() / "starts"
