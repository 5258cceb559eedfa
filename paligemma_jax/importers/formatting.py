"""Formats examples: prompt and answer of each task, and the check that they read back.

    detection      detect a ; b        <loc....>x4 a ; <loc....>x4 b
    segmentation   segment a ; b       <loc....>x4<seg...>x16 a ; ...
    counting       count a ; b ...     {"a": 2}, indented by two, classes without objects left out
    vqa            answer en {question}
    caption        caption en

A prompt asks for all classes of the data set, in the order of the source; `prompt` replaces it.
"""

import collections
import dataclasses
import json
import string
from collections.abc import Sequence

import numpy as np

from paligemma_jax.data import objects as data_objects
from paligemma_jax.data import records
from paligemma_jax.importers import example, mending
from paligemma_jax.tasks import box_text, definition, geometry, mask_text, task

HALF_BIN = 0.5 + 1e-3  # float32 leaves a trace


@dataclasses.dataclass(frozen=True)
class MaskCodec:
    """Functions from masks to tokens and back.

    Attributes:
      encode: float32[n, 64, 64] in 0..1, masks cut to their boxes -> int[n, 16] in 0..127.
      decode: int[n, 16] -> float32[n, 64, 64], above 0 inside.
    """

    encode: mask_text.Encode
    decode: mask_text.Decode


@dataclasses.dataclass(frozen=True)
class FormattedExample:
    """Prompt, answer and the objects that the answer names, in its order."""

    prefix: str
    suffix: str
    objects: data_objects.Objects | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class MaskCheck:
    """A mask (object `number`, from 1, of `source`) and its IoU with what its tokens decode to."""

    source: str
    number: int
    label: str
    iou: float


@dataclasses.dataclass
class RoundTrip:
    """What a comparison of the answers, read back, with their sources gave.

    Attributes:
      num_boxes, worst_box: boxes compared, and the largest difference in bins.
      num_texts: other answers compared.
      masks: every mask compared.
    """

    num_boxes: int = 0
    worst_box: float = 0.0
    num_texts: int = 0
    masks: list[MaskCheck] = dataclasses.field(default_factory=list)

    def worst_masks(self) -> list[MaskCheck]:
        """Returns the masks, those with the lowest IoU first."""
        return sorted(self.masks, key=lambda mask: mask.iou)


class Formatter:
    """Makes rows for a task.

    Args:
      task_name: what rows are made for, a key of `task.imports()`.
      classes: what prompts ask for.
      prompt: template with {classes} or {question}; None is the task's own.
      coordinates: convention of `<loc>` tokens, see `geometry`.
      codec: needed for segmentation.

    Raises:
      ValueError: a template with other fields, or a class whose name cannot be written.
    """

    def __init__(
        self,
        task_name: str,
        classes: Sequence[str],
        *,
        prompt: str | None = None,
        coordinates: str = geometry.DEFAULT_CONVENTION,
        codec: MaskCodec | None = None,
    ):
        self.rule, self.task = task.rule(task_name), task.trained_as(task_name)
        self.codec, self.coordinates = codec, coordinates
        self.template = self.rule.prompt if prompt is None else prompt
        self.classes = box_text.SEPARATOR.join(classes)
        self.round_trip = RoundTrip()
        _check_template(self.template, self.rule)
        if self.rule.answer in ("boxes", "masks"):
            for name in classes:
                if problem := find_problem(name):
                    raise ValueError(
                        f"class '{name}' cannot be written in a suffix: {problem}. "
                        f"Rename it in the source"
                    )

    def make(self, item: example.Example, tally: example.Tally) -> FormattedExample | None:
        """Returns the texts of an example, checked, or None where none of its objects is left."""
        prefix = item.prefix
        if prefix is None and item.question is None and "{question}" in self.template:
            prefix = ""
        if prefix is None:
            values = {"classes": self.classes, "question": item.question or ""}
            prefix, note = records.fill_template(self.template, values)
            tally.changed.update([note] if note else [])
        if item.suffix is not None:
            return self._texts(item, prefix, tally)
        objects = item.objects
        assert objects is not None, "importers give objects or a suffix"
        if self.rule.answer == "counts":
            counts = dict(collections.Counter(objects.labels))
            suffix = json.dumps(counts, indent=2, ensure_ascii=False)
            if json.loads(suffix) != counts:
                raise ValueError(f"{item.source}: '{suffix}' does not read back")
            self.round_trip.num_texts += 1
            return FormattedExample(prefix, suffix, objects)
        kept = self._large_enough(objects, item.source, tally)
        if len(objects) and not len(kept):
            name = item.picture.name
            tally.drop("image", "none of its objects could be kept", item.source, name)
            return None
        if self.rule.answer == "masks":
            return self._segments(item, prefix, kept, tally)
        suffix = box_text.format(data_objects.to_detections(kept), convention=self.coordinates)
        read = box_text.parse(suffix, convention=self.coordinates)
        self._compare_boxes(read, suffix, kept, item.source)
        return FormattedExample(prefix, suffix, kept)

    def _texts(
        self, item: example.Example, prefix: str, tally: example.Tally
    ) -> FormattedExample | None:
        """Returns a row whose answer the source has itself."""
        mended = mending.mend(item, prefix, self.task, tally)
        if mended is None:
            return None
        self.round_trip.num_texts += 1
        return FormattedExample(prefix, *mended)

    def _large_enough(
        self, objects: data_objects.Objects, source: str, tally: example.Tally
    ) -> data_objects.Objects:
        """Returns the objects whose boxes still have an area once they are rounded to bins."""
        boxes = data_objects.to_detections(objects).boxes_yxyx
        bins = geometry.to_bins(boxes, convention=self.coordinates)
        keep = (bins[:, 2:] > bins[:, :2]).all(axis=1)
        for number in np.flatnonzero(~keep):
            detail = f"{objects.labels[number]} {objects.boxes_xyxy[number].tolist()}"
            tally.drop("object", "smaller than a <loc> bin", source, detail)
        return objects if keep.all() else data_objects.select(objects, np.flatnonzero(keep))

    def _compare_boxes(
        self,
        read: box_text.Detections | mask_text.Segments,
        suffix: str,
        objects: data_objects.Objects,
        source: str,
    ) -> None:
        """Raises a ValueError where what was read of a suffix is not what the objects are."""
        truth = data_objects.to_detections(objects)
        if read.labels != truth.labels:
            raise ValueError(f"{source}: '{suffix:.80}' reads back as {read.labels}")
        scale = geometry.scale(self.coordinates)
        far = np.abs(read.boxes_yxyx - truth.boxes_yxyx) * scale
        # The last half bin of "1024" has no token of its own.
        limit = np.where(truth.boxes_yxyx * scale > geometry.NUM_BINS - 0.5, 1.0, HALF_BIN)
        if (far > limit).any():
            raise ValueError(f"{source}: '{suffix:.80}' reads back {far.max():.3f} bins away")
        self.round_trip.num_boxes += len(read)
        self.round_trip.worst_box = max(self.round_trip.worst_box, *far.reshape(-1), 0.0)

    def _segments(
        self,
        item: example.Example,
        prefix: str,
        objects: data_objects.Objects,
        tally: example.Tally,
    ) -> FormattedExample | None:
        assert self.codec is not None, "segmentation needs a codec"
        cut: dict[int, np.ndarray] = {}
        for number, label in enumerate(objects.labels):
            try:
                cut[number] = _cut_mask(objects, number)
            except ValueError as error:
                detail = f"{label} {objects.boxes_xyxy[number].tolist()}"
                tally.drop("object", str(error), item.source, detail)
        kept = data_objects.select(objects, np.array(list(cut), int))
        if len(objects) and not len(kept):
            tally.drop("image", "none of its objects could be kept", item.source)
            return None
        truth = data_objects.to_detections(kept)
        codes = self.codec.encode(np.stack(list(cut.values()))) if cut else np.zeros((0, 16))
        segments = mask_text.Segments(truth.boxes_yxyx, codes, truth.labels)
        suffix = mask_text.format(segments, convention=self.coordinates)
        self._compare_masks(suffix, kept, item.source)
        return FormattedExample(prefix, suffix, kept)

    def _compare_masks(self, suffix: str, objects: data_objects.Objects, source: str) -> None:
        """Measures what is left of every mask, in the image's own pixels, as evaluations do."""
        assert self.codec is not None
        read = mask_text.parse(suffix, convention=self.coordinates)
        self._compare_boxes(read, suffix, objects, source)
        decoded = self.codec.decode(read.codes) if len(read) else ()
        for number, (codes, box) in enumerate(zip(decoded, read.boxes_yxyx, strict=True)):
            mask = _bitmap(objects, number)
            again = geometry.paste_mask(codes, box, *mask.shape)
            iou = round(float((mask & again).sum() / (mask | again).sum()), 4)
            check = MaskCheck(source, number + 1, objects.labels[number], iou)
            self.round_trip.masks.append(check)


def _cut_mask(objects: data_objects.Objects, number: int) -> np.ndarray:
    """Returns float32[64, 64] in 0..1, the mask of an object in its box.

    Raises:
      ValueError: why it has none.
    """
    if objects.segmentations[number] is None:
        raise ValueError("without an outline")
    bitmap = _bitmap(objects, number)
    box = data_objects.to_detections(objects).boxes_yxyx[number]
    try:
        mask = geometry.cut_mask(bitmap, box)
    except ValueError as error:
        raise ValueError("box covers no pixel") from error
    if not mask.any():
        raise ValueError("outline covers no pixel of its box")
    return mask


def _bitmap(objects: data_objects.Objects, number: int) -> np.ndarray:
    """Returns bool[H, W], the mask of an object that has an outline."""
    outline = objects.segmentations[number]
    assert outline is not None
    return data_objects.bitmap(outline, width=objects.width, height=objects.height)


def _check_template(template: str, rule: definition.Import) -> None:
    try:
        fields = {
            field for _, field, _, _ in string.Formatter().parse(template) if field is not None
        }
    except ValueError as error:
        raise ValueError(f"--prompt '{template}': {error}") from error
    if fields - set(rule.fields):
        names = ", ".join(f"{{{name}}}" for name in rule.fields) or "no field"
        raise ValueError(f"--prompt '{template}': task {rule.name} knows {names}")


def find_problem(name: str) -> str | None:
    """Returns why a suffix cannot hold the name of a class, None where it can."""
    box = np.array([[0, 0, 1, 1]], np.float32)
    try:
        box_text.format(box_text.Detections(box, (name,)))
    except ValueError as error:
        return str(error)
    return None
