"""CVAT for images: one XML file that lists images with boxes, polygons and masks, in pixels.

A rotated box is its outline, turned around its middle. Points, lines and tags are no objects and
are dropped by their kind. The format: https://docs.cvat.ai/docs/dataset_management/formats/
format-cvat/
"""

import math
import os
import re
from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np

from paligemma_jax.data import objects as data_objects
from paligemma_jax.importers import example, pictures, source_files, xml_files

NUM_BYTES = 2048
ROOT = re.compile(rb"<annotations[\s>]")
CORNERS = ("xtl", "ytl", "xbr", "ybr")
IS_NO_OBJECT = ("points", "polyline", "tag", "cuboid", "ellipse", "skeleton")
FULL_TURN = 360
PROGRESS_IMAGES = 500


def detect(path: str) -> str | None:
    """Returns the file that shows that a path is CVAT's XML, or None."""
    return next(_files(path), None)


def read(
    request: example.Request, tally: example.Tally, progress: example.Progress
) -> example.DataSet:
    """Returns the data set.

    Raises:
      ValueError: no such file, a broken one, or annotations of a video.
    """
    files = list(_files(request.path))
    if not files:
        raise ValueError(f"{request.path}: no XML file with <annotations>, as CVAT writes it")
    examples = []
    for file in files:
        items = _parse(file).findall("image")
        names = [(item.get("name") or "").replace("\\", "/") for item in items]
        where = pictures.choose_folder(list(filter(None, names)), request.root, request.images)
        folder = pictures.open_folder(where)
        prefix = os.path.relpath(file, request.root)
        for number, (item, name) in enumerate(zip(items, names, strict=True), 1):
            source = f"{prefix}: image {item.get('id', number)}"
            if read := _read_image(item, name, source, folder, tally):
                examples.append(read)
            if number % PROGRESS_IMAGES == 0 or number == len(items):
                progress(number, len(items))
    searched = f"the <box>, <polygon> and <mask> elements of {', '.join(files)}"
    return example.of_objects(request, examples, searched=searched)


def _read_image(item, name: str, source: str, folder, tally) -> example.Example | None:
    tally.read["images"] += 1
    if not name:
        tally.drop("image", "without a name", source)
        return None
    picture = pictures.locate(folder, name, source, tally)
    size = pictures.measure(picture, source, tally) if picture else None
    if picture is None or size is None:
        return None
    annotated = xml_files.size(item.get("width"), item.get("height")) or size
    if not pictures.is_of_size(picture, size, annotated, source, tally):
        return None
    annotations, num_others = [], 0
    for number, shape in enumerate(item, 1):
        label, where = example.clean_name(shape.get("label")), f"{source}: {shape.tag} {number}"
        if shape.tag in ("box", "polygon", "mask"):
            annotations.append(_annotation(shape, label, where, size))
        elif shape.tag in IS_NO_OBJECT:
            num_others += 1
            tally.read["objects"] += 1
            tally.drop("object", f"{shape.tag} is no box or outline", where, label)
    objects = example.collect_objects(annotations, size, tally)
    if objects is None or (num_others and not annotations):
        tally.drop("image", "none of its objects could be kept", source, picture.name)
        return None
    split = example.split_name(item.get("subset") or "") or example.split_name(name)
    return example.Example(picture, source, split, objects)


def _annotation(shape, label: str, source: str, size: tuple[int, int]) -> example.Annotation:
    """Returns the annotation of an element; what is wrong with it shows when it is collected."""
    try:
        if shape.tag == "polygon":
            points = [float(v) for pair in shape.get("points", "").split(";") for v in _two(pair)]
            return example.Annotation(label, source, None, [points])
        if shape.tag == "mask":
            return example.Annotation(label, source, None, _mask(shape, size))
        x0, y0, x1, y1 = (float(shape.get(corner, "")) for corner in CORNERS)
        angle = float(shape.get("rotation") or 0)
        if not abs(angle) <= FULL_TURN:
            raise ValueError(f"rotation {angle:g} is no angle in degrees")
    except ValueError as error:
        return example.Annotation(label, f"{source}: {error}", [math.nan])
    if not angle:
        return example.Annotation(label, source, [x0, y0, x1, y1])
    turned = _turn(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), angle)
    return example.Annotation(label, source, None, [turned.reshape(-1).tolist()])


def _two(pair: str) -> tuple[str, str]:
    x, y = pair.split(",")
    return x, y


def _turn(corners: np.ndarray, angle: float) -> np.ndarray:
    """Returns corners turned around their middle, by degrees clockwise."""
    middle, turn = corners.mean(0), math.radians(angle)
    cos, sin = math.cos(turn), math.sin(turn)
    return (corners - middle) @ np.array([[cos, sin], [-sin, cos]]) + middle


def _mask(shape, size: tuple[int, int]) -> dict:
    """Returns COCO's run lengths of a mask: CVAT's go row by row inside a box, nothing first.

    Raises:
      ValueError: runs that do not fill the box, or a box that leaves the image.
    """
    left, top, width, height = (
        int(shape.get(key, "")) for key in ("left", "top", "width", "height")
    )
    runs = [int(run) for run in shape.get("rle", "").split(",")]
    inside = min(left, top) >= 0 and left + width <= size[0] and top + height <= size[1]
    if not inside or min(runs) < 0 or sum(runs) != width * height:
        raise ValueError("mask that does not fit its box and image")
    filled = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    whole = np.zeros((size[1], size[0]), bool)
    whole[top : top + height, left : left + width] = filled
    return {"size": [size[1], size[0]], "counts": data_objects.encode_bitmap(whole)}


def _parse(path: str) -> ElementTree.Element:
    try:
        tree = xml_files.parse(path)
    except ValueError as error:
        raise ValueError(f"{path}: broken XML: {error}") from error
    if tree.find("track") is not None and tree.find("image") is None:
        raise ValueError(
            f"{path} is CVAT's XML of a video, whose frames are not files here; export the task as "
            f"'COCO 1.0' or 'CVAT for images 1.1' with 'Save images'"
        )
    return tree


def is_cvat(path: str) -> bool:
    """Whether an XML file begins as CVAT's does."""
    try:
        with open(path, "rb") as file:
            return ROOT.search(file.read(NUM_BYTES).replace(b"\0", b"")) is not None  # UTF-16
    except OSError:
        return False


def _files(path: str) -> Iterator[str]:
    if os.path.isfile(path):
        if path.lower().endswith(".xml") and is_cvat(path):
            yield path
        return
    for folder, names in source_files.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            if name.lower().endswith(".xml") and is_cvat(file):
                yield file
