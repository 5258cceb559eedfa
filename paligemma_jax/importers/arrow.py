"""Parquet and Arrow files with the images inside, as Hugging Face's datasets writes them.

A parquet file, a folder of them (train-00000-of-00002.parquet), or a folder that save_to_disk
wrote: data-*.arrow, or such a folder per split beside dataset_dict.json. An image is {"bytes",
"path"}, bytes alone, or a path relative to SRC. Read with pyarrow, batch by batch; nothing is
unpickled, no code of the data set is run, and the package datasets is not needed.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

from paligemma_jax.data import locations
from paligemma_jax.importers import columns, example, pictures, source_files
from paligemma_jax.tasks import definition
from paligemma_jax.wording import phrases

NUM_SAMPLED = 40  # rows that tell where images lie
BATCH_ROWS = 64  # decoded at a time: images are large
SUFFIX_OF = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"BM": ".bmp"}


def detect(path: str) -> str | None:
    """Returns the file that shows that a path is parquet or Arrow, or None."""
    return next((file for _, file in _files(path)), None)


def read(
    request: example.Request, tally: example.Tally, progress: example.Progress
) -> example.DataSet:
    """Returns the data set; its rows are read while going through them.

    Raises:
      ValueError: pyarrow is not installed, no such file, or a file that it cannot read.
    """
    del progress  # rows are read while they are written, which reports
    files = _files(request.path)
    if not files:
        raise ValueError(f"{request.path}: no *.parquet and no *.arrow file")
    total = sum(count_rows(file) for _, file in files)
    if not total:
        raise ValueError(f"{request.path}: the files hold no rows")
    classes = _classes(files, request)
    chosen = columns.choose(_open(files[0][1])[0], request, files[0][1], columns=request.columns)
    searched = columns.describe_search(chosen, phrases.count(len(files), "files"))
    return example.DataSet(classes, _examples(files, request, tally, classes), total, searched)


def column_names(file: str) -> list[str]:
    """Returns the names of a file's columns."""
    return _open(file)[0]


def _classes(files: list[tuple[str | None, str]], request: example.Request) -> tuple[str, ...]:
    """Returns the classes of objects: those given, described, or found in the rows."""
    column = request.columns.get("objects", "objects")
    if request.classes or request.rule.source != definition.OBJECTS:
        return request.classes
    values: list[Any] = []
    for _, file in files:
        names, features, batches = _open(file, columns_only=[column])
        if column not in names:
            return ()
        if described := _labels(features.get(column)):
            return tuple(map(example.clean_name, described))
        for batch in batches:
            values += batch.column(column).to_pylist()
    return tuple(columns.class_names(values))


def _examples(
    files, request, tally: example.Tally, classes: tuple[str, ...]
) -> Iterator[example.Example]:
    folder = (
        pictures.open_folder(request.images)
        if request.images
        else pictures.find_folder(_sample_paths(files, request), request.root)
    )
    names_by_number = request.numbered(classes)
    done = 0
    for split, file in files:
        name = os.path.relpath(file, request.root)
        names, features, batches = _open(file)
        chosen = columns.choose(names, request, file, columns=request.columns)
        texts = [column for ours, column in chosen.items() if ours != "objects"]
        labels = {column: _labels(features.get(column)) for column in texts}
        first = done
        for batch in batches:
            for row in batch.select([n for n in names if n in _wanted(chosen)]).to_pylist():
                done += 1
                source = f"{name}: row {done - first}"
                row |= {c: _named(row[c], words) for c, words in labels.items() if words}
                picture = _picture(row[chosen["image"]], source, split, done, folder, tally)
                if picture is None:
                    continue
                made = columns.make(
                    row, chosen, picture, source, split, tally, names=names_by_number
                )
                if made:
                    yield made


def _sample_paths(files, request: example.Request) -> list[str]:
    """Returns the paths of some images; none where they are inside the files."""
    names, _, batches = _open(files[0][1])
    column = columns.choose(names, request, files[0][1], columns=request.columns)["image"]
    first = next(batches, None)  # a file may have no rows
    values = [] if first is None else first.column(column).slice(0, NUM_SAMPLED).to_pylist()
    paths = [v.get("path") if isinstance(v, dict) and not v.get("bytes") else v for v in values]
    return [path for path in paths if isinstance(path, str)]


def _wanted(chosen: dict[str, str]) -> set[str]:
    return {
        *chosen.values(),
        *columns.SCORE_KEYS,
        *(("width", "height", "objects") if "suffix" in chosen else ()),
    }


def _picture(
    value: Any,
    source: str,
    split: str | None,
    number: int,
    folder: locations.ImageFolder,
    tally: example.Tally,
) -> example.Picture | None:
    tally.read["rows"] += 1
    data, path = (
        (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    )
    if isinstance(data, str):
        data, path = None, data
    if isinstance(data, bytes):
        ending = next((e for start, e in SUFFIX_OF.items() if data.startswith(start)), ".img")
        ending = ".webp" if data[8:12] == b"WEBP" else ending
        return example.Picture(f"{split or 'rows'}-{number:07d}{ending}", data=data)
    if isinstance(path, str) and path:
        return pictures.locate(folder, path, source, tally)
    tally.drop("row", "without an image", source, f"found {value!r:.60}")
    return None


def _labels(feature: Any) -> list[str]:
    """Returns the names of a ClassLabel, alone or inside a list or structure; else []."""
    if isinstance(feature, list):
        feature = dict(enumerate(feature))
    if not isinstance(feature, dict):
        return []
    if feature.get("_type") == "ClassLabel":
        return feature.get("names") or []
    return next(filter(None, map(_labels, feature.values())), [])


def _named(value: Any, names: list[str]) -> Any:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _files(path: str) -> list[tuple[str | None, str]]:
    """Returns (split, file) in order: parquet anywhere below, else Arrow as save_to_disk has it."""
    if os.path.isfile(path):
        is_ours = path.lower().endswith((".parquet", ".arrow"))
        return [(columns.split_of(path), path)] if is_ours else []
    files: dict[str, list[tuple[str | None, str]]] = {".parquet": [], ".arrow": []}
    for folder, names in source_files.walk(path):
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            # What datasets computes beside the data is no data.
            if ending in files and not name.startswith("cache-"):
                file = os.path.join(folder, name)
                inside = "" if folder == path else os.path.relpath(folder, path)
                split = columns.split_of(name) or example.split_name(inside)
                files[ending].append((split, file))
    return files[".parquet"] or files[".arrow"]


def _open(
    file: str, columns_only: list[str] | None = None
) -> tuple[list[str], dict[str, Any], Iterator[Any]]:
    """Returns the columns, Hugging Face's description of them, and the batches of a file."""
    arrow = _pyarrow()
    try:
        if file.lower().endswith(".parquet"):
            opened = arrow.parquet.ParquetFile(file)
            schema, batches = (
                opened.schema_arrow,
                opened.iter_batches(BATCH_ROWS, columns=columns_only),
            )
        else:
            opened = arrow.ipc.open_stream(arrow.memory_map(file))
            schema, batches = opened.schema, _slices(opened)
    except (arrow.ArrowInvalid, OSError) as error:
        kind = locations.describe_file(file)
        reason = f"it is {kind}" if kind else f"pyarrow cannot read it: {error}"
        raise ValueError(f"{file}: {reason}") from error
    features = _features((schema.metadata or {}).get(b"huggingface", b"{}"), file)
    return schema.names, features, batches


def _features(description: bytes, file: str) -> dict[str, Any]:
    """Returns Hugging Face's description of the columns: {column: what it holds}."""
    try:
        value = json.loads(description)
        for key in ("info", "features"):
            value = value.get(key) or {}
        return dict(value)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{file}: its entry 'huggingface' is no description of columns ({error}); write the "
            f"file again without it, and name classes by --classes"
        ) from error


def _slices(batches: Any) -> Iterator[Any]:
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


def count_rows(file: str) -> int:
    """Returns how many rows a file holds."""
    arrow = _pyarrow()
    try:
        if file.lower().endswith(".parquet"):
            return arrow.parquet.read_metadata(file).num_rows
        with arrow.memory_map(file) as opened:
            return sum(batch.num_rows for batch in arrow.ipc.open_stream(opened))
    except (arrow.ArrowInvalid, OSError) as error:
        kind = locations.describe_file(file)
        reason = f"it is {kind}" if kind else f"pyarrow cannot read it: {error}"
        raise ValueError(f"{file}: {reason}") from error


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            "parquet and Arrow files are read with pyarrow: pip install 'paligemma-jax[parquet]'"
        ) from error
    return pyarrow
