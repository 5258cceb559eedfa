"""Average precision as COCO defines it, computed by pycocotools in memory."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import coco, cocoeval

from paligemma_jax.tasks import box_text

MAX_DETECTIONS = 100  # per image and class, the most confident first, as in COCO
NUM_RECALLS = 101  # of a curve: 0, 0.01, .. 1


def average_precision(
    truths: Sequence[box_text.Detections],
    predictions: Sequence[box_text.Detections],
    scores: Sequence[Sequence[float]],
    *,
    labels: Sequence[str],
) -> dict[str, dict[str, Any]]:
    """Returns {label: {"map", "map50", "map75", "curve50"}}, nan for a label without truth.

    "map" is the mean over the IoU thresholds 0.50, 0.55, .. 0.95. "curve50" is the precision at
    recalls of 0, 0.01, .. 1, at IoU 0.50; its mean is "map50". Boxes of equal confidence rank in
    the order of images, then of the text.

    Args:
      truths, predictions: one per image.
      scores: the confidences of each image's predictions.
      labels: the classes to score; boxes of other labels are left out.
    """
    if not labels or not truths:
        missing = dict.fromkeys(("map", "map50", "map75"), float("nan")) | {"curve50": []}
        return {label: dict(missing) for label in labels}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports on stdout
        evaluation = cocoeval.COCOeval(
            _to_coco(truths, [[1.0] * len(truth) for truth in truths], labels),
            _to_coco(predictions, scores, labels),
            "bbox",
        )
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    # [threshold, recall, class]; -1 where the class has no truth.
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    precision = np.where(precision < 0, np.nan, precision)
    at = {round(float(iou), 2): number for number, iou in enumerate(evaluation.params.iouThrs)}
    return {
        label: {
            "map": float(precision[:, :, number].mean()),
            "map50": float(precision[at[0.5], :, number].mean()),
            "map75": float(precision[at[0.75], :, number].mean()),
            "curve50": precision[at[0.5], :, number].tolist(),
        }
        for number, label in enumerate(labels)
    }


def _to_coco(
    images: Sequence[box_text.Detections],
    scores: Sequence[Sequence[float]],
    labels: Sequence[str],
) -> coco.COCO:
    """Returns COCO's structure. IoU does not see the scale of an axis, so boxes stay in 0..1."""
    category = {label: number for number, label in enumerate(labels)}
    annotations = []
    for image_id, (boxes, image_scores) in enumerate(zip(images, scores, strict=True)):
        for box, label, score in zip(boxes.boxes_yxyx, boxes.labels, image_scores, strict=True):
            if label not in category:
                continue
            y1, x1, y2, x2 = (float(value) for value in box)
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools reads 0 as "not matched"
                    "image_id": image_id,
                    "category_id": category[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": float(score),
                }
            )
    structure = coco.COCO()
    dataset: Any = {
        "images": [{"id": image_id} for image_id in range(len(images))],
        "categories": [{"id": number, "name": label} for label, number in category.items()],
        "annotations": annotations,
    }
    structure.dataset = dataset
    structure.createIndex()
    return structure
