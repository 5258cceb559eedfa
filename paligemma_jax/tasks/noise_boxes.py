"""Detection by a model that was trained with noise boxes: it names boxes until it is cut off.

After its real boxes every training answer went on with boxes at random places whose class was
"noise" (`data.noise_boxes`; arXiv:2412.03555, App. C). Noise and eos are forbidden while the model
answers, so it always names as many boxes as there is room for, and says by the likelihood of their
labels which of them it believes in.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from paligemma_jax.tasks import detection, detection_score, geometry

SURE = 0.5  # a label this likely is likelier than noise


def judge(
    prediction: str,
    *,
    suffix: str | None,
    tokens: Sequence[tuple[str, float]] | None = None,
    convention: str = geometry.DEFAULT_CONVENTION,
) -> dict[str, Any]:
    """As `detection_score.judge`, with `detection.label_scores` as confidences.

    Boxes of confidence SURE or more are the row's `detections`, which all keys speak of; the others
    are in the key `unsure`, of the same form, which only average precision looks at. What comes
    after the last separator was cut off and does not count.
    """
    if tokens is None:
        found = detection.parse(prediction.rpartition(";")[0], convention=convention)
        scores = np.ones(len(found))
    else:
        finished = detection.drop_unfinished(tokens)
        text = detection.join_pieces(piece for piece, _ in finished)
        found = detection.parse(text, convention=convention)
        scores = detection.label_scores(finished)
    sure = _choose(found, scores >= SURE)
    return {
        "detections": detection_score.with_scores(sure, scores[scores >= SURE]),
        "unsure": detection_score.with_scores(_choose(found, scores < SURE), scores[scores < SURE]),
        "dropped": dict(found.dropped),
        **detection_score.compare(sure, suffix, convention),
    }


def _choose(detections: detection.Detections, is_chosen: np.ndarray) -> detection.Detections:
    numbers = np.flatnonzero(is_chosen)
    labels = tuple(detections.labels[number] for number in numbers)
    return detection.Detections(detections.boxes_yxyx[numbers], labels)
