"""From the annotations of one image to its objects: checked, clipped, counted."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from paligemma_jax.data import objects
from paligemma_jax.importers import example

# A box may stick out of its image by this share of the side before it is worth a count.
ROUNDING = 1e-3


@dataclasses.dataclass(frozen=True, slots=True)
class Annotation:
    """One object as a source has it; nothing in it is trusted.

    Attributes:
      label: class name, "" if it has none.
      source: where it stands.
      box: x0, y0, x1, y1 in pixels, or None: around the outline.
      outline: polygons [[x, y, ...], ...] in pixels, {"size", "counts"} as COCO has them, or None.
    """

    label: str
    source: str
    box: Sequence[float] | None = None
    outline: Any = None


def collect(
    annotations: Sequence[Annotation], size: tuple[int, int], tally: example.Tally
) -> objects.Objects | None:
    """Returns the objects of one image, or None if there were some and none is any good.

    (An image without any annotation has no objects, and that is worth learning.)
    """
    labels, boxes, outlines = [], [], []
    for annotation in annotations:
        tally.read["objects"] += 1
        if not annotation.label:
            tally.drop("object", "without a class name", annotation.source)
            continue
        outline = _outline(annotation, size, tally)
        box = _box(annotation, outline, size, tally)
        if box is not None:
            labels.append(annotation.label)
            boxes.append(box)
            outlines.append(outline)
    if annotations and not labels:
        return None
    return objects.make(*size, labels, boxes, outlines)


def _box(annotation, outline, size: tuple[int, int], tally: example.Tally) -> np.ndarray | None:
    """Returns float64[4] inside the image, or drops the object."""
    width, height = size
    given = _around(outline, size) if annotation.box is None else annotation.box
    if given is None:
        tally.drop("object", "neither box nor outline", annotation.source)
        return None
    try:
        box = np.array(given, np.float64)
    except (TypeError, ValueError):
        box = np.zeros(0)
    if box.shape != (4,) or not np.isfinite(box).all():
        tally.drop("object", "box is not four numbers", annotation.source, f"{given!r:.80}")
        return None
    limits = np.array([width, height, width, height], np.float64)
    inside = np.clip(box, 0, limits)
    if (np.round(inside[2:], objects.DIGITS) <= np.round(inside[:2], objects.DIGITS)).any():
        empty = box[2] <= box[0] or box[3] <= box[1]
        reason = "box without area" if empty else "box outside its image"
        detail = f"{[round(x, 3) for x in box.tolist()]} in {width}x{height} pixels"
        tally.drop("object", reason, annotation.source, detail)
        return None
    if (np.abs(inside - box) > ROUNDING * limits).any():
        tally.changed["boxes clipped to their image"] += 1
    return inside


def _outline(
    annotation: Annotation, size: tuple[int, int], tally: example.Tally
) -> objects.Segmentation | None:
    """Returns the outline, or None; a broken one is dropped, its object may live by its box."""
    value = annotation.outline
    if not value:
        return None
    try:
        if isinstance(value, dict):
            return _run_lengths(value, size)
        if isinstance(value, list):
            return _polygons(value, size)
        raise ValueError(f"expected polygons or run lengths, found {value!r:.80}")
    except (ValueError, TypeError) as error:
        tally.drop("outline", "broken outline", annotation.source, error)
        return None


def _polygons(value: list, size: tuple[int, int]) -> objects.Polygons:
    polygons = []
    for flat in value:
        points = np.array(flat, np.float64)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
            raise ValueError(f"a polygon needs three points x, y or more, found {flat!r:.80}")
        polygons.append(np.clip(points.reshape(-1, 2), 0, size))
    return tuple(polygons)


def _run_lengths(value: dict, size: tuple[int, int]) -> str:
    """Returns COCO's run lengths, compressed; they must cover the image exactly."""
    width, height = size
    counts = value.get("counts")
    if value.get("size") != [height, width]:
        raise ValueError(
            f"run lengths of size {value.get('size')!r:.40}, expected {[height, width]}"
        )
    runs: Any = {"size": [height, width], "counts": counts}
    if isinstance(counts, list):
        if not all(type(n) is int and n >= 0 for n in counts) or sum(counts) != width * height:
            raise ValueError(f"run lengths must be whole numbers that sum to {width * height}")
        runs = coco_mask.frPyObjects(runs, height, width)
    elif not isinstance(counts, str) or _decoded_sum(counts) != width * height:
        raise ValueError(f"run lengths must be text that decodes to {width * height} pixels")
    text = runs["counts"]
    return text.decode() if isinstance(text, bytes) else text


def _decoded_sum(counts: str) -> int | None:
    """Returns how many pixels compressed run lengths cover, None where they are broken.

    pycocotools trusts them. The code (cocoapi, maskApi.c, rleFrString): five bits a character from
    48 on, 32 tells that more follow, 16 of the last is the sign; from the third number on, each is
    the difference to the last but one.
    """
    numbers: list[int] = []
    value = shift = 0
    for code in counts.encode("utf-8", "replace"):
        bits = code - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
        value = shift = 0
    return sum(numbers) if shift == 0 and all(n >= 0 for n in numbers) else None


def _around(outline, size: tuple[int, int]) -> list[float] | None:
    """Returns the box around an outline."""
    if outline is None:
        return None
    if isinstance(outline, str):
        runs: Any = {"size": [size[1], size[0]], "counts": outline.encode()}
        x, y, w, h = coco_mask.toBbox(runs).tolist()
        return [x, y, x + w, y + h]
    points = np.concatenate(outline)
    return [*points.min(0).tolist(), *points.max(0).tolist()]
