"""Where the files of addresses are kept: found without asking a network.

What https and gs fetch lies in the cache folder; Kaggle's and Hugging Face's clients keep caches of
their own (KAGGLEHUB_CACHE, HF_HOME).
"""

import hashlib
import os
import pathlib
import re
import urllib.parse

import huggingface_hub
import huggingface_hub.constants

from paligemma_jax.checkpoints import npz
from paligemma_jax.files import part_files
from paligemma_jax.hub import download, published

CACHE_ENV = "PALIGEMMA_JAX_CACHE"
DEFAULT_CACHE = "~/.cache/paligemma_jax"
FOLDER_ENV = "BV_GEMMA_DIR"  # big_vision's: a folder (or an address) that holds published files


def own_cache() -> pathlib.Path:
    """Returns the folder that keeps what https and gs fetch."""
    return pathlib.Path(os.environ.get(CACHE_ENV) or DEFAULT_CACHE).expanduser()


def find(source: str) -> pathlib.Path | None:
    """Returns where a file already is, of a published name, an address or a path; else None.

    Of a file that is there in parts, the first one is returned, as `hub.resolve` does.
    """
    if source in published.FILES:
        entry = published.FILES[source]
        given = os.environ.get(FOLDER_ENV, "").rstrip("/")
        places = (*([f"{given}/{entry.file}"] if given else ()), *entry.sources)
        return next((path for place in places if (path := find(place))), None)
    if path := _find_one(source):
        return path
    if whole := re.fullmatch(r"(.+\.npz)([@?].*)?", source):
        for suffix in part_files.FIRST:
            first = _find_one(f"{whole[1]}.part{suffix}{whole[2] or ''}")
            if first and npz.is_whole(first):
                return first
    return None


def _find_one(source: str) -> pathlib.Path | None:
    """Returns where the one file of an address or a path is, or None."""
    scheme, separator, _ = source.partition("://")
    if not separator:
        path = pathlib.Path(source).expanduser()
    elif scheme == "kaggle":
        import kagglehub.cache
        import kagglehub.handle

        model, version, file = parse_kaggle(source)
        handle = kagglehub.handle.parse_model_handle(model + version)
        # Without a version kagglehub asks which is the newest.
        found = kagglehub.cache.Cache().load_from_cache(handle, file) if version else None
        path = pathlib.Path(found) if found else None
    elif scheme == "hf":
        repository, file, revision = parse_hugging_face(source)
        found = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
        path = pathlib.Path(found) if isinstance(found, str) else None
    else:
        path = place_of(source, own_cache())
    return path if path and path.exists() else None


def cache_of(source: str) -> pathlib.Path:
    """Returns the folder that a file of an address is fetched into."""
    scheme = source.partition("://")[0]
    if scheme == "kaggle":
        import kagglehub.config

        return pathlib.Path(kagglehub.config.get_cache_folder())
    return pathlib.Path(huggingface_hub.constants.HF_HUB_CACHE) if scheme == "hf" else own_cache()


def parse_kaggle(source: str) -> tuple[str, str, str]:
    """Returns (model, "/version" or "", file) of an address."""
    match = re.fullmatch(r"kaggle://((?:[^/]+/){3}[^/]+)(/\d+)?(?:/(.+))?", source)
    if not match:
        raise ValueError(f"'{source}': expected kaggle://OWNER/MODEL/FRAMEWORK/VARIATION/FILE")
    if not match[3]:
        raise ValueError(f"'{source}' holds several files: add one.{known_files(match[1])}")
    return match[1], match[2] or "", match[3]


def known_files(model: str) -> str:
    """Returns what the table knows to lie in a Kaggle model, as a sentence."""
    start = f"kaggle://{model}/"
    sources = [entry.sources[0] for entry in published.FILES.values()]
    files = [source.rpartition("/")[2] for source in sources if source.startswith(start)]
    return f" Files: {', '.join(files)}" if files else ""


def parse_hugging_face(source: str) -> tuple[str, str, str | None]:
    """Returns (repository, file, revision) of an address."""
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/]+))?/([^@]+)(?:@([^@]+))?", source)
    if not match:
        hint = published.describe_repository(source.removeprefix("hf://"))
        expected = "expected hf://OWNER/REPOSITORY/FILE or .../FILE@REVISION"
        raise ValueError(f"'{source}': {expected}" + (f"; {hint}" if hint else ""))
    return match[1], match[3], match[2] or match[4]


def place_of(source: str, folder: pathlib.Path) -> pathlib.Path:
    """Returns where the cache `folder` keeps a file of https or gs."""
    if source.startswith("gs://"):
        bucket, _, name = source.removeprefix("gs://").partition("/")
        return _inside(folder, source, "gs", bucket, name)
    parts = urllib.parse.urlsplit(source)
    extra = parts.query + parts.fragment
    tag = hashlib.sha256(extra.encode()).hexdigest()[:12] if extra else ""
    host = parts.netloc.rpartition("@")[2].replace(":", "_")
    return _inside(folder, source, "https", host, tag, parts.path)


def _inside(folder: pathlib.Path, source: str, *parts: str) -> pathlib.Path:
    """Returns the place of an address in the cache; one that would leave it is an error."""
    steps = [step for part in parts for step in part.split("/") if step]
    if ".." in steps or not parts[-1].strip("/") or parts[-1].endswith("/"):
        raise ValueError(f"'{download.public(source)}': expected the address of a file")
    return folder.joinpath(*steps)
