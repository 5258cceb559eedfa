"""labelme: a JSON file per image, with rectangles and polygons in pixels.

Shapes of one label and one group_id are pieces of one object. Points, lines and the like are no
objects and are dropped by their kind. Images that a file holds itself (imageData) are used where
the path leads nowhere. The format: https://github.com/wkentaro/labelme
"""

import base64
import binascii
import json
import math
import os
from collections.abc import Iterator
from typing import Any

from paligemma_jax.data import locations
from paligemma_jax.importers import example, json_kinds, pictures, source_files

PROGRESS_FILES = 200
CIRCLE_POINTS = 64


def detect(path: str) -> str | None:
    """Returns the file that shows that a path is labelme's, or None."""
    return next(_files(path), None)


def read(
    request: example.Request, tally: example.Tally, progress: example.Progress
) -> example.DataSet:
    """Returns the data set; a file that cannot be read is an image that is dropped.

    Raises:
      ValueError: no such files.
    """
    files = list(_files(request.path))
    if not files:
        raise ValueError(f"{request.path}: no JSON file with 'shapes', as labelme writes them")
    folder = pictures.open_folder(request.images or request.root)
    by_name: dict[str, list[str]] = {}
    for place, _ in source_files.walk(folder.root):
        for image in pictures.list_images(place):
            by_name.setdefault(locations.key(os.path.basename(image)), []).append(image)
    examples = []
    for number, path in enumerate(files, 1):
        if read := _read_file(path, request.root, folder, by_name, tally):
            examples.append(read)
        if number % PROGRESS_FILES == 0 or number == len(files):
            progress(number, len(files))
    searched = f"the shapes of {len(files)} JSON files"
    return example.of_objects(request, examples, searched=searched)


def _read_file(
    path: str,
    root: str,
    folder: locations.ImageFolder,
    by_name: dict[str, list[str]],
    tally: example.Tally,
) -> example.Example | None:
    tally.read["images"] += 1
    name = os.path.relpath(path, root)
    try:
        with open(path, "rb") as file:
            content = json.load(file)  # UTF-8 or 16, as it finds
        shapes = content["shapes"]
        if not isinstance(shapes, list) or not all(isinstance(one, dict) for one in shapes):
            raise ValueError("'shapes' is no list of objects")
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        tally.drop("image", "broken labelme file", name, error)
        return None
    picture = _picture(content, path, folder, by_name, name, tally)
    size = pictures.measure(picture, name, tally) if picture else None
    if picture is None or size is None:
        return None
    sides = content.get("imageWidth"), content.get("imageHeight")
    annotated = (sides[0], sides[1]) if all(type(s) is int and s > 0 for s in sides) else size
    if not pictures.is_of_size(picture, size, annotated, name, tally):
        return None
    annotations = _annotations(shapes, name, tally)
    objects = example.collect_objects(annotations, size, tally)
    if objects is None or (shapes and not annotations):
        tally.drop("image", "none of its objects could be kept", name)
        return None
    return example.Example(picture, name, example.split_name(os.path.dirname(name)), objects)


def _picture(
    content: dict[str, Any],
    path: str,
    folder: locations.ImageFolder,
    by_name: dict[str, list[str]],
    name: str,
    tally: example.Tally,
) -> example.Picture | None:
    """Returns the image: where imagePath says, beside the file, by its stem, or from the file."""
    given = content.get("imagePath")
    given = given.replace("\\", "/") if isinstance(given, str) else ""
    last = pictures.last_part(given) or os.path.basename(given)
    near, stem = os.path.dirname(os.path.realpath(path)), os.path.splitext(path)[0]
    tries = [os.path.join(near, given), os.path.join(near, last)]
    tries += [os.path.join(folder.root, last)]
    tries += [os.path.realpath(stem) + ending for ending in pictures.SUFFIXES]
    same = by_name.get(locations.key(last), [])
    tries += same if len(same) == 1 else []
    file = next((one for one in map(os.path.normpath, tries) if os.path.isfile(one)), None)
    data = content.get("imageData")
    if file is None and isinstance(data, str) and data:
        try:
            held = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            tally.drop("image", "broken imageData", name, error)
            return None
        return example.Picture(os.path.splitext(name)[0] + ".png", data=held)
    wanted = os.path.relpath(file, folder.root) if file else given or name
    return pictures.locate(folder, wanted, name, tally)


def _annotations(
    shapes: list[dict[str, Any]], name: str, tally: example.Tally
) -> list[example.Annotation]:
    annotations: list[example.Annotation] = []
    groups: dict[tuple[str, str], int] = {}
    for number, shape in enumerate(shapes, 1):
        label, source = example.clean_name(shape.get("label")), f"{name}: shape {number}"
        kind = shape.get("shape_type") or "polygon"
        outline = _outline(kind, shape.get("points"))
        if outline is None and kind != "rectangle":
            tally.read["objects"] += 1
            tally.drop("object", f"{kind:.20} is no outline", source, label)
            continue
        if outline is None:
            annotations.append(example.Annotation(label, source, _box(shape.get("points"))))
            continue
        key = label, repr(shape.get("group_id"))
        place = groups.get(key) if shape.get("group_id") is not None else None
        if place is not None:
            first = annotations[place]
            joined = [*first.outline, outline]
            annotations[place] = example.Annotation(label, first.source, None, joined)
            continue
        groups[key] = len(annotations)
        annotations.append(example.Annotation(label, source, None, [outline]))
    return annotations


def _box(points: Any) -> list[Any]:
    """Returns a rectangle's box; what is no box is dropped where objects are collected."""
    flat = _flat(points)
    if flat is None or len(flat) != 4:
        return [points]
    x0, y0, x1, y1 = flat
    return [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]


def _outline(kind: Any, points: Any) -> list[float] | None:
    """Returns a shape's outline as flat x and y, None where it has none."""
    flat = _flat(points)
    if kind == "polygon":
        return flat if flat is not None else []
    if kind == "circle" and flat is not None and len(flat) == 4:
        x, y, radius = flat[0], flat[1], math.dist(flat[:2], flat[2:])
        turns = [2 * math.pi * n / CIRCLE_POINTS for n in range(CIRCLE_POINTS)]
        return [v for t in turns for v in (x + radius * math.cos(t), y + radius * math.sin(t))]
    return None


def _flat(points: Any) -> list[float] | None:
    """Returns [x, y, ...] of [[x, y], ...], None where that is not what it is."""
    if not isinstance(points, list):
        return None
    if not all(isinstance(p, list) and len(p) == 2 for p in points):
        return None
    flat = [value for point in points for value in point]
    return flat if all(type(v) in (int, float) for v in flat) else None


def _files(path: str) -> Iterator[str]:
    """Yields labelme's files at a path, in order."""
    if os.path.isfile(path):
        if path.lower().endswith(".json") and json_kinds.find(path) == json_kinds.LABELME:
            yield path
        return
    for folder, names in source_files.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            if name.lower().endswith(".json") and json_kinds.find(file) == json_kinds.LABELME:
                yield file
