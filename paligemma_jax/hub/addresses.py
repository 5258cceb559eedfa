"""Where checkpoints come from: a name, an address or a path in, a local file out.

    pt_224.f16                                      big_vision's names of the released files
    kaggle://google/paligemma/jax/NAME/FILE         through kagglehub
    hf://google/NAME-jax/FILE@REVISION              through huggingface_hub
    gs://BUCKET/OBJECT                              public objects by https, others through gcsfs
    https://HOST/FILE#sha256=...                    the checksum is optional
    ~/weights/pt_224.npz                            a path

FILE.npz may be published in parts, FILE.npz.part0 and so on: they are fetched one by one, the first
one stands for all, and they are read as one file (`files.large_files`).
"""

import http
import os
import pathlib
import re

from paligemma_jax.checkpoints import npz_members
from paligemma_jax.files import large_files
from paligemma_jax.hub import download, sites
from paligemma_jax.params import released_models
from paligemma_jax.wording import phrases

Progress = download.Progress  # bytes done, bytes in all

FOLDER_ENV = "BV_GEMMA_DIR"  # big_vision's: a folder (or an address) that holds published files
# An address of an npz file: (what stands before ".part0", what stands after it).
WHOLE = re.compile(r"(.+\.npz)([@?].*)?")
PART = re.compile(r"(.+\.npz\.part)([0-9]+|[a-z]{2})([@?].*)?")


def resolve(
    source: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> pathlib.Path:
    """Returns the local path of a file, fetched the first time if it lies elsewhere.

    Args:
      source: a published name, an address or a path, as listed at the top of this file.
      cache_dir: where https and gs files are kept; None: $PALIGEMMA_JAX_CACHE, else
        ~/.cache/paligemma_jax.
      progress: called with bytes done and in all, for https and gs.

    Raises:
      ValueError: an address that is not understood.
      FileNotFoundError: neither a path nor a published name; near misses are shown.
      download.DownloadError: no key, a licence not accepted, no such file, no network: says which,
        and what to do.
    """
    source = os.fspath(source)
    folder = pathlib.Path(cache_dir or sites.own_cache())
    if source in released_models.FILES:
        return _resolve_published(source, folder, progress)
    scheme, separator, _ = source.partition("://")
    if not separator:
        return _resolve_path(source)
    if scheme not in sites.SITES:
        known = ", ".join(f"{name}://" for name in sites.SITES)
        raise ValueError(f"'{download.public(source)}': expected a path or one of {known}")
    return _resolve_address(source, folder, progress)


def find(source: str) -> pathlib.Path | None:
    """Returns where a file already is, of a published name, an address or a path; else None.

    Of a file that is there in parts, the first one is returned, as `resolve` does. Asks no network.
    """
    if source in released_models.FILES:
        entry = released_models.FILES[source]
        given = os.environ.get(FOLDER_ENV, "").rstrip("/")
        places = (*([f"{given}/{entry.file}"] if given else ()), *entry.sources)
        return next((path for place in places if (path := find(place))), None)
    if path := _find_one(source):
        return path
    if whole := WHOLE.fullmatch(source):
        for suffix in large_files.FIRST_SUFFIXES:
            first = _find_one(f"{whole[1]}.part{suffix}{whole[2] or ''}")
            if first and npz_members.is_whole(first):
                return first
    return None


def cache_of(source: str) -> pathlib.Path:
    """Returns the folder that a file of an address is fetched into."""
    return sites.SITES[source.partition("://")[0]].cache()


def _find_one(source: str) -> pathlib.Path | None:
    """Returns where the one file of an address or a path is, or None."""
    scheme, separator, _ = source.partition("://")
    site = sites.SITES.get(scheme, sites.SITES["https"])
    path = site.find(source) if separator else pathlib.Path(source).expanduser()
    return path if path and path.exists() else None


def _resolve_published(name: str, folder: pathlib.Path, progress: Progress | None) -> pathlib.Path:
    entry = released_models.FILES[name]
    if given := os.environ.get(FOLDER_ENV):
        local = f"{given.rstrip('/')}/{entry.file}"
        if "://" in given or large_files.find_parts(local)[0].exists():
            return resolve(local, cache_dir=folder, progress=progress)
    # The one with a key first; in the order of the table if both or none have one.
    has_key = sites.has_credentials()
    failures = []
    for source in sorted(entry.sources, key=lambda source: not has_key[source.partition("://")[0]]):
        try:
            return resolve(source, cache_dir=folder, progress=progress)
        except download.DownloadError as error:
            failures.append(f"\n  {error}")
    raise download.DownloadError(
        f"'{name}' cannot be had:{''.join(failures)}\n  Or set {FOLDER_ENV} to a folder "
        f"that holds {entry.file}, or give a path"
    )


def _resolve_path(source: str) -> pathlib.Path:
    path = pathlib.Path(source).expanduser()
    first, *_ = large_files.find_parts(path)
    if path.exists() or first.exists():
        return path if path.exists() else first
    if hint := released_models.describe_repository(source):
        raise FileNotFoundError(f"'{source}': {hint}")
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = [
        *phrases.nearest(source, released_models.FILES),
        *phrases.nearest(path.name, beside),
    ]
    is_name = path.parent == pathlib.Path() and not path.suffix
    others = (
        f"Names: {', '.join(released_models.FILES)}" if is_name else "Nothing there is called alike"
    )
    raise FileNotFoundError(
        f"'{source}' is neither a file nor a published name. "
        + (f"Nearest: {', '.join(near)}" if near else others)
    )


def _resolve_address(source: str, folder: pathlib.Path, progress: Progress | None) -> pathlib.Path:
    """Fetches what an address names, its parts where it is published so."""
    fetch = sites.SITES[source.partition("://")[0]].fetch
    if part := PART.fullmatch(source):
        suffix = "aa" if part[2].isalpha() else "0" * len(part[2])
        around = part[1], part[3] or ""
        first = fetch(suffix.join(around), folder, progress)
        return _fetch_other_parts(first, suffix, around, folder, progress)
    try:
        return fetch(source, folder, progress)
    except download.DownloadError as error:
        whole = WHOLE.fullmatch(source)
        if error.status != http.HTTPStatus.NOT_FOUND or not whole:
            raise
        around = f"{whole[1]}.part", whole[2] or ""
        for suffix in large_files.FIRST_SUFFIXES:
            try:
                first = fetch(suffix.join(around), folder, progress)
            except download.DownloadError:
                continue
            return _fetch_other_parts(first, suffix, around, folder, progress)
        raise


def _fetch_other_parts(
    first: pathlib.Path,
    suffix: str,
    around: tuple[str, str],
    folder: pathlib.Path,
    progress: Progress | None,
) -> pathlib.Path:
    """Fetches parts until they end as a zip ends, and returns the first one.

    No site tells how many there are. Parts that are here already need no network.

    Args:
      first: the first part, fetched.
      suffix: of the first part: "0", "00" or "aa".
      around: what stands before and after the suffix in the address of a part.
      folder, progress: as in `sites.Site`.
    """
    while not npz_members.is_whole(first):
        suffix = large_files.suffix_after(suffix)
        source = suffix.join(around)
        try:
            sites.SITES[source.partition("://")[0]].fetch(source, folder, progress)
        except download.DownloadError as error:
            if error.status != http.HTTPStatus.NOT_FOUND:
                raise
            raise download.DownloadError(
                f"{download.public(source)} is not there, and the parts before it are no whole "
                f"file: publish it again, or choose another source",
                status=error.status,
            ) from None
    return first
