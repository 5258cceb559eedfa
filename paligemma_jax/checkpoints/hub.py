"""Where checkpoints come from: a name, an address or a path in, a local file out.

    pt_224.f16                                      big_vision's names of the released files
    kaggle://google/paligemma/jax/NAME/FILE         through kagglehub
    hf://google/NAME-jax/FILE@REVISION              through huggingface_hub
    gs://BUCKET/OBJECT                              public objects by https, others through gcsfs
    https://HOST/FILE#sha256=...                    the checksum is optional
    ~/weights/pt_224.npz                            a path

FILE.npz may be published in parts, FILE.npz.part0 and so on: they are fetched one by one, the first
one stands for all, and they are read as one file (`part_files`).

What https and gs fetch is kept in the cache folder; Kaggle's and Hugging Face's clients keep caches
of their own (KAGGLEHUB_CACHE, HF_HOME) and show their own progress. Keys are read by the clients
from their usual places and appear in no message.
"""

import dataclasses
import http
import os
import pathlib
import re
from collections.abc import Callable
from typing import NoReturn

import huggingface_hub
import huggingface_hub.errors
import kagglehub
import kagglehub.config
import kagglehub.exceptions

from paligemma_jax.checkpoints import (
    download,
    hub_web,
    part_files,
    published,
    zipped_arrays,
)
from paligemma_jax.params import names

Progress = Callable[[int, int], None]  # bytes done, bytes in all

CACHE_ENV = "PALIGEMMA_JAX_CACHE"
DEFAULT_CACHE = "~/.cache/paligemma_jax"
FOLDER_ENV = "BV_GEMMA_DIR"  # big_vision's: a folder (or an address) that holds published files


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
    folder = pathlib.Path(cache_dir or os.environ.get(CACHE_ENV) or DEFAULT_CACHE).expanduser()
    if source in published.FILES:
        return _resolve_published(source, folder, progress)
    scheme, separator, _ = source.partition("://")
    if not separator:
        return _find_local(source)
    if scheme not in FETCHERS:
        known = ", ".join(f"{name}://" for name in FETCHERS)
        raise ValueError(f"'{download.public(source)}': expected a path or one of {known}")
    return _fetch(source, folder, progress)


def has_credentials() -> dict[str, bool]:
    """Returns for "kaggle" and "hf" whether a key is found. Looks at no network."""
    return {
        "kaggle": kagglehub.config.get_kaggle_credentials() is not None,
        "hf": huggingface_hub.get_token() is not None,
    }


def _fetch(source: str, folder: pathlib.Path, progress: Progress | None) -> pathlib.Path:
    """Fetches what an address names, its parts where it is published so."""
    fetch = FETCHERS[source.partition("://")[0]]
    if part := re.fullmatch(r"(.+\.npz\.part)([0-9]+|[a-z]{2})([@?].*)?", source):
        suffix = "aa" if part[2].isalpha() else "0" * len(part[2])
        around = part[1], part[3] or ""
        first = fetch(suffix.join(around), folder, progress)
        return _fetch_others(first, suffix, around, folder, progress)
    try:
        return fetch(source, folder, progress)
    except download.DownloadError as error:
        whole = re.fullmatch(r"(.+\.npz)([@?].*)?", source)
        if error.status != http.HTTPStatus.NOT_FOUND or not whole:
            raise
        around = f"{whole[1]}.part", whole[2] or ""
        for suffix in part_files.FIRST:
            try:
                first = fetch(suffix.join(around), folder, progress)
            except download.DownloadError:
                continue
            return _fetch_others(first, suffix, around, folder, progress)
        raise


def _fetch_others(
    first: pathlib.Path,
    suffix: str,
    around: tuple[str, str],
    folder: pathlib.Path,
    progress: Progress | None,
) -> pathlib.Path:
    """Fetches the parts behind the first one, until they end as a zip ends, and returns that one.

    Nothing says how many there are; and what is here already needs no network.
    """
    while not zipped_arrays.is_whole(first):
        suffix = part_files.after(suffix)
        source = suffix.join(around)
        try:
            FETCHERS[source.partition("://")[0]](source, folder, progress)
        except download.DownloadError as error:
            if error.status != http.HTTPStatus.NOT_FOUND:
                raise
            raise download.DownloadError(
                f"{download.public(source)} is not there, and the parts before it are no whole "
                f"file: publish it again, or choose another source",
                status=error.status,
            ) from None
    return first


def _resolve_published(name: str, folder: pathlib.Path, progress: Progress | None) -> pathlib.Path:
    entry = published.FILES[name]
    if given := os.environ.get(FOLDER_ENV):
        local = f"{given.rstrip('/')}/{entry.file}"
        if "://" in given or part_files.find(local)[0].exists():
            return resolve(local, cache_dir=folder, progress=progress)
    # The one with a key first; in the order of the table if both or none have one.
    found = has_credentials()
    failures = []
    for source in sorted(entry.sources, key=lambda source: not found[source.partition("://")[0]]):
        try:
            return resolve(source, cache_dir=folder, progress=progress)
        except download.DownloadError as error:
            failures.append(f"\n  {error}")
    raise download.DownloadError(
        f"'{name}' cannot be had:{''.join(failures)}\n  Or set {FOLDER_ENV} to a folder that holds "
        f"{entry.file}, or give a path"
    )


def _find_local(source: str) -> pathlib.Path:
    path = pathlib.Path(source).expanduser()
    first, *_ = part_files.find(path)
    if path.exists() or first.exists():
        return path if path.exists() else first
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = names.nearest(source, published.FILES) + names.nearest(path.name, beside)
    raise FileNotFoundError(
        f"'{source}' is neither a file nor a published name. "
        + (f"Nearest: {', '.join(near)}" if near else f"Names: {', '.join(published.FILES)}")
    )


def _from_kaggle(source: str, folder: pathlib.Path, progress: Progress | None) -> pathlib.Path:
    del folder, progress  # kagglehub has its own
    match = re.fullmatch(r"kaggle://((?:[^/]+/){3}[^/]+)(/\d+)?(?:/(.+))?", source)
    if not match:
        raise ValueError(f"'{source}': expected kaggle://OWNER/MODEL/FRAMEWORK/VARIATION/FILE")
    model, version, file = match[1], match[2] or "", match[3]
    if not file:
        raise ValueError(f"'{source}' holds several files: add one.{_known_files(model)}")
    try:
        return pathlib.Path(kagglehub.model_download(model + version, file))
    except kagglehub.exceptions.UnauthenticatedError:
        status = 401
    except kagglehub.exceptions.DataCorruptionError:
        problem = "what arrived is damaged (its md5 differs). Try again"
        raise download.DownloadError(f"{source}: {problem}") from None
    except OSError as error:
        if error.errno is not None:  # the disk, not the network
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
    # Not chained: the client's errors may show addresses that are signed with a key.
    page = "https://www.kaggle.com/models/" + "/".join(model.split("/")[:2])
    _refuse(source, KAGGLE, status, page, _known_files(model))


def _known_files(model: str) -> str:
    """Returns what the table knows to lie in a Kaggle model, as a sentence."""
    start = f"kaggle://{model}/"
    sources = [entry.sources[0] for entry in published.FILES.values()]
    files = [source.rpartition("/")[2] for source in sources if source.startswith(start)]
    return f" Files: {', '.join(files)}" if files else ""


def _from_hugging_face(
    source: str, folder: pathlib.Path, progress: Progress | None
) -> pathlib.Path:
    del folder, progress  # huggingface_hub has its own
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/([^@]+)(?:@([^@]+))?", source)
    if not match:
        raise ValueError(f"'{source}': expected hf://OWNER/REPOSITORY/FILE or .../FILE@REVISION")
    repository, file, revision = match[1], match[3], match[2] or match[4]
    errors = huggingface_hub.errors
    listing = ""
    try:
        return pathlib.Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        status = None
    except errors.GatedRepoError:
        status = 403
    except errors.EntryNotFoundError:
        status, listing = 404, _list_files(repository, revision)
    except OSError as error:
        if error.errno is not None:  # the disk, not the network
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
    _refuse(source, HUGGING_FACE, status, f"https://huggingface.co/{repository}", listing)


def _list_files(repository: str, revision: str | None) -> str:
    try:
        files = huggingface_hub.list_repo_files(repository, revision=revision)
    except Exception:  # the list would only have helped
        return ""
    return f" Files: {', '.join(sorted(files))}"


@dataclasses.dataclass(frozen=True)
class _Site:
    key: str  # its name in has_credentials
    host: str
    how: str


KAGGLE = _Site(
    "kaggle",
    "www.kaggle.com",
    "create a token at https://www.kaggle.com/settings and set KAGGLE_USERNAME and KAGGLE_KEY (or "
    "KAGGLE_API_TOKEN), or put kaggle.json into ~/.kaggle",
)
HUGGING_FACE = _Site(
    "hf",
    "huggingface.co",
    "create a token at https://huggingface.co/settings/tokens and set HF_TOKEN, or run `hf auth "
    "login` (~/.cache/huggingface/token)",
)


def _refuse(source: str, site: _Site, status: int | None, page: str, listing: str) -> NoReturn:
    """Raises the error that says what is missing: a key, the licence, the file, the network."""
    licence = f"open {page} with your account and accept the licence"
    if status in (401, 403) and not has_credentials()[site.key]:
        advice = f"no key for {site.host} is found: {site.how}; then {licence}"
    elif status == 401:
        advice = f"{site.host} does not accept your key: {site.how}"
    elif status == 403:
        advice = f"not allowed for your key: {licence}, and check the name.{listing}"
    elif status == 404:
        advice = f"no such file (or revision), see {page}.{listing}"
    elif status is None:
        advice = f"{site.host} cannot be reached or is out of order; is there a network?"
    else:
        advice = f"{site.host} answers {status}; try again later"
    raise download.DownloadError(f"{source}: {advice}", status=status)


FETCHERS = {
    "kaggle": _from_kaggle,
    "hf": _from_hugging_face,
    "gs": hub_web.from_google_storage,
    "https": hub_web.from_web,
    "http": hub_web.from_web,
}
