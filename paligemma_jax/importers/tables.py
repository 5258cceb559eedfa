"""JSONL with questions and answers, captions, boxes or suffixes; CSV with images and captions.

JSON that is one list of such rows is read as JSONL is, conversations too: see `conversations`.

One file, or a folder with one per split, or with folders of these (train/metadata.jsonl of Hugging
Face's ImageFolder). Images are relative to the file, to a folder below it, or to `--images`.
Columns are recognized by usual names, or by `--columns question=q,answer=a`. JSONL rows with image,
prefix and suffix (our own format) are taken as they are, with their objects. CSV has commas,
semicolons, tabs or bars; a .txt file is CSV if its first line names a column of images among others
(Flickr8k's captions.txt).
"""

import codecs
import csv
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from paligemma_jax.data import jsonl, locations
from paligemma_jax.importers import (
    columns,
    conversations,
    example,
    json_kinds,
    pictures,
    source_files,
)

JSONL = (".jsonl", ".json")
CSV = (".csv", ".tsv", ".txt")
DELIMITERS = ",;\t|"
MAX_HEADER = 10_000  # characters
SEPARATOR_LINE = re.compile(r"sep=([,;|\t])", re.IGNORECASE)
NUM_SAMPLED = 40  # rows that tell where images lie
PROGRESS_ROWS = 1000

RowReader = Callable[[str, example.Tally], Iterator[tuple[int, dict[str, Any]]]]


def detect_jsonl(path: str) -> str | None:
    """Returns the file that shows that a path is JSONL, or None."""
    return next(iter(_files(path, JSONL)), None)


def detect_csv(path: str) -> str | None:
    """Returns the file that shows that a path is CSV, or None."""
    return next(iter(_files(path, CSV)), None)


def detect_jsonl_deeper(path: str) -> str | None:
    """As `detect_jsonl`, one folder deeper."""
    return next(iter(_files_deeper(path, JSONL)), None)


def detect_csv_deeper(path: str) -> str | None:
    """As `detect_csv`, one folder deeper."""
    return next(iter(_files_deeper(path, CSV)), None)


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
    files = _files(request.path, endings) or _files_deeper(request.path, endings)
    if not files:
        raise ValueError(
            f"{request.path}: no file that ends in {' or '.join(endings)}, here or one folder below"
        )
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
            source = f"{_name(path, request.root)}:{number}"
            row = _with_name(row, chosen["image"], path, folder.root)
            split = columns.split_of(path) or _split_of_folder(path, request.root)
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
            row = _with_name(row, chosen["image"], path, request.images or request.root)
            yield columns.only_image(row.get(chosen["image"]))


def _with_name(row: Mapping[str, Any], column: str, path: str, root: str) -> Mapping[str, Any]:
    """Returns a row whose image, where it lies near the file or above it, is named from root on."""
    name, near = columns.only_image(row.get(column)), os.path.realpath(os.path.dirname(path))
    if not isinstance(name, str) or near == (inside := os.path.realpath(root)):
        return row
    whole = pictures.from_root(name, near, root)
    if os.path.isfile(os.path.join(near, name)) and near.startswith(inside + os.sep):
        whole = os.path.normpath(os.path.join(os.path.relpath(near, inside), name))
    return row if whole == name else {**row, column: whole}


def _split_of_folder(path: str, root: str) -> str | None:
    """Returns the split that a file's folder tells: train/metadata.jsonl."""
    return example.split_name(os.path.dirname(os.path.relpath(path, root)))


def _name(path: str, root: str) -> str:
    return os.path.relpath(path, root)


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
    if what := locations.describe_file(path):
        raise ValueError(f"{path}: it is {what}")
    with open(path, encoding=_encoding(path), newline="") as file:
        try:
            delimiter, header, skipped = _read_header(file)
            if not header.strip():
                raise ValueError(f"{path}: the file is empty; expected a line of column names")
            # Nobody quotes where bars divide, so a quotation mark there is text.
            quoting = csv.QUOTE_NONE if delimiter == "|" else csv.QUOTE_MINIMAL
            lines = itertools.chain([header], file)
            reader = csv.DictReader(
                lines, delimiter=delimiter, quoting=quoting, skipinitialspace=True, strict=True
            )
            names = [name for name in reader.fieldnames or () if name.strip()]
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"{path}: two columns are called {min(twice)!r}; rename one")
            for row in reader:
                number = reader.line_num + skipped
                if None in row or None in row.values():
                    tally.read["rows"] += 1
                    source = f"{os.path.basename(path)}:{number}"
                    # Cells too many are a list under None, those too few are None.
                    cells = [*row.pop(None, ()), *(v for v in row.values() if v is not None)]
                    columns = len(reader.fieldnames or ())
                    detail = f"expected {columns} columns, found {len(cells)}"
                    tally.drop("row", "wrong number of columns", source, detail)
                else:
                    yield number, row
        except UnicodeError as error:
            byte = getattr(error, "object", b"")[getattr(error, "start", 0) :][:1]
            message = f"{path}: byte 0x{byte.hex()} is not UTF-8"
            raise ValueError(f"{message}; save the file as UTF-8") from error
        except csv.Error as error:
            raise ValueError(f"{path}: broken CSV: {error}") from error


def _read_header(file: TextIO) -> tuple[str, str, int]:
    """Returns (what divides cells, the line of column names, how many lines stand above it).

    Excel may say in a first line what divides cells: "sep=;".
    """
    header = file.readline(MAX_HEADER)
    if separator := SEPARATOR_LINE.fullmatch(header.strip()):
        return separator[1], file.readline(MAX_HEADER), 1
    return max(DELIMITERS, key=header.count), header, 0


def _encoding(path: str) -> str:
    """Returns how a CSV file is encoded: Excel's "Unicode text" is UTF-16."""
    with open(path, "rb") as file:
        head = file.read(4)
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    zeros = tuple(byte == 0 for byte in head)  # of the first two letters
    known = {(False, True) * 2: "utf-16-le", (True, False) * 2: "utf-16-be"}
    return known.get(zeros, "utf-8-sig")


def _count_lines(path: str) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def _files(path: str, endings: tuple[str, ...]) -> list[str]:
    paths = [path] if os.path.isfile(path) else []
    if os.path.isdir(path):
        paths = [os.path.join(path, name) for name in sorted(os.listdir(path))]
    paths = [one for one in paths if one.lower().endswith(endings) and os.path.isfile(one)]
    if os.path.isdir(path):
        paths = [one for one in paths if source_files.is_own(one, path)]
    # A .json file is taken for rows where it is a list of them, and no .jsonl lies beside it.
    lists = [p for p in paths if p.lower().endswith(".json")]
    lines = [p for p in paths if p not in lists]
    paths = lines or [p for p in lists if json_kinds.find(p) == json_kinds.ROWS]
    return [one for one in paths if not one.lower().endswith(".txt") or _has_header(one)]


def _files_deeper(path: str, endings: tuple[str, ...]) -> list[str]:
    """Returns the files in the folders right below a folder: train/metadata.jsonl."""
    folders = source_files.folders(path) if os.path.isdir(path) else []
    return [file for folder in folders for file in _files(folder, endings)]


def csv_files(path: str) -> list[str]:
    """Returns the CSV files at a path, in order; where there are none, those one folder deeper."""
    return _files(path, CSV) or _files_deeper(path, CSV)


def header(path: str) -> list[str]:
    """Returns the names of columns, or what else the cells of the first line hold."""
    # What is no text in it is an error when the rows are read.
    with open(path, encoding=_encoding(path), errors="replace", newline="") as file:
        delimiter, line, _ = _read_header(file)
    if "\ufffd" in line:
        return []
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:
        return []


def _has_header(path: str) -> bool:
    """Whether the first line of a file names columns, one of them of images."""
    names = header(path)
    return len(names) > 1 and jsonl.find_column("image", names) is not None
