"""What https:// and gs:// addresses name, kept in the cache folder."""

import os
import pathlib
import urllib.parse

import fsspec

from paligemma_jax.checkpoints import npz
from paligemma_jax.files import atomic, part_files
from paligemma_jax.hub import cached, download

Progress = download.Progress


def from_web(source: str, folder: pathlib.Path, progress: Progress | None) -> pathlib.Path:
    place = cached.place_of(source, folder)
    with download.alone(place, progress):
        if kept := _find_kept(place):
            return kept
        try:
            download.fetch(source, place, progress=progress)
        except download.DownloadError as error:
            if error.status not in (401, 403):
                raise
            advice = "for Kaggle and Hugging Face use kaggle:// and hf:// addresses"
            raise download.DownloadError(
                f"{error}: it needs a login; {advice}", status=error.status
            ) from None
        return place


def from_google_storage(
    source: str, folder: pathlib.Path, progress: Progress | None
) -> pathlib.Path:
    name, place = source.removeprefix("gs://"), cached.place_of(source, folder)
    endpoint = os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com")
    url = f"{endpoint}/{urllib.parse.quote(name)}"
    with download.alone(place, progress):
        if kept := _find_kept(place):
            return kept
        try:
            download.fetch(url, place, progress=progress)
        except download.DownloadError as error:
            if error.status not in (401, 403):
                raise
            _fetch_private(name, place)
        return place


def _find_kept(place: pathlib.Path) -> pathlib.Path | None:
    """Returns what was fetched before: the file, or the first of all its parts."""
    if place.exists():
        return place
    first, *_ = part_files.find(place)
    return first if first.exists() and npz.is_whole(first) else None


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
