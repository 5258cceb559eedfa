"""JSONL with questions and answers, captions, boxes or suffixes; CSV with images and captions.

JSON that is one list of such rows is read as JSONL is, conversations too: see `conversations`.

One file, or a folder with one per split (metadata.jsonl of Hugging Face's ImageFolder too). Images
are relative to the file, to a folder below it, or to `--images`. Columns are recognized by usual
names, or by `--columns question=q,answer=a`. JSONL rows with image, prefix and suffix (our own
format) are taken as they are, with their objects. CSV has commas, semicolons, tabs or bars; a .txt
file is CSV if its first line names a column of images among others (Flickr8k's captions.txt).
"""

import csv
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from paligemma_jax.data import jsonl, locations
from paligemma_jax.importers import columns, conversations, example, json_kinds, pictures

JSONL = (".jsonl", ".json")
CSV = (".csv", ".tsv", ".txt")
DELIMITERS = ",;\t|"
MAX_HEADER = 10_000  # characters
NUM_SAMPLED = 40  # rows that tell where images lie
PROGRESS_ROWS = 1000

RowReader = Callable[[str, example.Tally], Iterator[tuple[int, dict[str, Any]]]]


def detect_jsonl(path: str) -> str | None:
    """Returns the file that shows that a path is JSONL, or None."""
    return next(iter(_files(path, JSONL)), None)


def detect_csv(path: str) -> str | None:
    """Returns the file that shows that a path is CSV, or None."""
    return next(iter(_files(path, CSV)), None)


def read_jsonl(
    request: example.Request, tally: example.Tally, progress: example.Progress
) -> example.DataSet:
    """Returns the data set of one or several JSONL files."""
    return _read(request, tally, progress, JSONL, jsonl_rows)


def read_csv(
    request: example.Request, tally: example.Tally, progress: example.Progress
) -> example.DataSet:
    """Returns the data set of one or several CSV files."""
    return _read(request, tally, progress, CSV, csv_rows)


def _read(request, tally, progress, endings, read_rows) -> example.DataSet:
    files = _files(request.path, endings)
    if not files:
        raise ValueError(f"{request.path}: no file that ends in {' or '.join(endings)}")
    folder = _open_images(request, request.root, files, read_rows)
    examples: list[example.Example] = []
    total, done = sum(map(_count_lines, files)), 0
    chosen: dict[str, str] = {}
    for path in files:
        chosen = {}
        for number, row in _flat_rows(path, request, read_rows, tally):
            if not chosen:
                where = f"{path}:{number}"
                chosen = columns.choose(row, request, where, columns=request.columns)
            source = f"{os.path.basename(path)}:{number}"
            split = columns.split_of(path)
            if made := _example(
                row, chosen, folder, source, split, tally, request.numbered(request.classes)
            ):
                examples.append(made)
            if number % PROGRESS_ROWS == 0:
                progress(done + number, total)
        done += _count_lines(path)
    made_here = (one.objects for one in examples if one.objects and one.suffix is None)
    classes = dict.fromkeys(label for objects in made_here for label in objects.labels)
    searched = columns.describe_search(chosen, ", ".join(map(os.path.basename, files)))
    return example.DataSet(request.classes or tuple(classes), examples, len(examples), searched)


def _open_images(
    request: example.Request, root: str, files: Sequence[str], read_rows: RowReader
) -> locations.ImageFolder:
    """Returns a finder of the images: in the folder given, in root, or where most of them lie."""
    if request.images:
        return pictures.open_folder(request.images)
    sample = itertools.islice(_image_names(request, files, read_rows), NUM_SAMPLED)
    return pictures.find_folder(sample, root)


def _flat_rows(
    path: str, request: example.Request, read_rows: RowReader, tally: example.Tally
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields (number, row) of a file; a conversation has a row for each answer."""
    for number, row in read_rows(path, tally):
        source = f"{os.path.basename(path)}:{number}"
        yield from ((number, one) for one in conversations.flatten(row, request, source, tally))


def _image_names(
    request: example.Request, files: Sequence[str], read_rows: RowReader
) -> Iterator[Any]:
    for path in files:
        chosen: dict[str, str] = {}
        for number, row in _flat_rows(path, request, read_rows, example.Tally()):
            if not chosen:
                where = f"{path}:{number}"
                chosen = columns.choose(row, request, where, columns=request.columns)
            yield columns.only_image(row.get(chosen["image"]))


def _example(
    row, chosen, folder, source, split, tally: example.Tally, names
) -> example.Example | None:
    tally.read["rows"] += 1
    name = columns.only_image(row.get(chosen["image"]))
    if not isinstance(name, str) or not name:
        detail = f"column '{chosen['image']}': expected a path, found {name!r:.60}"
        tally.drop("row", "without an image", source, detail)
        return None
    if held := conversations.decode_image(name):
        file, _, line = source.rpartition(":")
        picture = example.Picture(f"{os.path.splitext(file)[0]}-{line}{held[0]}", data=held[1])
    elif (picture := pictures.locate(folder, name, source, tally)) is None:
        return None
    return columns.make(row, chosen, picture, source, split, tally, names=names)


def jsonl_rows(path: str, tally: example.Tally) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (number, row) of the lines of a file, or of the members of its one JSON list."""
    if path.lower().endswith(".json"):
        for number, row in enumerate(_json_list(path), 1):
            if isinstance(row, dict):
                yield number, row
            else:
                tally.read["rows"] += 1
                source = f"{os.path.basename(path)}:{number}"
                tally.drop("row", "not an object", source, f"{row!r:.60}")
        return
    for number, line in jsonl.read_lines(path):
        row, problem = jsonl.parse_line(line)
        if row is not None:
            yield number, row
        elif problem:
            tally.read["rows"] += 1
            tally.drop("row", problem[0], f"{os.path.basename(path)}:{number}", problem[1])


def _json_list(path: str) -> list[Any]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: broken JSON: {error}") from error
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a JSON list of rows, found a {type(content).__name__}")
    return content


def csv_rows(path: str, tally: example.Tally) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (number of the row's last line, {column: text})."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            header = file.readline()
            if not header.strip():
                raise ValueError(f"{path}: the file is empty; expected a line of column names")
            file.seek(0)
            delimiter = max(DELIMITERS, key=header.count)
            # Nobody quotes where bars divide, so a quotation mark there is text.
            quoting = csv.QUOTE_NONE if delimiter == "|" else csv.QUOTE_MINIMAL
            reader = csv.DictReader(
                file, delimiter=delimiter, quoting=quoting, skipinitialspace=True, strict=True
            )
            for row in reader:
                if None in row or None in row.values():
                    tally.read["rows"] += 1
                    source = f"{os.path.basename(path)}:{reader.line_num}"
                    # Cells too many are a list under None, those too few are None.
                    cells = [*row.pop(None, ()), *(v for v in row.values() if v is not None)]
                    columns = len(reader.fieldnames or ())
                    detail = f"expected {columns} columns, found {len(cells)}"
                    tally.drop("row", "wrong number of columns", source, detail)
                else:
                    yield reader.line_num, row
        except UnicodeDecodeError as error:
            message = f"{path}: byte {error.object[error.start]:#04x} is not UTF-8"
            raise ValueError(f"{message}; save the file as UTF-8") from error
        except csv.Error as error:
            raise ValueError(f"{path}: broken CSV: {error}") from error


def _count_lines(path: str) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def _files(path: str, endings: tuple[str, ...]) -> list[str]:
    paths = [path] if os.path.isfile(path) else []
    if os.path.isdir(path):
        paths = [os.path.join(path, name) for name in sorted(os.listdir(path))]
    paths = [one for one in paths if one.lower().endswith(endings) and os.path.isfile(one)]
    # A .json file is taken for rows where it is a list of them, and no .jsonl lies beside it.
    lists = [p for p in paths if p.lower().endswith(".json")]
    lines = [p for p in paths if p not in lists]
    paths = lines or [p for p in lists if json_kinds.find(p) == json_kinds.ROWS]
    return [one for one in paths if not one.lower().endswith(".txt") or _has_header(one)]


def csv_files(path: str) -> list[str]:
    """Returns the CSV files at a path, in order."""
    return _files(path, CSV)


def header(path: str) -> list[str]:
    """Returns the names of columns, or what else the cells of the first line hold."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            line = file.readline(MAX_HEADER)
    except UnicodeDecodeError:
        return []
    delimiter = max(DELIMITERS, key=line.count)
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])


def _has_header(path: str) -> bool:
    """Whether the first line of a file names columns, one of them of images."""
    names = header(path)
    return len(names) > 1 and jsonl.find_column("image", names) is not None
