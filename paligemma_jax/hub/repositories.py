"""Data sets that lie elsewhere: what files they have, and those that are wanted, fetched.

    hf://OWNER/NAME                  a data set of Hugging Face, through huggingface_hub
    gs://BUCKET/FOLDER               public objects of Google Cloud Storage
    kaggle://OWNER/NAME              a data set of Kaggle, through kagglehub

A file that is here is not fetched again, and one that was cut goes on from there.
"""

import dataclasses
import json
import os
import pathlib
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors

from paligemma_jax.hub import download, sites

DATA = "data_sets"  # in our cache
CONVERTED = "refs/convert/parquet"  # where Hugging Face keeps what it made of other files
HUGGING_FACE = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@([^@]+))?")
KAGGLE = re.compile(r"kaggle://([\w.-]+/[\w.-]+)(?:/versions/(\d+))?")
SCRIPT = (".py",)
TIMEOUT_S, MOST_ANSWER = 30, 2**26
PAGE = 1000  # objects that are listed at a time

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a data set elsewhere.

    Attributes:
      path: inside the data set.
      size: in bytes.
    """

    path: str
    size: int


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a data set elsewhere holds.

    Attributes:
      files: of it.
      fetch: (file, folder) -> where it lies in the folder, fetched unless it is there.
      folder: in our cache, of this data set in this state.
      revision: which state that is, in words; "" where there is only one.
    """

    files: Sequence[File]
    fetch: Callable[[File, pathlib.Path], pathlib.Path]
    folder: pathlib.Path
    revision: str = ""


# Hugging Face


def list_hugging_face(repository: str, revision: str | None) -> Listing:
    """Returns the files of a data set, or what Hugging Face made of one that is a script.

    Raises:
      download.DownloadError: no such data set, no key, no network.
    """
    chosen = revision or "main"
    files = _tree(repository, chosen)
    is_script = not any(one.path.endswith((".parquet", ".jsonl", ".csv")) for one in files)
    if revision is None and is_script and any(one.path.endswith(SCRIPT) for one in files):
        chosen = CONVERTED
        files = _tree(repository, chosen)
    folder = sites.own_cache() / DATA / "hf" / repository / chosen.replace("/", "-")

    def fetch(file: File, place: pathlib.Path) -> pathlib.Path:
        errors = huggingface_hub.errors
        try:
            return pathlib.Path(
                huggingface_hub.hf_hub_download(
                    repository,
                    file.path,
                    repo_type="dataset",
                    revision=chosen,
                    local_dir=place,
                    endpoint=_endpoint(),
                )
            )
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
            _refuse(repository, None)
        except OSError as error:
            if error.errno is not None:  # the disk, not the network
                raise
            status = getattr(getattr(error, "response", None), "status_code", None)
            _refuse(repository, status)

    return Listing(files, fetch, folder, "" if chosen == "main" else chosen)


def _tree(repository: str, revision: str) -> list[File]:
    if not download.has_route(_endpoint()):
        _refuse(repository, None)
    api = huggingface_hub.HfApi(endpoint=_endpoint())
    try:
        entries = api.list_repo_tree(
            repository, repo_type="dataset", revision=revision, recursive=True
        )
        return [
            File(one.path, one.size)
            for one in entries
            if isinstance(one, huggingface_hub.hf_api.RepoFile)
        ]
    except huggingface_hub.errors.GatedRepoError:
        _refuse(repository, 403)
    except huggingface_hub.errors.RevisionNotFoundError:
        raise download.DownloadError(
            f"hf://{repository}: no revision '{revision}', so no parquet files either: download "
            f"the data set as its page says, and give the folder",
            status=404,
        ) from None
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        _refuse(repository, getattr(getattr(error, "response", None), "status_code", None))


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or huggingface_hub.constants.ENDPOINT).rstrip("/")


def _refuse(repository: str, status: int | None) -> NoReturn:
    """Raises the error that tells what is missing: a key, the terms, the data set, the network."""
    page, login = f"https://huggingface.co/datasets/{repository}", sites.LOGINS["hf"]
    has_key = sites.has_credentials()["hf"]
    if status in (401, 404) and not has_key:
        advice = f"no such data set, or it is not public and no key is found: {login.how}"
    elif status in (401, 403):
        advice = f"not allowed for your key: open {page} with your account and accept the terms"
    elif status == 404:
        advice = f"no such data set, or no such file in it: see {page}"
    else:
        advice = sites.tell_failure(login.host, status)
    raise download.DownloadError(f"hf://{repository}: {advice}", status=status)


# Google Cloud Storage


def list_google_storage(address: str) -> Listing:
    """Returns the public objects of a bucket, or those below a folder of it.

    Source: https://cloud.google.com/storage/docs/json_api/v1/objects/list

    Raises:
      download.DownloadError: no such bucket, not a public one, no network.
    """
    bucket, _, prefix = address.removeprefix("gs://").strip("/").partition("/")
    prefix = f"{prefix}/" if prefix else ""
    endpoint = os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com")
    files, token = [], ""
    while True:
        query = {"prefix": prefix, "maxResults": PAGE, "fields": "items(name,size),nextPageToken"}
        query |= {"pageToken": token} if token else {}
        place = urllib.parse.quote(bucket, safe="")
        answer = _ask(f"{endpoint}/storage/v1/b/{place}/o?{urllib.parse.urlencode(query)}", address)
        items = answer.get("items", [])
        names = [(str(one["name"]), int(one.get("size", 0))) for one in items]
        files += [File(n.removeprefix(prefix), size) for n, size in names if n[-1:] != "/"]
        token = answer.get("nextPageToken", "")
        if not token:
            break
    if not files:
        raise download.DownloadError(f"{address}: nothing lies there; check the name", status=404)
    steps = [bucket, *filter(None, prefix.split("/"))]

    def fetch(file: File, place: pathlib.Path) -> pathlib.Path:
        target = _inside(place, file.path, address)
        if target.exists() and target.stat().st_size == file.size:
            return target
        source = f"gs://{bucket}/{prefix}{file.path}"
        url = f"{endpoint}/{urllib.parse.quote(source.removeprefix('gs://'))}"
        with download.alone(target):
            if not target.exists() or target.stat().st_size != file.size:
                download.fetch(url, target)
        return target

    return Listing(files, fetch, sites.own_cache().joinpath(DATA, "gs", *steps))


def _inside(folder: pathlib.Path, path: str, address: str) -> pathlib.Path:
    """Returns where a file lies in a folder; a path that would leave it is an error."""
    steps = path.split("/")
    if ".." in steps or "" in steps or "\\" in path:
        raise ValueError(f"{address}: it holds {path!r}, which would leave its folder")
    return folder.joinpath(*steps)


def _ask(url: str, address: str) -> dict[str, Any]:
    """Returns the JSON object that a server answers with."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            parts = download.arriving(response, url, size=None, most=MOST_ANSWER)
            answer = json.loads(b"".join(parts))
    except urllib.error.HTTPError as error:
        error.close()
        reason = {
            401: "it is not public: fetch it with gsutil, and give the folder",
            403: "it is not public: fetch it with gsutil, and give the folder",
            404: "no such bucket",
        }.get(error.code, "try again later")
        raise download.DownloadError(
            f"{address}: {reason} (HTTP {error.code})", status=error.code
        ) from None
    except urllib.error.URLError as error:
        raise download.DownloadError(
            f"{address}: cannot be reached ({error.reason}); is there a network?"
        ) from None
    except ValueError:
        raise download.DownloadError(f"{address}: the server's answer is no JSON") from None
    return answer if isinstance(answer, dict) else {}


# Kaggle


def fetch_kaggle(name: str, version: str | None) -> pathlib.Path:
    """Returns the folder that kagglehub keeps a data set in, fetched unless it is there.

    Raises:
      download.DownloadError: no such data set, no key, no network.
    """
    import kagglehub
    import kagglehub.exceptions

    handle = f"{name}/versions/{version}" if version else name
    page, login = f"https://www.kaggle.com/datasets/{name}", sites.LOGINS["kaggle"]
    try:
        return pathlib.Path(kagglehub.dataset_download(handle))
    except kagglehub.exceptions.UnauthenticatedError:
        status = 401
    except OSError as error:
        if error.errno is not None:  # the disk, not the network
            raise
        status = getattr(getattr(error, "response", None), "status_code", None)
    # Not chained: the client's errors may show addresses that are signed with a key.
    if status in (401, 403) and not sites.has_credentials()["kaggle"]:
        advice = f"no key for {login.host} is found: {login.how}"
    elif status in (401, 403, 404):
        advice = f"no such data set, or not for your key: see {page}"
    else:
        advice = f"{login.host} cannot be reached or is out of order; is there a network?"
    raise download.DownloadError(f"kaggle://{name}: {advice}", status=status)
