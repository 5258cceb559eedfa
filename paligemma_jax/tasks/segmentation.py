"""Segmentation: masks in boxes. Their text is in `mask_text`; here they are scored.

mIoU, box accuracy and the count of invalid answers are those of big_vision's evaluator (its
evaluators/proj/paligemma/transfers/segmentation.py): masks are compared at the image's own size; an
answer that is malformed, or has no pixel, counts as IoU 0. Of n true objects the first n that the
text names are looked at, whatever follows is not; so with one object, as in RefCOCO, it is the
first. Several are paired one to one, those of the same label first, then by IoU.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from paligemma_jax.tasks import definition, detection, geometry, mask_text

MATCH_IOU = 0.5
BOX_IOUS = {"box_accuracy50": 0.5, "box_accuracy75": 0.75}
UNKNOWN_SIDE = 512  # px of the canvas where only tokens are known, and no image size
IMPORT = definition.Import(
    name="segmentation",
    prompt="segment {classes}",
    fields=("classes",),
    source=definition.OBJECTS,
    answer="masks",
    columns=("image", "objects"),
)
SCORE_DOCS = {
    "miou": "IoU of masks, mean over true objects; 0 for one without an answer",
    "box_accuracy50": "share of true objects whose box has IoU 0.5 with the answer's",
    "box_accuracy75": "the same at IoU 0.75",
    "pixel_iou": "pixels of all intersections over those of all unions",
    "invalid": "true objects without an answer that has a mask",
}

DrawTruth = Callable[[], geometry.Regions]


def make(options: definition.Options) -> definition.Task:
    """Returns the segmentation task; the options' codec turns mask tokens into masks.

    Raises:
      ValueError: no such convention.
    """
    convention, codec = options.convention, options.codec or _no_codec
    geometry.scale(convention)

    def draw(segments: mask_text.Segments) -> definition.Drawing:
        painted = mask_text.paint(segments, codec)
        return definition.Drawing(segments.boxes_yxyx, segments.labels, painted)

    return definition.Task(
        name="segmentation",
        parse=functools.partial(mask_text.parse, convention=convention),
        format=functools.partial(mask_text.format, convention=convention),
        check=mask_text.check,
        labels=lambda segments: [label for label in segments.labels if label],
        has_short_answers=False,
        score_example=functools.partial(score_example, codec=codec, convention=convention),
        aggregate=aggregate,
        check_row=definition.every_row,
        usual_scores=(),
        metric="miou",
        score_docs=SCORE_DOCS,
        first_scores=("miou", "box_accuracy50"),
        draw=draw,
        grammar=definition.ObjectGrammar("segment", num_segs=mask_text.NUM_TOKENS),
        looks=(definition.MASKS,),
        form="<loc0390><loc0241><loc0472><loc0440><seg071>...<seg018> water",
        remedy="set task='segmentation'",
        imports=(IMPORT,),
        needs_codec=True,
        moves_boxes=False,
        takes_noise_boxes=False,
        keeps_coordinates=False,
    )


def score_example(
    prediction: str,
    *,
    suffix: str | None,
    tokens: Sequence[tuple[str, float]] | None = None,
    extra: Mapping[str, Any] | None = None,  # noqa: ARG001 (every task has it)
    draw_truth: DrawTruth | None = None,
    codec: mask_text.Decode,
    convention: str = geometry.DEFAULT_CONVENTION,
) -> dict[str, Any]:
    """Reads one prediction and compares it with its truth: a segmentation row's own keys.

    Args:
      prediction: the model's text.
      suffix: the true text; None where it is not known.
      tokens: (piece, log-probability) of the prediction; without them every confidence is 1.
      draw_truth: returns the true masks at the image's size; without it they are what the suffix
        holds, decoded, on a canvas of 512x512.
      codec: turns tokens into masks.

    Returns:
      detections: [{"box_yxyx", "label", "score", "mask"}], boxes in 0..1, mask as
        `geometry.pack_mask` writes it.
      dropped: {reason: count} of what was malformed in the prediction (`mask_text.REASONS`).
      truths: [{"box_yxyx", "label", "mask", "iou", "box_iou", "is_answered", "pixels"}], or None:
        overlap of each with its partner, 0 without one; whether it has one that is well formed;
        pixels of [intersection, union].
      matched: how many truths have IoU >= 0.5 with a partner of their label.
      mean_iou: of all truths; None if there are none. score: the same, and where there are no
        truths 1 if nothing was predicted, else 0. None without truth, as are matched, correct.
      correct: whether all truths are matched and nothing else was predicted.

    Raises:
      ValueError: the true text is no segmentation, or names other objects than the true masks.
    """
    predicted = mask_text.parse(prediction, convention=convention)
    scores = np.ones(len(predicted)) if tokens is None else mask_text.confidences(tokens)
    painted = mask_text.paint(predicted, codec)
    row = {
        "detections": [
            {**row_of_object, "score": round(float(score), 6)}
            for row_of_object, score in zip(_to_rows(predicted, painted), scores, strict=True)
        ],
        "dropped": dict(predicted.dropped),
    }
    if suffix is None:
        return row | dict.fromkeys(("truths", "matched", "mean_iou", "score", "correct"))
    truth, true_masks = _read_truth(suffix, draw_truth, codec, convention)
    pairs = _pair(truth, predicted, painted)
    ious = [pair.iou for pair in pairs]
    matched = sum(pair.iou >= MATCH_IOU and pair.same_label for pair in pairs)
    return row | {
        "truths": [
            {**row_of_object, **pair.to_row()}
            for row_of_object, pair in zip(_to_rows(truth, true_masks), pairs, strict=True)
        ],
        "matched": matched,
        "mean_iou": round(float(np.mean(ious)), 6) if ious else None,
        "score": round(float(np.mean(ious)), 6) if ious else float(not len(predicted)),
        "correct": matched == len(truth) == len(predicted),
    }


def aggregate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the scores of a data set from its rows; `score_example` lists their keys.

    Rows without truth are left out. Numbers that do not exist, for lack of objects, are nan.

    Returns:
      miou: mean over all true objects. box_accuracy50, box_accuracy75: share of true objects whose
        box has at least this IoU with the answer's. invalid: how many have no answer with a mask
        of a pixel or more. (big_vision's miou, boxacc/0.5, boxacc/0.75, invalid; num_truths is its
        total.)
      pixel_iou: the pixels of all intersections over those of all unions.
      correct, image_score: means of the rows' values. count_correct: share of images with as many
        objects as they should have.
      num_images, num_truths, num_predictions, empty (images without predictions), dropped ({reason:
        count}).
      per_class: {label: {miou, pixel_iou, num_truths}} for the labels of truths.
      confusion: as in `detection.aggregate`, of pairs whose boxes overlap.
    """
    rows = [row for row in rows if row["truths"] is not None]
    truths = [truth for row in rows for truth in row["truths"]]
    dropped = Counter()
    for row in rows:
        dropped.update(row["dropped"])
    return {
        "miou": _mean([truth["iou"] for truth in truths]),
        **{
            name: _mean([truth["box_iou"] >= least for truth in truths])
            for name, least in BOX_IOUS.items()
        },
        "pixel_iou": _pixel_iou(truths),
        "invalid": sum(not truth["is_answered"] for truth in truths),
        "image_score": _mean([row["score"] for row in rows]),
        "correct": _mean([row["correct"] for row in rows]),
        "count_correct": _mean([len(row["truths"]) == len(row["detections"]) for row in rows]),
        "num_images": len(rows),
        "num_truths": len(truths),
        "num_predictions": sum(len(row["detections"]) for row in rows),
        "empty": sum(not row["detections"] for row in rows),
        "dropped": dict(dropped),
        "per_class": _per_class(truths),
        "confusion": detection.confusion(rows),
    }


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A truth beside its answer, or beside nothing: then all is 0."""

    iou: float = 0.0
    box_iou: float = 0.0
    same_label: bool = False
    is_answered: bool = False
    intersection: int = 0
    union: int = 0

    def to_row(self) -> dict[str, Any]:
        return {
            "iou": round(self.iou, 6),
            "box_iou": round(self.box_iou, 6),
            "is_answered": self.is_answered,
            "pixels": [self.intersection, self.union],
        }


def _read_truth(
    suffix: str, draw_truth: DrawTruth | None, codec: mask_text.Decode, convention: str
) -> tuple[geometry.Regions, np.ndarray]:
    """Returns the true objects, and float[n, 64, 64], their masks in their boxes, for pictures."""
    if problem := mask_text.check(suffix):
        raise ValueError(f"the true suffix is no segmentation: {problem}")
    written = mask_text.parse(suffix, convention=convention)
    painted = mask_text.paint(written, codec)
    if draw_truth is None:
        side = UNKNOWN_SIDE
        return mask_text.paste(written, lambda _: painted, height=side, width=side), painted
    drawn = draw_truth()
    if len(drawn) != len(written):
        raise ValueError(
            f"the suffix names {len(written)} objects, the row's key 'objects' {len(drawn)}"
        )
    both = zip(drawn.masks, drawn.boxes_yxyx, strict=True)
    return drawn, np.array([_shrink(mask, box) for mask, box in both])


def _no_codec(codes: np.ndarray) -> np.ndarray:
    raise ValueError(f"{len(codes)} masks, and no mask codec is loaded")


def _shrink(mask: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Returns float[64, 64], above 0 inside: what of bool[H, W] lies in a box, maybe nothing."""
    inside, side = geometry.crop_mask(mask, box), geometry.MASK_SIDE
    return (
        geometry.resize_linear(inside, side, side) if inside.size else np.zeros((side, side))
    ) - 0.5


def _pair(
    truth: geometry.Regions, predicted: mask_text.Segments, painted: np.ndarray
) -> list[_Pair]:
    """Returns one pair for each truth, from the first len(truth) objects of the text."""
    candidates = []
    overlaps = geometry.iou(truth.boxes_yxyx, predicted.boxes_yxyx)
    _, H, W = truth.masks.shape
    for p, place in enumerate(predicted.places):
        if place >= len(truth):
            continue
        (y1, x1, y2, x2), inside = geometry.fit_mask(painted[p], predicted.boxes_yxyx[p], H, W)
        for t, mask in enumerate(truth.masks):
            shared = int((mask[y1:y2, x1:x2] & inside).sum()) if inside.size else 0
            union = int(mask.sum()) + int(inside.sum()) - shared
            pair = _Pair(
                iou=shared / union if union else 0.0,
                box_iou=float(overlaps[t, p]),
                same_label=truth.labels[t] == predicted.labels[p],
                is_answered=inside.size > 0,
                intersection=shared,
                union=union,
            )
            candidates.append((t, p, pair))
    candidates.sort(
        key=lambda candidate: (
            not candidate[2].same_label,
            -candidate[2].iou,
            -candidate[2].box_iou,
        )
    )
    chosen: dict[int, _Pair] = {}
    used = set()
    for t, p, pair in candidates:
        if t not in chosen and p not in used:
            chosen[t] = pair
            used.add(p)
    missed = [_Pair(union=int(mask.sum())) for mask in truth.masks]
    return [chosen.get(t, pair) for t, pair in enumerate(missed)]


def _per_class(truths: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    labels = sorted({truth["label"] for truth in truths} - {""})
    groups = {label: [truth for truth in truths if truth["label"] == label] for label in labels}
    return {
        label: {
            "miou": _mean([truth["iou"] for truth in group]),
            "pixel_iou": _pixel_iou(group),
            "num_truths": len(group),
        }
        for label, group in groups.items()
    }


def _pixel_iou(truths: Sequence[Mapping[str, Any]]) -> float:
    shared, union = (sum(truth["pixels"][part] for truth in truths) for part in (0, 1))
    return shared / union if union else float("nan")


def _to_rows(
    regions: geometry.Regions | mask_text.Segments, painted: np.ndarray
) -> list[dict[str, Any]]:
    return [
        {
            "box_yxyx": [round(float(value), 6) for value in box],
            "label": label,
            "mask": geometry.pack_mask(mask > 0),
        }
        for box, label, mask in zip(regions.boxes_yxyx, regions.labels, painted, strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
