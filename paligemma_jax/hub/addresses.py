"""Where checkpoints come from: a name, an address or a path in, a local file out.

    pt_224.f16                                      big_vision's names of the released files
    tiny_base, tiny_base/tokenizer.model            files of the package's own base
    kaggle://google/paligemma/jax/NAME/FILE         through kagglehub
    hf://google/NAME-jax/FILE@REVISION              through huggingface_hub
    gs://BUCKET/OBJECT                              public objects by https, others through gcsfs
    s3://BUCKET/OBJECT                              through s3fs
    https://HOST/FILE#sha256=...                    the checksum is optional
    ~/weights/pt_224.npz                            a path

FILE.npz may be published in parts, FILE.npz.part0 and so on: they are fetched one by one, the first
one stands for all, and they are read as one file (`files.large_files`).
"""

import contextlib
import hashlib
import http
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

from paligemma_jax.checkpoints import checksums, npz, npz_members
from paligemma_jax.files import atomic, large_files, run_folder
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
    if shipped := find_shipped(source):
        return shipped
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
    if shipped := find_shipped(source):
        return shipped
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


def find_shipped(source: str) -> pathlib.Path | None:
    """Returns where a file of the package's own base is; None: no name of one."""
    place = released_models.SHIPPED_FILES.get(source)
    return pathlib.Path(__file__).parent / place if place else None


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
        *phrases.nearest(source, {**released_models.FILES, **released_models.SHIPPED_FILES}),
        *phrases.nearest(path.name, beside),
    ]
    is_name = path.parent == pathlib.Path() and not path.suffix
    others = (
        f"Names: {released_models.list_names()}" if is_name else "Nothing there is called alike"
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


# Weights in a folder: a run's are in its final.npz; those of transformers and PEFT are converted
# once, by the convert door in a process of its own, and kept in our cache.

CONVERTED = "converted"  # in our cache
ADAPTER = "adapter_config.json"  # in a folder of PEFT's
PARTS = ("*.safetensors", "*.json")  # what weights in a folder consist of

Around = Callable[[str], contextlib.AbstractContextManager[None]]


def npz_of_folder(
    folder: pathlib.Path,
    base: pathlib.Path | None,
    *,
    fetch: Callable[[str], pathlib.Path],
    working: Around,
) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Returns (npz file, its base) of weights in a folder.

    Args:
      folder: of a run, of transformers or of PEFT.
      base: npz file that the weights were trained from; None: of an adapter, the one that it names.
      fetch: the name or path of such a base -> npz file.
      working: shows, while its block runs, what is done.

    Raises:
      ValueError: no weights in the folder, or none that can be converted.
    """
    if (final := folder / run_folder.FINAL).exists():
        return final, base
    if (folder / run_folder.CONFIG).exists() and (folder / run_folder.METRICS).exists():
        raise ValueError(
            f"{folder}: a run that did not end, without {run_folder.FINAL}. Its command goes on "
            f"with it; or name one of its {run_folder.CHECKPOINTS}"
        )
    if not any(folder.glob("*.safetensors")):
        held = ", ".join(sorted(os.listdir(folder))[:8]) or "nothing"
        raise ValueError(
            f"{folder}: expected weights: a run ({run_folder.FINAL}), or *.safetensors of "
            f"transformers or PEFT; it holds {held}"
        )
    if (folder / ADAPTER).exists() and base is None:
        base = fetch(base_of_adapter(folder))
    needed = base if (folder / ADAPTER).exists() else None
    place = sites.own_cache() / CONVERTED / f"{folder.resolve().name}-{_tag(folder, needed)}.npz"
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic.exclusive(place.with_suffix(".lock")):
        if not _is_whole(place):
            with working(f"converting {folder}, kept as {place}"):
                _convert(folder, place, needed)
    return place, base


def base_of_adapter(folder: pathlib.Path) -> str:
    """Returns what an adapter names as its base: a released model's name of ours, or a folder.

    Raises:
      ValueError: it names another one, or none.
    """
    try:
        named = json.loads((folder / ADAPTER).read_text("utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / ADAPTER}: no JSON object ({error}): copy it") from error
    files = released_models.FILES
    ours = [name for name in files if released_models.hugging_face_name(name) == named]
    if ours:
        return ours[0]
    if isinstance(named, str) and pathlib.Path(named).is_dir():
        return named
    raise ValueError(
        f"{folder}: an adapter of PEFT on {named!r:.200}, which is neither a released model nor a "
        f"folder here: give its base, as --base or model_init_base"
    )


def _tag(folder: pathlib.Path, base: pathlib.Path | None) -> str:
    """Returns letters that change where what a folder holds, or the base, does."""
    files = sorted({file for pattern in PARTS for file in folder.glob(pattern)})
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    fingerprint = checksums.of_file(base) if base else ""
    text = json.dumps([os.path.abspath(folder), facts, fingerprint])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_whole(place: pathlib.Path) -> bool:
    """Whether a file that was converted before can be read; one that cannot is removed."""
    try:
        npz.read_header(place)
    except FileNotFoundError:
        return False
    except (ValueError, OSError):
        place.unlink()
        return False
    return True


def _convert(folder: pathlib.Path, place: pathlib.Path, base: pathlib.Path | None) -> None:
    """Writes the weights of a folder as an npz file, in a process that needs no accelerator."""
    package = pathlib.Path(__file__).parents[2]
    paths = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))
    words = [sys.executable, "-m", "paligemma_jax.convert", str(folder), str(place)]
    ended = subprocess.run(
        [*words, *(["--base", str(base)] if base else [])],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if ended.returncode:
        _, _, error = ended.stderr.rpartition("error: ")
        text = error.partition("\n(")[0].strip() or f"status {ended.returncode}"
        raise ValueError(f"{folder} cannot be converted: {text}")
