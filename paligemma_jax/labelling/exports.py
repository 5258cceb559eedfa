"""A labelled data set as other tools read it: COCO's JSON, or YOLO's files in a zip.

Rows that are done and hold objects are in it; images stay where they are.
"""

import io
import json
import pathlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from paligemma_jax.data import objects as data_objects
from paligemma_jax.labelling import page_calls, row_store

Row = dict[str, Any]


def make(calls: page_calls.Calls, format_name: str) -> tuple[str, str, bytes]:
    """Returns (name of the file, what it is, its bytes).

    Raises:
      ValueError: no such format, or no row with objects.
    """
    if format_name not in FORMATS:
        raise ValueError(f"export as '{format_name:.40}': expected one of {sorted(FORMATS)}")
    rows = list(labelled(calls))
    if not rows:
        raise ValueError("nothing to export: no row is done and holds objects")
    used = {label for _, kept in rows for label in kept.labels}
    known = calls.offered.classes
    classes = (*known, *sorted(used - set(known)))
    name, mime_type, write = FORMATS[format_name]
    return name, mime_type, write(rows, classes)


def labelled(calls: page_calls.Calls) -> Iterator[tuple[row_store.Item, data_objects.Objects]]:
    """Yields the items that are done, with their objects."""
    for item in calls.store.items():
        if not item.is_done or len(item.images) != 1:
            continue

        if item.row and item.row.get("objects") is not None:
            yield item, data_objects.from_row(item.row)
            continue
        width, height = calls.images.size(item.images[0])
        rows = calls.writer.read_objects(item.row, lambda size=(width, height): size)
        if rows is not None:
            kept = {"width": width, "height": height, "objects": rows}
            yield item, data_objects.from_row(kept)


Rows = Sequence[tuple[row_store.Item, data_objects.Objects]]


def write_coco(rows: Rows, classes: Sequence[str]) -> bytes:
    """Returns COCO's JSON: boxes, polygons and compressed run lengths as rows keep them."""
    images, annotations = [], []
    numbers = {name: number for number, name in enumerate(classes, 1)}
    for number, (item, kept) in enumerate(rows, 1):
        images.append(
            {
                "id": number,
                "file_name": item.images[0],
                "width": kept.width,
                "height": kept.height,
            }
        )
        for row in data_objects.to_row(kept)["objects"]:
            x0, y0, x1, y1 = row["box"]
            annotation: Row = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": numbers[row["label"]],
                "bbox": [x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)],
                "area": round((x1 - x0) * (y1 - y0), 3),
                "iscrowd": 0,
            }
            if "segmentation" in row:
                annotation["segmentation"] = row["segmentation"]
            annotations.append(annotation)
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    return json.dumps(whole, ensure_ascii=False).encode("utf-8", "backslashreplace")


def write_yolo(rows: Rows, classes: Sequence[str]) -> bytes:
    """Returns a zip: data.yaml, and labels/IMAGE.txt with a line for each object.

    Where every object has polygons, a line holds the largest of an object's; else all are boxes:
    YOLO reads one kind alone.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    outlines = [one for _, kept in rows for one in kept.segmentations]
    has_polygons = bool(outlines) and all(isinstance(one, tuple) for one in outlines)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        names = "".join(f"  {n}: {json.dumps(name)}\n" for name, n in numbers.items())
        archive.writestr("data.yaml", f"path: .\ntrain: images\nval: images\nnames:\n{names}")
        for item, kept in rows:
            lines = [
                f"{numbers[label]} {' '.join(f'{value:.6g}' for value in shape)}\n"
                for label, shape in zip(kept.labels, _shapes(kept, has_polygons), strict=True)
            ]
            path = pathlib.PurePosixPath(item.images[0]).with_suffix(".txt")
            inside = [part for part in path.parts if part not in ("..", path.anchor)]
            archive.writestr("/".join(["labels", *inside]), "".join(lines))
    return out.getvalue()


def _shapes(kept: data_objects.Objects, has_polygons: bool) -> Iterator[np.ndarray]:
    """Yields the numbers of each object's line, in 0..1 of the image."""
    size = np.array([kept.width, kept.height], np.float64)
    for box, outline in zip(kept.boxes_xyxy, kept.segmentations, strict=True):
        if has_polygons and isinstance(outline, tuple):
            yield (max(outline, key=_area) / size).reshape(-1)
        else:
            low, high = box[:2] / size, box[2:] / size
            yield np.concatenate([(low + high) / 2, high - low])


def _area(polygon: np.ndarray) -> float:
    x, y = polygon[:, 0], polygon[:, 1]
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


FORMATS: Mapping[str, tuple[str, str, Any]] = {
    "coco": ("annotations.json", "application/json", write_coco),
    "yolo": ("yolo.zip", "application/zip", write_yolo),
}
