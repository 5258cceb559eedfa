"""The objects of an image: class names, boxes and outlines, which a suffix is made of.

Importers keep them in a row beside its suffix, so that what a suffix rounds away is not lost and
an augmentation can move them and write the suffix anew:

    {"image": "1.png", "prefix": "detect cat ; dog", "suffix": "...", "width": 640, "height": 480,
     "objects": [
       {"label": "cat", "box": [12, 30.5, 200, 310]},
       {"label": "dog", "box": [5, 5, 90, 80], "segmentation": [[5, 5, 90, 5, 40, 80]]},
       {"label": "dog", "box": [0, 0, 9, 9],
        "segmentation": {"size": [480, 640], "counts": "..."}}]}

Everything is in pixels of the image as it is stored, and pixel 0 lies between 0 and 1: a box that
covers all is [0, 0, width, height]. `box` is [x0, y0, x1, y1]. `segmentation` is COCO's: polygons
as flat lists of x and y, or compressed run lengths of the whole image, whose size is [height,
width]. The order is the suffix's.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from paligemma_jax.tasks import box_text, geometry

MAX_PIXELS = 2**28
LARGEST = sys.float_info.max
DIGITS = 3  # decimals of a pixel that are kept
KEYS = ("label", "box", "segmentation")

Polygons = tuple[np.ndarray, ...]
Segmentation = Polygons | str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """The n objects of one image; make it with `make`.

    Attributes:
      width, height: of the image in pixels.
      labels: n class names.
      boxes_xyxy: float32[n, 4] in pixels: left, top, right, bottom; inside the image, not empty.
      segmentations: n outlines: a tuple of polygons float32[k, 2] (x, y in pixels, k >= 3), or
        COCO's compressed run lengths of the whole image as a str, or None.
    """

    width: int
    height: int
    labels: tuple[str, ...]
    boxes_xyxy: np.ndarray
    segmentations: tuple[Segmentation | None, ...]

    def __len__(self) -> int:
        return len(self.labels)


def make(
    width: int,
    height: int,
    labels: Sequence[str],
    boxes_xyxy: Any,
    segmentations: Sequence[Segmentation | None] | None = None,
) -> Objects:
    """Returns objects whose numbers are rounded as a row keeps them.

    Raises:
      ValueError: not one label and one outline per box.
    """
    boxes = _round(boxes_xyxy).reshape(-1, 4)
    outlines = tuple(segmentations) if segmentations is not None else (None,) * len(boxes)
    if not len(labels) == len(boxes) == len(outlines):
        raise ValueError(
            f"{len(boxes)} boxes, but {len(labels)} labels and {len(outlines)} segmentations"
        )
    rounded = tuple(
        tuple(_round(polygon) for polygon in outline) if isinstance(outline, tuple) else outline
        for outline in outlines
    )
    return Objects(int(width), int(height), tuple(labels), boxes, rounded)


def select(objects: Objects, numbers: np.ndarray) -> Objects:
    """Returns the objects of these numbers, from 0."""
    return make(
        objects.width,
        objects.height,
        [objects.labels[n] for n in numbers],
        objects.boxes_xyxy[numbers],
        [objects.segmentations[n] for n in numbers],
    )


def to_row(objects: Objects) -> dict[str, Any]:
    """Returns the keys of a JSONL row: width, height, objects; `from_row` reads them."""
    rows = []
    for label, box, outline in zip(
        objects.labels, objects.boxes_xyxy, objects.segmentations, strict=True
    ):
        row: dict[str, Any] = {"label": label, "box": _numbers(box)}
        if isinstance(outline, str):
            row["segmentation"] = {"size": [objects.height, objects.width], "counts": outline}
        elif outline is not None:
            row["segmentation"] = [_numbers(polygon.reshape(-1)) for polygon in outline]
        rows.append(row)
    return {"width": objects.width, "height": objects.height, "objects": rows}


def from_row(row: Mapping[str, Any]) -> Objects:
    """Returns the objects of a JSONL row that has the key "objects".

    Raises:
      ValueError: anything but what the module's docstring shows; run lengths are not looked into.
    """
    sizes = [row.get("width"), row.get("height")]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(
            "key 'objects': needs 'width' and 'height' of the image in pixels beside it, "
            f"found {sizes[0]!r:.40} and {sizes[1]!r:.40}"
        )
    width, height, items = row["width"], row["height"], row["objects"]
    if width * height > MAX_PIXELS:
        raise ValueError(f"key 'objects': {width}x{height} pixels are more than an image has here")
    if not isinstance(items, list):
        raise ValueError(
            f"key 'objects': expected a list, found a {type(items).__name__}; give what is not "
            "our objects another name"
        )
    labels, boxes, outlines = [], [], []
    for number, item in enumerate(items, 1):
        try:
            _check_keys(item)
            labels.append(_label(item["label"]))
            boxes.append(_box(item["box"], width, height))
            outlines.append(_outline(item.get("segmentation"), width, height))
        except ValueError as error:
            raise ValueError(f"object {number}: {error}") from error
    return make(width, height, labels, boxes, outlines)


def to_detections(objects: Objects) -> box_text.Detections:
    """Returns the objects as what `box_text.format` writes: boxes yxyx in 0..1 of the image."""
    height, width = objects.height, objects.width
    sides = np.array([height, width, height, width], np.float32)
    return box_text.Detections(objects.boxes_xyxy[:, [1, 0, 3, 2]] / sides, objects.labels)


def draw_later(objects: Objects | None) -> Callable[[], geometry.Regions] | None:
    """Returns a function that draws all outlines; a box without one is filled. None for None."""
    if objects is None:
        return None
    return functools.partial(to_regions, objects)


def to_regions(objects: Objects) -> geometry.Regions:
    """Returns the objects with their masks drawn, what mask tokens are made of and compared with.

    Raises:
      ValueError: run lengths that are not of the image's size.
    """
    drawn = np.zeros((len(objects), objects.height, objects.width), bool)
    for mask, box, outline in zip(drawn, objects.boxes_xyxy, objects.segmentations, strict=True):
        if outline is None:
            x0, y0, x1, y1 = np.rint(box).astype(int).tolist()
            mask[y0:y1, x0:x1] = True
        else:
            mask[:] = bitmap(outline, width=objects.width, height=objects.height)
    detections = to_detections(objects)
    return geometry.Regions(detections.boxes_yxyx, detections.labels, drawn)


def bitmap(outline: Segmentation, *, width: int, height: int) -> np.ndarray:
    """Returns bool[height, width], True inside an outline, as pycocotools draws it.

    Raises:
      ValueError: run lengths that are not of an image of this size.
    """
    if isinstance(outline, str):
        runs: Any = {"size": [height, width], "counts": outline.encode()}
    else:
        flat: Any = [polygon.reshape(-1).astype(np.float64).tolist() for polygon in outline]
        runs = coco_mask.merge(coco_mask.frPyObjects(flat, height, width))
    try:
        return coco_mask.decode(runs).astype(bool)
    except ValueError as error:
        raise ValueError(f"run lengths are not of {width}x{height} pixels: {error}") from error


def encode_bitmap(mask: np.ndarray) -> str:
    """Returns bool[H, W] as COCO's compressed run lengths."""
    runs: Any = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return runs["counts"].decode()


def _round(numbers: Any) -> np.ndarray:
    return np.round(np.asarray(numbers, np.float64), DIGITS).astype(np.float32)


def _numbers(values: np.ndarray) -> list[float]:
    """Returns numbers as they are short to read: 12 and 30.5, not 12.0 and 30.499999."""
    rounded = (round(value, DIGITS) for value in values.tolist())
    return [int(value) if value.is_integer() else value for value in rounded]


def _check_keys(item: Any) -> None:
    if not isinstance(item, dict):
        raise ValueError(f"expected a JSON object, found a {type(item).__name__}")
    missing, unknown = {"label", "box"} - set(item), set(item) - set(KEYS)
    if missing or unknown:
        raise ValueError(f"has the keys {sorted(item)}; expected label, box, maybe segmentation")


def _label(label: Any) -> str:
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"label: expected a class name, found {label!r:.80}")
    return label


def _box(box: Any, width: int, height: int) -> list[float]:
    if not _is_numbers(box) or len(box) != 4:
        raise ValueError(f"box: expected [x0, y0, x1, y1], found {box!r:.80}")
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise ValueError(
            f"box {box!r:.80} is empty, or not inside the image's {width}x{height} pixels"
        )
    return box


def _outline(value: Any, width: int, height: int) -> Segmentation | None:
    if value is None:
        return None
    if isinstance(value, dict):
        if value.get("size") != [height, width] or not isinstance(value.get("counts"), str):
            raise ValueError(
                f"segmentation: expected run lengths with size [{height}, {width}] (the image's "
                f"height and width) and counts as text, found {value!r:.80}"
            )
        return value["counts"]
    is_list = isinstance(value, list) and value
    if not is_list or not all(_is_numbers(p) and len(p) >= 6 and len(p) % 2 == 0 for p in value):
        raise ValueError(
            "segmentation: expected polygons [[x, y, x, y, x, y, ...], ...] or run lengths, "
            f"found {value!r:.80}"
        )
    points = [np.array(polygon, np.float64).reshape(-1, 2) for polygon in value]
    size = np.array([width, height], np.float64)
    for polygon in points:
        # Clipped where it sticks out, as imports do; what is far away has another scale or is none.
        if (polygon < -size).any() or (polygon > 2 * size).any():
            raise ValueError(
                f"segmentation: a polygon reaches to {polygon.min():.5g} .. {polygon.max():.5g} "
                f"pixels, more than a side outside the image's {width}x{height}"
            )
    return tuple(np.clip(polygon, 0, size) for polygon in points)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(
        # Python compares any integer with a float, and turns only those into floats that fit.
        type(item) in (int, float) and -LARGEST <= item <= LARGEST
        for item in value
    )
