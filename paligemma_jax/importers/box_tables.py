"""CSV with a box per row: the image's name, a class, and four numbers in pixels.

    filename,width,height,class,xmin,ymin,xmax,ymax        (TensorFlow's object detection, Roboflow)
    ImageID,LabelName,XMin,XMax,YMin,YMax                  (Open Images: shares of the sides)
    image,label,x,y,w,h
    photos/1.jpg,837,346,981,456,cow                       (RetinaNet's, without names of columns)

Rows of one image are its objects, in their order; one without numbers and class says that its image
has none. Numbers of which none is above 1 are shares of the image's sides. Where classes are
numbers, `--classes` names them.
"""

import collections
import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paligemma_jax.data import jsonl
from paligemma_jax.importers import columns, example, pictures, source_files, tables

LABELS = ("class", "label", "labelname", "class_name", "category", "name")
IMAGES = ("imageid", "image_id")
# Names of columns: corners, and whether the last two are a size.
CORNERS = (
    (("xmin", "ymin", "xmax", "ymax"), False),
    (("x_min", "y_min", "x_max", "y_max"), False),
    (("x1", "y1", "x2", "y2"), False),
    (("left", "top", "right", "bottom"), False),
    (("bbox_x", "bbox_y", "bbox_width", "bbox_height"), True),
    (("x", "y", "w", "h"), True),
    (("x", "y", "width", "height"), True),
)
NAMELESS = ("image", "x1", "y1", "x2", "y2", "class")
SEARCHED = "columns of the image, the class and four numbers"


def detect(path: str) -> str | None:
    """Returns the CSV file that shows that a path holds boxes, or None."""
    return next((file for file in tables.csv_files(path) if _columns(file)), None)


def read(
    request: example.Request, tally: example.Tally, progress: example.Progress
) -> example.DataSet:
    """Returns the data set; every CSV file is a split.

    Raises:
      ValueError: no such file, or images that are nowhere.
    """
    names = request.numbered(request.classes)
    files = {file: header for file in tables.csv_files(request.path) if (header := _columns(file))}
    if not files:
        raise ValueError(f"{request.path}: no CSV file with {SEARCHED}")
    examples = []
    for number, (file, header) in enumerate(files.items(), 1):
        rows = _by_image(file, header, tally)
        there = _on_disk(list(rows), request.root)
        where = pictures.choose_folder(there, request.root, request.images)
        if request.classes and _are_numbers(rows, header[1]):
            rows = _with_names(rows, header[1], names)
        examples += _read_file(file, rows, header, where, tally)
        progress(number, len(files))
    searched = f"{SEARCHED}, of {', '.join(map(os.path.basename, files))}"
    return example.of_objects(request, examples, searched=searched)


Header = tuple[str, str, tuple[str, ...], bool]  # columns: image, class, corners; is a size last
Cells = tuple[str, Mapping[str, Any]]  # where a row stands, and its cells


def _columns(file: str) -> Header | None:
    """Returns the columns of a file of boxes, None for any other file."""
    names = tables.header(file)
    if _is_nameless(names):
        return "image", "class", NAMELESS[1:5], False
    lowered = {name.strip().lower(): name for name in names}
    image = jsonl.find_column("image", names) or next(
        (lowered[name] for name in IMAGES if name in lowered), None
    )
    label = next((lowered[name] for name in LABELS if name in lowered), None)
    for corners, is_size in CORNERS:
        if image and label and all(corner in lowered for corner in corners):
            return image, label, tuple(lowered[corner] for corner in corners), is_size
    return None


def _is_nameless(names: Sequence[str]) -> bool:
    if len(names) != len(NAMELESS) or not names[0].lower().endswith(pictures.SUFFIXES):
        return False
    return all(cell.strip().lstrip("-").replace(".", "", 1).isdecimal() for cell in names[1:5])


def _by_image(file: str, header: Header, tally: example.Tally) -> dict[str, list[Cells]]:
    rows: dict[str, list[Cells]] = collections.defaultdict(list)
    image = header[0]
    for number, row in _rows(file, tally):
        rows[row[image].strip().replace("\\", "/")].append(
            (f"{os.path.basename(file)}:{number}", row)
        )
    return dict(rows)


def _rows(file: str, tally: example.Tally) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if not _is_nameless(tables.header(file)):
        yield from tables.csv_rows(file, tally)
        return
    with open(file, encoding="utf-8-sig", newline="") as opened:
        for number, cells in enumerate(csv.reader(opened, skipinitialspace=True), 1):
            if len(cells) == len(NAMELESS):
                yield number, dict(zip(NAMELESS, cells, strict=True))
            elif cells:
                source = f"{os.path.basename(file)}:{number}"
                detail = f"expected {len(NAMELESS)} columns, found {len(cells)}"
                tally.read["rows"] += 1
                tally.drop("row", "wrong number of columns", source, detail)


def _are_numbers(rows: Mapping[str, list[Cells]], label: str) -> bool:
    """Whether all classes of a file are numbers, for which names are given."""
    cells = {str(row[label]).strip() for placed in rows.values() for _, row in placed}
    return all(map(str.isdecimal, cells - {""})) and cells != {""}


def _with_names(
    rows: Mapping[str, list[Cells]], label: str, names: Sequence[str]
) -> dict[str, list[Cells]]:
    """Returns rows with the names of their classes; a number without one has none."""
    by_number = {str(number): name for number, name in enumerate(names)}
    return {
        image: [
            (place, {**row, label: by_number.get(str(row[label]).strip().lstrip("0") or "0", "")})
            if str(row[label]).strip()
            else (place, row)
            for place, row in placed
        ]
        for image, placed in rows.items()
    }


def _on_disk(names: list[str], root: str) -> list[str]:
    """Returns names of images as files have them: Open Images leaves the ending out."""
    if not names or any(os.path.splitext(name)[1] for name in names[:20]):
        return names
    endings = collections.Counter(
        os.path.splitext(path)[1]
        for folder, _ in source_files.walk(root)
        for path in pictures.list_images(folder)
    )
    ending = endings.most_common(1)[0][0] if endings else ""
    return [name + ending for name in names]


def _read_file(
    file: str, rows: Mapping[str, list[Cells]], header: Header, where: str, tally: example.Tally
) -> Iterator[example.Example]:
    folder, split = pictures.open_folder(where), columns.split_of(file)
    is_share = _are_shares(rows, header[2])
    if is_share:
        tally.changed["files of numbers in 0..1 taken as shares of the image"] += 1
    for name, placed in zip(_on_disk(list(rows), where), rows.values(), strict=True):
        tally.read["images"] += 1
        source = placed[0][0]
        picture = pictures.locate(folder, name, source, tally)
        size = pictures.measure(picture, source, tally) if picture else None
        if picture is None or size is None:
            lost = [place for place, row in placed if _annotation(row, place, header, (1, 1))]
            tally.read["objects"] += len(lost)
            for place in lost:
                tally.drop("object", "of an image that was dropped", place, name)
            continue
        if not pictures.is_of_size(picture, size, _size(placed[0][1], header, size), source, tally):
            continue
        annotations = [
            one
            for place, row in placed
            if (one := _annotation(row, place, header, size if is_share else (1, 1)))
        ]
        objects = example.collect_objects(annotations, size, tally)
        if objects is None:
            tally.drop("image", "none of its objects could be kept", source, name)
            continue
        yield example.Example(picture, source, split, objects)


def _annotation(
    row: Mapping[str, Any], source: str, header: Header, sides: tuple[int, int]
) -> example.Annotation | None:
    """Returns the object of a row; None for the row of an image without any."""
    _, label, corners, is_size = header
    cells = [str(row[corner]).strip() for corner in corners]
    name = example.clean_name(row[label])
    if not name and not any(cells):
        return None
    try:
        box = [_number(cell) * side for cell, side in zip(cells, sides * 2, strict=True)]
    except ValueError:
        return example.Annotation(name, f"{source}: found {', '.join(cells)}", [float("nan")])
    if is_size:
        box = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    return example.Annotation(name, source, box)


def _number(cell: str) -> float:
    """Returns the number of a cell, which may have a comma for its point."""
    return float(cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else cell)


def _are_shares(rows: Mapping[str, list[Cells]], corners: Sequence[str]) -> bool:
    """Whether no number is above 1, and some lie between 0 and 1."""
    cells = [
        str(row[corner]).strip()
        for placed in rows.values()
        for _, row in placed
        for corner in corners
    ]
    try:
        numbers = [_number(cell) for cell in cells if cell]
    except ValueError:
        return False
    return max(numbers, default=2) <= 1 and any(0 < number < 1 for number in numbers)


def _size(row: Mapping[str, Any], header: Header, size: tuple[int, int]) -> tuple[int, int]:
    """Returns the size that a row gives for its image, else the image's own."""
    lowered = {str(key).strip().lower(): value for key, value in row.items()}
    sides = [str(lowered.get(side, "")).strip() for side in ("width", "height")]
    is_given = all(side.isdecimal() and 0 < len(side) < 10 for side in sides)
    if not is_given or {"width", "height"} & {corner.lower() for corner in header[2]}:
        return size
    return int(sides[0]), int(sides[1])
