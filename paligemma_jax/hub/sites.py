"""The sites that addresses point to: how each is asked for a file, and where it keeps one.

Kaggle's and Hugging Face's files come through their own clients, which keep caches of their own
(KAGGLEHUB_CACHE, HF_HOME), show their own progress and read keys from their usual places. What
https and gs fetch is kept in our cache folder. No key appears in a message.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
import urllib.parse
from collections.abc import Callable
from typing import NoReturn

import fsspec
import fsspec.callbacks
import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors

from paligemma_jax.checkpoints import npz_members
from paligemma_jax.files import atomic, large_files
from paligemma_jax.hub import download
from paligemma_jax.params import released_models

Progress = download.Progress

CACHE_ENV = "PALIGEMMA_JAX_CACHE"
DEFAULT_CACHE = "~/.cache/paligemma_jax"


@dataclasses.dataclass(frozen=True)
class Site:
    """How to get the files of one kind of address.

    Attributes:
      fetch: (address, our cache folder, progress) -> the file. Raises `download.DownloadError`.
      find: address -> where the file is, or would be; None: it is not here. Asks no network.
      cache: () -> the folder that files are fetched into.
    """

    fetch: Callable[[str, pathlib.Path, Progress | None], pathlib.Path]
    find: Callable[[str], pathlib.Path | None]
    cache: Callable[[], pathlib.Path]


@dataclasses.dataclass(frozen=True)
class Login:
    """What a site that wants a key is called, and how to get one."""

    host: str
    how: str


LOGINS = {
    "kaggle": Login(
        "www.kaggle.com",
        "create a token at https://www.kaggle.com/settings and set KAGGLE_USERNAME and KAGGLE_KEY "
        "(or KAGGLE_API_TOKEN), or put kaggle.json into ~/.kaggle",
    ),
    "hf": Login(
        "huggingface.co",
        "create a token at https://huggingface.co/settings/tokens and set HF_TOKEN, or run `hf "
        "auth login` (~/.cache/huggingface/token)",
    ),
}


def has_credentials() -> dict[str, bool]:
    """Returns for each of `LOGINS` whether a key is found. Asks no network."""
    import kagglehub.config

    return {
        "kaggle": kagglehub.config.get_kaggle_credentials() is not None,
        "hf": huggingface_hub.get_token() is not None,
    }


def tell_failure(host: str, status: int | None) -> str:
    """Returns what is wrong with a site of which neither key nor file is to blame."""
    if status is None:
        return f"{host} cannot be reached or is out of order; is there a network?"
    return f"{host} answers {status}; try again later"


def _refuse(source: str, status: int | None, *, page: str, listing: str) -> NoReturn:
    """Raises the error that tells what is missing: a key, the licence, the file, the network.

    Args:
      source: the address that was asked for.
      status: the site's answer; None if it gave none.
      page: where the licence is accepted and the files are listed.
      listing: a sentence on the files that are known to be there, or "".
    """
    scheme = source.partition("://")[0]
    login, has_key = LOGINS[scheme], has_credentials()[scheme]
    licence = f"open {page} with your account and accept the licence"
    if status in (401, 403) and not has_key:
        advice = f"no key for {login.host} is found: {login.how}; then {licence}"
    elif status == 401:
        advice = f"{login.host} does not accept your key: {login.how}"
    elif status == 403:
        advice = f"not allowed for your key: {licence}, and check the name.{listing}"
    elif status == 404:
        advice = f"no such file (or revision), see {page}.{listing}"
    else:
        advice = tell_failure(login.host, status)
    raise download.DownloadError(f"{source}: {advice}", status=status)


# Kaggle


def _parse_kaggle(source: str) -> tuple[str, str, str]:
    """Returns (model, "/version" or "", file) of an address."""
    match = re.fullmatch(r"kaggle://((?:[^/]+/){3}[^/]+)(/\d+)?(?:/(.+))?", source)
    if not match:
        raise ValueError(f"'{source}': expected kaggle://OWNER/MODEL/FRAMEWORK/VARIATION/FILE")
    if not match[3]:
        raise ValueError(f"'{source}' holds several files: add one.{_list_published(match[1])}")
    return match[1], match[2] or "", match[3]


def _list_published(model: str) -> str:
    """Returns which files of a Kaggle model are published, as a sentence."""
    start = f"kaggle://{model}/"
    sources = [entry.sources[0] for entry in released_models.FILES.values()]
    files = [source.rpartition("/")[2] for source in sources if source.startswith(start)]
    return f" Files: {', '.join(files)}" if files else ""


def _find_on_kaggle(source: str) -> pathlib.Path | None:
    import kagglehub.cache
    import kagglehub.handle

    model, version, file = _parse_kaggle(source)
    handle = kagglehub.handle.parse_model_handle(model + version)
    # Without a version kagglehub asks which is the newest.
    path = kagglehub.cache.Cache().load_from_cache(handle, file) if version else None
    return pathlib.Path(path) if path else None


def _fetch_from_kaggle(
    source: str, folder: pathlib.Path, progress: Progress | None
) -> pathlib.Path:
    del folder, progress  # kagglehub has its own
    import kagglehub
    import kagglehub.exceptions

    model, version, file = _parse_kaggle(source)
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
    _refuse(source, status, page=page, listing=_list_published(model))


def _kaggle_cache() -> pathlib.Path:
    import kagglehub.config

    return pathlib.Path(kagglehub.config.get_cache_folder())


# Hugging Face


def _parse_hugging_face(source: str) -> tuple[str, str, str | None]:
    """Returns (repository, file, revision) of an address."""
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/([^@]+)(?:@([^@]+))?", source)
    if not match:
        hint = released_models.describe_repository(source.removeprefix("hf://"))
        expected = "expected hf://OWNER/REPOSITORY/FILE or .../FILE@REVISION"
        raise ValueError(f"'{source}': {expected}" + (f"; {hint}" if hint else ""))
    return match[1], match[3], match[2] or match[4]


def _find_on_hugging_face(source: str) -> pathlib.Path | None:
    repository, file, revision = _parse_hugging_face(source)
    path = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
    return pathlib.Path(path) if isinstance(path, str) else None


def _fetch_from_hugging_face(
    source: str, folder: pathlib.Path, progress: Progress | None
) -> pathlib.Path:
    del folder, progress  # huggingface_hub has its own
    repository, file, revision = _parse_hugging_face(source)
    errors = huggingface_hub.errors
    listing = ""
    try:
        # Without a network the client would try again for half a minute.
        is_here = _find_on_hugging_face(source) is not None
        if not is_here and not download.has_route(huggingface_hub.constants.ENDPOINT):
            raise errors.OfflineModeIsEnabled
        return pathlib.Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        status = None
    except errors.GatedRepoError:
        status = 403
    except errors.EntryNotFoundError:
        status, listing = 404, _list_repository(repository, revision)
    except OSError as error:
        if error.errno is not None:  # the disk, not the network
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
    _refuse(source, status, page=f"https://huggingface.co/{repository}", listing=listing)


def _list_repository(repository: str, revision: str | None) -> str:
    try:
        files = huggingface_hub.list_repo_files(repository, revision=revision)
    except Exception:  # the list would only have helped
        return ""
    return f" Files: {', '.join(sorted(files))}"


# https and gs


def own_cache() -> pathlib.Path:
    """Returns the folder that keeps what https and gs fetch, and what is computed once."""
    return pathlib.Path(os.environ.get(CACHE_ENV) or DEFAULT_CACHE).expanduser()


def remove_damaged(source: str) -> pathlib.Path | None:
    """Removes the npz file that https or gs fetched into our cache if it is cut off.

    Returns where it was; None where nothing is removed. Other caches are their programs' own.
    """
    if source.partition("://")[0] not in ("gs", "s3", "https", "http"):
        return None
    path = _find_in_own_cache(source)
    if path.suffix != ".npz" or not path.exists() or npz_members.is_whole(path):
        return None
    path.unlink()
    return path


def _place_in(folder: pathlib.Path, source: str) -> pathlib.Path:
    """Returns where our cache folder keeps a file; an address that would leave it is an error."""
    scheme, _, rest = source.partition("://")
    if scheme in ("gs", "s3"):
        bucket, _, name = rest.partition("/")
        parts = (scheme, bucket, name)
    else:
        url = urllib.parse.urlsplit(source)
        extra = url.query + url.fragment
        tag = hashlib.sha256(extra.encode()).hexdigest()[:12] if extra else ""
        parts = ("https", url.netloc.rpartition("@")[2].replace(":", "_"), tag, url.path)
    steps = [step for part in parts for step in part.split("/") if step]
    if ".." in steps or not parts[-1].strip("/") or parts[-1].endswith("/"):
        raise ValueError(f"'{download.public(source)}': expected the address of a file")
    return folder.joinpath(*steps)


def _find_in_own_cache(source: str) -> pathlib.Path:
    return _place_in(own_cache(), source)


def _fetch_from_web(source: str, folder: pathlib.Path, progress: Progress | None) -> pathlib.Path:
    def explain(error: download.DownloadError) -> None:
        advice = "for Kaggle and Hugging Face use kaggle:// and hf:// addresses"
        raise download.DownloadError(
            f"{error}: it needs a login; {advice}", status=error.status
        ) from None

    return _fetch_once(source, _place_in(folder, source), progress, if_refused=explain)


def _fetch_from_google_storage(
    source: str, folder: pathlib.Path, progress: Progress | None
) -> pathlib.Path:
    name, place = source.removeprefix("gs://"), _place_in(folder, source)
    endpoint = os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com")
    url = f"{endpoint}/{urllib.parse.quote(name)}"
    return _fetch_once(url, place, progress, if_refused=lambda _: _fetch_private(name, place))


def _fetch_once(
    url: str,
    place: pathlib.Path,
    progress: Progress | None,
    *,
    if_refused: Callable[[download.DownloadError], None],
) -> pathlib.Path:
    """Returns `place`, or the first of all its parts, fetched unless it is there.

    `if_refused` gets the error of a server that wants a login, and writes the file or raises.
    """
    with download.alone(place, progress):
        first, *_ = large_files.find_parts(place)
        if place.exists() or (first.exists() and npz_members.is_whole(first)):
            return first
        try:
            download.fetch(url, place, progress=progress)
        except download.DownloadError as error:
            if error.status not in (401, 403):
                raise
            if_refused(error)
        return place


def _fetch_private(name: str, place: pathlib.Path) -> None:
    """Fetches an object with the user's Google credentials, as gcsfs finds them."""
    login = "`gcloud auth application-default login`"
    try:
        with atomic.new_file(place) as unfinished:
            fsspec.filesystem("gs").get_file(name, os.fspath(unfinished))
    except ImportError:
        problem, status = f"is not public: pip install gcsfs, then run {login}", 403
    except FileNotFoundError:
        problem, status = "is not there, or not for your account: check the name", 404
    except Exception as error:  # gcsfs, google-auth and aiohttp raise their own
        problem, status = (
            f"is not public, and your Google credentials do not open it ({type(error).__name__}): "
            f"run {login}, or set GOOGLE_APPLICATION_CREDENTIALS to the key file of an account "
            f"that may read it",
            403,
        )
    else:
        return
    raise download.DownloadError(f"gs://{name} {problem}", status=status)


def _fetch_from_s3(source: str, folder: pathlib.Path, progress: Progress | None) -> pathlib.Path:
    """Fetches an object with the user's credentials, as s3fs finds them, or without any."""
    place, report = _place_in(folder, source), progress or (lambda _, __: None)
    hooks = {"": lambda size, value, **_: report(value, size or 0)}
    callback = fsspec.callbacks.Callback(hooks=hooks)
    problem, status = "", None
    with download.alone(place, progress):
        if place.exists():
            return place
        try:
            with atomic.new_file(place) as unfinished:
                system, path = fsspec.url_to_fs(source)
                system.get_file(path, os.fspath(unfinished), callback=callback)
            return place
        except ImportError:
            problem = "needs the package s3fs: pip install 'paligemma-jax[s3]'"
        except FileNotFoundError:
            problem, status = "is not there, or not for your account: check the name", 404
        except Exception as error:  # botocore and aiohttp raise their own
            problem, status = (
                f"cannot be had ({type(error).__name__}): AWS_PROFILE or AWS_ACCESS_KEY_ID and "
                f"AWS_SECRET_ACCESS_KEY say who you are, AWS_ENDPOINT_URL where the server is",
                403,
            )
    # Not chained: a client's error may show an address that is signed with a key.
    raise download.DownloadError(f"{source} {problem}", status=status)


_WEB = Site(_fetch_from_web, _find_in_own_cache, own_cache)
# By the scheme of an address.
SITES = {
    "kaggle": Site(_fetch_from_kaggle, _find_on_kaggle, _kaggle_cache),
    "hf": Site(
        _fetch_from_hugging_face,
        _find_on_hugging_face,
        lambda: pathlib.Path(huggingface_hub.constants.HF_HUB_CACHE),
    ),
    "gs": Site(_fetch_from_google_storage, _find_in_own_cache, own_cache),
    "s3": Site(_fetch_from_s3, _find_in_own_cache, own_cache),
    "https": _WEB,
    "http": _WEB,
}
