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

import http
import os
import pathlib
import re
from collections.abc import Callable

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors

from paligemma_jax.checkpoints import npz
from paligemma_jax.files import part_files
from paligemma_jax.hub import cached, download, hub_web, published, sites
from paligemma_jax.wording import near_misses

Progress = Callable[[int, int], None]  # bytes done, bytes in all


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
    folder = pathlib.Path(cache_dir or cached.own_cache())
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
    import kagglehub.config

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
    while not npz.is_whole(first):
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
    if given := os.environ.get(cached.FOLDER_ENV):
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
        f"'{name}' cannot be had:{''.join(failures)}\n  Or set {cached.FOLDER_ENV} to a folder "
        f"that holds {entry.file}, or give a path"
    )


def _find_local(source: str) -> pathlib.Path:
    path = pathlib.Path(source).expanduser()
    first, *_ = part_files.find(path)
    if path.exists() or first.exists():
        return path if path.exists() else first
    if hint := published.describe_repository(source):
        raise FileNotFoundError(f"'{source}': {hint}")
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = [
        *near_misses.nearest(source, published.FILES),
        *near_misses.nearest(path.name, beside),
    ]
    is_name = path.parent == pathlib.Path() and not path.suffix
    others = f"Names: {', '.join(published.FILES)}" if is_name else "Nothing there is called alike"
    raise FileNotFoundError(
        f"'{source}' is neither a file nor a published name. "
        + (f"Nearest: {', '.join(near)}" if near else others)
    )


def _from_kaggle(source: str, folder: pathlib.Path, progress: Progress | None) -> pathlib.Path:
    del folder, progress  # kagglehub has its own
    import kagglehub
    import kagglehub.exceptions

    model, version, file = cached.parse_kaggle(source)
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
    has_key = has_credentials()["kaggle"]
    sites.KAGGLE.refuse(source, status, page, cached.known_files(model), has_key=has_key)


def _from_hugging_face(
    source: str, folder: pathlib.Path, progress: Progress | None
) -> pathlib.Path:
    del folder, progress  # huggingface_hub has its own
    repository, file, revision = cached.parse_hugging_face(source)
    errors = huggingface_hub.errors
    listing = ""
    endpoint = huggingface_hub.constants.ENDPOINT
    try:
        # Without a network the client would try again for half a minute.
        if cached.find(source) is None and not download.has_route(endpoint):
            raise errors.OfflineModeIsEnabled
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
    page, has_key = f"https://huggingface.co/{repository}", has_credentials()["hf"]
    sites.HUGGING_FACE.refuse(source, status, page, listing, has_key=has_key)


def _list_files(repository: str, revision: str | None) -> str:
    try:
        files = huggingface_hub.list_repo_files(repository, revision=revision)
    except Exception:  # the list would only have helped
        return ""
    return f" Files: {', '.join(sorted(files))}"


FETCHERS = {
    "kaggle": _from_kaggle,
    "hf": _from_hugging_face,
    "gs": hub_web.from_google_storage,
    "https": hub_web.from_web,
    "http": hub_web.from_web,
}
