"""What every importer returns: examples and their objects, and the account of what was dropped.

An importer never skips in silence: whatever it does not take over goes into a `Tally`, with the
reason and the place. What cannot be read at all is a ValueError.
"""

import collections
import dataclasses
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from paligemma_jax.data import jsonl
from paligemma_jax.data import objects as data_objects
from paligemma_jax.tasks import definition, geometry, task

# A box may stick out of its image by this share of the side before it is worth a count.
ROUNDING = 1e-3
MAX_CLASS = 65_535  # the largest number of a class: what a mask of 16 bits can hold
SAME_BOX_IOU = 0.5  # of a box and the one around its outline

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """An image file: on disk, or inside another file.

    Attributes:
      name: the relative path that its copy gets, unique within the data set.
      path: where it lies, or None.
      data: the file's bytes where path is None.
    """

    name: str
    path: str | None = None
    data: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One row to be, before it is put into words.

    Attributes:
      picture: its image.
      source: where it stands, "instances.json: image 17".
      split: "train", "valid", "test" or the source's own name; None where the source has none.
      objects: of an image with annotations, else None.
      question: what is asked, for a prompt to be made of.
      prefix: the whole prompt where the source has it.
      suffix: the answer, the caption, or the suffix that the source has; None with objects only.
      extra: further keys of the row: all true answers, and what scores read.
    """

    picture: Picture
    source: str
    split: str | None = None
    objects: data_objects.Objects | None = None
    question: str | None = None
    prefix: str | None = None
    suffix: str | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What a source holds.

    Attributes:
      classes: names in the order of the source; () where there are none.
      examples: to go through once; images inside other files are read while going.
      total: how many examples there are at most.
      searched: where labels or answers were looked for, for the error if there are none.
    """

    classes: tuple[str, ...]
    examples: Iterable[Example]
    total: int
    searched: str


@dataclasses.dataclass(frozen=True)
class Request:
    """What to read, and what the files do not tell.

    Attributes:
      path: file or folder.
      task: what rows will be made for, as `--task` calls it; a format with several kinds of files
        chooses by it.
      images: folder of the images where it is not found by looking.
      classes: class names where the source has numbers only; else those to take, in this order.
      columns: our names for columns -> the source's: {"question": "q"}.
      components: a mask's connected pieces are objects of their own.
      masks: folder of the masks where it is not found by looking.
      min_area: connected pieces of a mask with fewer pixels are left out.
      drop_wedges: triangles at the corners of a mask are left out, as rotated pictures have them.
      first_class: number of the first class, where numbers stand for classes; None: as usual for
        the format.
    """

    path: str
    task: str
    images: str | None = None
    classes: tuple[str, ...] = ()
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    components: bool = False
    masks: str | None = None
    min_area: int = 0
    drop_wedges: bool = False
    first_class: int | None = None

    def numbered(self, classes: tuple[str, ...], first: int = 0) -> tuple[str, ...]:
        """Returns class names at the places of their numbers; `first` is a format's usual one."""
        return ("",) * (first if self.first_class is None else self.first_class) + classes

    @property
    def root(self) -> str:
        """The folder that is read: `path` itself, or the one that the file lies in."""
        return self.path if os.path.isdir(self.path) else os.path.dirname(self.path) or "."

    @property
    def rule(self) -> definition.Import:
        """How rows are made for the task."""
        return task.rule(self.task)


def of_objects(request: Request, examples: list[Example], *, searched: str) -> DataSet:
    """Returns the data set of a source that names the class at each object.

    Its classes are those that were asked for, else all labels in alphabetical order.
    """
    labels = {label for one in examples if one.objects for label in one.objects.labels}
    classes = request.classes or tuple(sorted(labels))
    return DataSet(classes, examples, len(examples), searched)


def select_classes(
    read: Example, classes: Collection[str], left_out: collections.Counter[str]
) -> Example:
    """Returns an example with the objects of these classes only; the labels of others are counted.

    A suffix that the source has itself stays as it is.
    """
    objects = read.objects
    if objects is None or read.suffix is not None or set(objects.labels) <= set(classes):
        return read
    left_out.update(label for label in objects.labels if label not in classes)
    kept = [place for place, label in enumerate(objects.labels) if label in classes]
    return dataclasses.replace(read, objects=data_objects.select(objects, np.array(kept, int)))


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


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """Something left out: what ("image", "object", "outline", "row"), why, where, and details."""

    what: str
    reason: str
    source: str
    detail: str


class Tally:
    """Counts what was read, what was changed, and names everything that was dropped."""

    def __init__(self):
        self.read: collections.Counter[str] = collections.Counter()
        self.changed: collections.Counter[str] = collections.Counter()
        self.drops: list[Drop] = []
        self.located: dict[str, str] = {}  # path of an image -> the name that it was found by

    def drop(self, what: str, reason: str, source: str, detail: Any = "") -> None:
        self.drops.append(Drop(what, reason, source, str(detail)))

    def count_drops(self) -> dict[str, dict[str, int]]:
        """Returns {what: {reason: count}}, the most frequent first."""
        counts = collections.Counter((drop.what, drop.reason) for drop in self.drops)
        by_what: dict[str, dict[str, int]] = {}
        for (what, reason), count in counts.most_common():
            by_what.setdefault(what, {})[reason] = count
        return by_what


SPLITS = {"train": "train", "val": "valid", "test": "test"}


def split_name(name: str) -> str | None:
    """Returns train, valid or test if a file's or folder's name holds one of them, else None."""
    lowered = name.lower()
    splits = {split for word, split in SPLITS.items() if word in lowered}
    return splits.pop() if len(splits) == 1 else None


def is_split_name(name: str) -> bool:
    """Whether a split can be a file's name, and is not that of another file."""
    taken = (jsonl.DROPPED, jsonl.MASK_ROUND_TRIP)
    return bool(re.fullmatch(r"\w[\w.-]{0,60}", name)) and f"{name}.jsonl" not in taken


def read_lines(path: str) -> list[str]:
    """Returns the lines of a list of names, or raises a ValueError if it is not UTF-8."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read().splitlines()
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#04x}"
        raise ValueError(f"{path}: {byte} is not UTF-8; save the file as UTF-8") from error


def clean_name(name: Any) -> str:
    """Returns a class name with single spaces; one that is no text or empty is ""."""
    return " ".join(name.split()) if is_text(name) else ""


def is_text(value: Any) -> bool:
    """Whether a value is text that UTF-8 can hold: JSON and file names can have half characters."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def collect_objects(
    annotations: Sequence[Annotation], size: tuple[int, int], tally: Tally
) -> data_objects.Objects | None:
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
            _compare(box, annotation, outline, size, tally)
            labels.append(annotation.label)
            boxes.append(box)
            outlines.append(outline)
    if annotations and not labels:
        return None
    return data_objects.make(*size, labels, boxes, outlines)


def from_size(box: Any) -> Any:
    """Returns the corners of [x, y, width, height], as COCO has it.

    Numbers may be text, as tools write them that keep everything as text. What is no box is
    returned as it is, and dropped where objects are collected.
    """
    if not isinstance(box, list) or len(box) != 4:
        return box
    try:
        x, y, width, height = map(_from_text, box)
    except (ValueError, TypeError, OverflowError):
        return box
    return [x, y, x + width, y + height]


def _from_text(value: Any) -> float:
    if type(value) in (int, float, str):
        return float(value)
    raise TypeError


def _box(annotation, outline, size: tuple[int, int], tally: Tally) -> np.ndarray | None:
    """Returns float64[4] inside the image, or drops the object."""
    width, height = size
    given = _around(outline, size) if annotation.box is None else annotation.box
    if given is None:
        tally.drop("object", "neither box nor outline", annotation.source)
        return None
    try:  # numpy would also take true for 1
        box = np.array([] if any(type(value) is bool for value in given) else given, np.float64)
    except (TypeError, ValueError, OverflowError):
        box = np.zeros(0)
    if box.shape != (4,) or not np.isfinite(box).all():
        tally.drop("object", "box is not four numbers", annotation.source, f"{given!r:.80}")
        return None
    limits = np.array([width, height, width, height], np.float64)
    inside = np.clip(box, 0, limits)
    if (
        np.round(inside[2:], data_objects.DIGITS) <= np.round(inside[:2], data_objects.DIGITS)
    ).any():
        empty = box[2] <= box[0] or box[3] <= box[1]
        reason = "box without area" if empty else "box outside its image"
        detail = f"{[round(x, 3) for x in box.tolist()]} in {width}x{height} pixels"
        tally.drop("object", reason, annotation.source, detail)
        return None
    if (np.abs(inside - box) > ROUNDING * limits).any():
        tally.changed["boxes clipped to their image"] += 1
    return inside


def _compare(
    box: np.ndarray, annotation: Annotation, outline, size: tuple[int, int], tally: Tally
) -> None:
    """Counts a box that is another one than its outline's; both are kept as they are."""
    around = _around(outline, size) if annotation.box is not None else None
    if around is None:
        return
    boxes = np.stack([box, np.array(around)])[:, [1, 0, 3, 2]]
    if geometry.iou(boxes[:1], boxes[1:])[0, 0] < SAME_BOX_IOU:
        tally.changed["boxes kept that are not around their outlines: look at the sheet"] += 1


def _outline(
    annotation: Annotation, size: tuple[int, int], tally: Tally
) -> data_objects.Segmentation | None:
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
    except (ValueError, TypeError, OverflowError) as error:
        tally.drop("outline", "broken outline", annotation.source, error)
        return None


def _polygons(value: list, size: tuple[int, int]) -> data_objects.Polygons:
    if all(type(number) in (int, float) for number in value):
        value = [value]  # VIA writes the one polygon without the list around it
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
