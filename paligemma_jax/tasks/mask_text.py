"""Segmentation as text: `<locY1><locX1><locY2><locX2>` and 16 `<seg>` tokens, then a label.

    <loc0390><loc0241><loc0472><loc0440><seg071><seg..> .. <seg018> water ; <loc0010>.. boat

Boxes are those of detection. The 16 tokens are the mask inside the box, stretched to 64x64, as a
mask codec writes it (`models.mask_codec`); this file knows them as numbers and takes the codec as
two functions where pixels are needed. The label may be missing, as in RefCOCO's suffixes. Text of
a model is read by `parse`, which never raises; text to train on is held to the grammar by `check`.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from paligemma_jax.tasks import box_text, geometry

NUM_TOKENS = 16
NUM_CODES = 128

# float32[n, 64, 64] in 0..1 -> int[n, 16], and int[n, 16] -> float32[n, 64, 64], above 0 inside.
Encode = Callable[[np.ndarray], np.ndarray]
Decode = Callable[[np.ndarray], np.ndarray]

# Why `parse` drops something, in the order in which it looks, and how `check` says it.
REASONS = {
    **{key: text for key, text in box_text.REASONS.items() if key not in ("no_label", "seg_token")},
    "no_seg": "has no <seg> token after its <loc> tokens",
    "seg_count": "has fewer than 16 <seg> tokens after its <loc> tokens",
    "seg_range": "has a <seg> token that is not three digits from 000 to 127",
    "extra_seg": "has more than 16 <seg> tokens",
}

_SEG = re.compile(r"<seg([0-9]+)>")
_LEADING_SEGS = re.compile(r"(?:\s*<seg[0-9]+>)*")


@dataclasses.dataclass(frozen=True, eq=False)
class Segments:
    """The objects of one image, their masks as tokens.

    Attributes:
      boxes_yxyx: float32[n, 4] in 0..1 of the image.
      codes: int32[n, 16] in 0..127.
      labels: n texts, maybe empty.
      places: int[n], the how manieth object of the text each of them is, dropped ones counted.
      dropped: how often `parse` dropped something, by the reasons in `REASONS`; all of them count
        objects that are dropped, except that `extra_seg` counts objects kept without what follows
        their first 16 tokens.
    """

    boxes_yxyx: np.ndarray
    codes: np.ndarray
    labels: tuple[str, ...]
    places: tuple[int, ...] = ()
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)


def parse(text: str, *, convention: str = geometry.DEFAULT_CONVENTION) -> Segments:
    """Returns the well-formed objects in a model's text; the malformed are dropped and counted.

    Never raises on text. White space and separators are read as in `box_text.parse`.
    """
    segments = [_Segment(part) for part in box_text.cut_objects(text)]
    kept = [(place, segment) for place, segment in enumerate(segments) if segment.problem is None]
    dropped = Counter(segment.problem for segment in segments if segment.problem)
    dropped["extra_seg"] += sum(segment.num_extra > 0 for _, segment in kept)
    bins = np.array([segment.part.bins for _, segment in kept], np.int32)
    return Segments(
        boxes_yxyx=geometry.from_bins(bins, convention=convention),
        codes=np.array([segment.codes for _, segment in kept], np.int32).reshape(-1, NUM_TOKENS),
        labels=tuple(segment.part.label for _, segment in kept),
        places=tuple(place for place, _ in kept),
        dropped={reason: count for reason, count in dropped.items() if count},
    )


def format(  # the counterpart of parse
    segments: Segments, *, convention: str = geometry.DEFAULT_CONVENTION
) -> str:
    """Returns the canonical text of objects; `parse` gives them back, boxes within half a bin.

    Raises:
      ValueError: a box that is not finite, leaves 0..1, or is empty once rounded to bins; codes
        that are not 16 numbers in 0..127; a label that `parse` would not give back.
    """
    boxes = np.asarray(segments.boxes_yxyx, np.float32).reshape(-1, 4)
    codes = np.asarray(segments.codes, np.int32).reshape(-1, NUM_TOKENS)
    if not len(boxes) == len(codes) == len(segments.labels):
        raise ValueError(f"{len(boxes)} boxes, {len(codes)} masks, {len(segments.labels)} labels")
    if not np.all((boxes >= 0) & (boxes <= 1)):  # False for nan too
        raise ValueError(f"boxes must be yxyx in 0..1 of the image; found {boxes.tolist()}")
    texts = []
    all_bins = geometry.to_bins(boxes, convention=convention)
    for number, label in enumerate(segments.labels):
        text = _write(all_bins[number], codes[number], label)
        if problem := _problem(text):
            raise ValueError(f"object {number + 1} {problem}: '{text}'")
        texts.append(text)
    return box_text.SEPARATOR.join(texts)


def check(suffix: str) -> str | None:
    """Returns what keeps a training suffix from being canonical, or None if nothing does.

    The empty suffix is an image without objects and is allowed.
    """
    segments = [_Segment(part) for part in box_text.cut_objects(suffix)]
    for number, segment in enumerate(segments, start=1):
        problem = segment.problem or ("extra_seg" if segment.num_extra else None)
        if problem:
            return f"object {number} {REASONS[problem]}: '{box_text.shorten(segment.part.text)}'"
    parts = [(one.part.bins, one.codes, one.part.label) for one in segments]
    if suffix != box_text.SEPARATOR.join(_write(*part) for part in parts):
        meant = (_write(bins, codes, box_text.without_comma(label)) for bins, codes, label in parts)
        return box_text.describe_difference(suffix, box_text.SEPARATOR.join(meant))
    return None


def encode(regions: geometry.Regions, codec: Encode) -> Segments:
    """Returns objects with their masks as tokens, ready for `format`.

    Raises:
      ValueError: a box that covers no pixel.
    """
    cuts = [
        geometry.cut_mask(mask, box)
        for mask, box in zip(regions.masks, regions.boxes_yxyx, strict=True)
    ]
    codes = codec(np.stack(cuts)) if cuts else np.zeros((0, NUM_TOKENS))
    return Segments(regions.boxes_yxyx, np.asarray(codes, np.int32), regions.labels)


def paste(segments: Segments, codec: Decode, *, height: int, width: int) -> geometry.Regions:
    """Returns objects with their masks in the pixels of an image; undoes `encode`."""
    pasted = [
        geometry.paste_mask(mask, box, height, width)
        for mask, box in zip(paint(segments, codec), segments.boxes_yxyx, strict=True)
    ]
    stacked = np.array(pasted, bool).reshape(-1, height, width)
    return geometry.Regions(segments.boxes_yxyx, segments.labels, stacked)


def paint(segments: Segments, codec: Decode) -> np.ndarray:
    """Returns float32[n, 64, 64], each mask in its box, above 0 inside."""
    if not len(segments):
        return np.zeros((0, geometry.MASK_SIDE, geometry.MASK_SIDE), np.float32)
    return np.asarray(codec(segments.codes))


def confidences(tokens: Sequence[tuple[str, float]]) -> np.ndarray:
    """Returns float32[n] in 0..1: how sure the model was of each object that `parse` finds.

    The geometric mean of the probabilities of all of an object's tokens: box, mask and label. It
    ranks objects; it is not calibrated.

    Args:
      tokens: (piece, log-probability), as `box_text.box_scores` takes them.
    """
    text, spans = box_text.piece_spans([piece for piece, _ in tokens])
    owner = np.full(len(text), -1)
    parts = [part for part in box_text.cut_objects(text) if _Segment(part).problem is None]
    for number, part in enumerate(parts):
        owner[part.locs_start : part.rest_start + len(part.rest.rstrip())] = number
    logps = box_text.logps_by_part(owner, spans, tokens, num_parts=len(parts))
    return np.exp(np.array([np.mean(part) for part in logps], np.float32))


@dataclasses.dataclass(frozen=True)
class _Segment:
    """One stretch of text that should be an object with a mask."""

    part: box_text.TextObject

    @property
    def segs(self) -> list[str]:
        """The digits of the seg tokens right after the loc tokens."""
        leading = _LEADING_SEGS.match(self.part.rest)
        return _SEG.findall(leading[0]) if leading else []

    @property
    def codes(self) -> list[int]:
        return [int(digits) for digits in self.segs[:NUM_TOKENS]]

    @property
    def num_extra(self) -> int:
        return len(_SEG.findall(self.part.rest)) - NUM_TOKENS

    @property
    def problem(self) -> str | None:
        """The first key of REASONS that keeps this from being an object."""
        if problem := self.part.problem_of_box:
            return problem
        if not self.segs:
            return "no_seg"
        if len(self.segs) < NUM_TOKENS:
            return "seg_count"
        used = self.segs[:NUM_TOKENS]
        in_range = all(len(digits) == 3 and int(digits) < NUM_CODES for digits in used)
        return None if in_range else "seg_range"


def _problem(text: str) -> str | None:
    """Returns what keeps the text of one object from being read back as it is."""
    segments = [_Segment(part) for part in box_text.cut_objects(text)]
    if len(segments) == 1 and segments[0].problem:
        return REASONS[segments[0].problem]
    return "has a label that does not read back" if check(text) or len(segments) != 1 else None


def _write(bins: Sequence[int] | np.ndarray, codes: Sequence[int] | np.ndarray, label: str) -> str:
    locs = "".join(f"<loc{value:04d}>" for value in bins)
    segs = "".join(f"<seg{value:03d}>" for value in codes)
    return f"{locs}{segs} {label}" if label else locs + segs
