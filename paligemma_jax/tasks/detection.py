"""Detection: boxes with labels. Their text is in `box_text`; here they are scored.

`score_example` (of an image) and `aggregate` (of a data set) speak in rows of predictions.jsonl, so
the scores of a run can be computed again from the file alone.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paligemma_jax.tasks import average_precision, box_text, definition, geometry

MATCH_IOU = 0.5
DUPLICATE_IOU = 0.9
SURE = 0.5  # a label this likely is likelier than noise
NOTHING, OTHER = "(nothing)", "(other)"  # of the confusion matrix

IMPORT = definition.Import(
    name="detection",
    prompt="detect {classes}",
    fields=("classes",),
    source=definition.OBJECTS,
    answer="boxes",
    columns=("image", "objects"),
    endings=(".yaml", ".yml"),
)
SCORE_DOCS = {
    "map": "COCO's AP: mean over classes and over IoU 0.5 to 0.95",
    "map50": "AP where a box counts as found at IoU 0.5, mean over classes",
    "map75": "AP at IoU 0.75, mean over classes",
    "precision50": "share of predicted boxes that are a true one, IoU 0.5",
    "recall50": "share of true boxes that are found, IoU 0.5",
    "mean_iou": "mean IoU of the boxes that are found",
    "duplicates": "boxes on an earlier one of their label, IoU 0.9",
}


def make(options: definition.Options) -> definition.Task:
    """Returns the detection task that reads and writes `<loc>` tokens by the options' convention.

    Raises:
      ValueError: no such convention.
    """
    convention = options.convention
    geometry.scale(convention)  # a wrong name is an error now, not at the first box
    scored = score_with_noise if options.noise_boxes else score_example
    return definition.Task(
        name="detection",
        parse=functools.partial(box_text.parse, convention=convention),
        format=functools.partial(box_text.format, convention=convention),
        check=box_text.check,
        labels=lambda detections: detections.labels,
        has_short_answers=False,
        score_example=definition.of_text_alone(functools.partial(scored, convention=convention)),
        aggregate=aggregate,
        check_row=definition.every_row,
        usual_scores=(),
        metric="map50",
        score_docs=SCORE_DOCS,
        first_scores=("map50", "map", "precision50", "recall50"),
        draw=lambda detections: definition.Drawing(detections.boxes_yxyx, detections.labels),
        grammar=definition.ObjectGrammar("detect", num_segs=0),
        looks=(definition.BOXES,),
        form="<loc0390><loc0241><loc0472><loc0440> fracture",
        remedy="set task='detection'",
        imports=(IMPORT,),
        needs_codec=False,
        moves_boxes=True,
        takes_noise_boxes=True,
        keeps_coordinates=True,
    )


def score_example(
    prediction: str,
    *,
    suffix: str | None,
    tokens: Sequence[tuple[str, float]] | None = None,
    convention: str = geometry.DEFAULT_CONVENTION,
) -> dict[str, Any]:
    """Reads one prediction and compares it with its truth: a detection row's own keys.

    Args:
      prediction: the model's text.
      suffix: the true text; None where it is not known.
      tokens: (piece, log-probability) of the prediction, as `box_text.box_scores` takes them;
        without them every confidence is 1.

    Returns:
      detections: [{"box_yxyx": [y1, x1, y2, x2] in 0..1, "label": ..., "score": confidence}].
      dropped: {reason: count} of what was malformed in the prediction (`box_text.REASONS`).
      truths: [{"box_yxyx", "label"}], or None.
      matched: how many detections overlap a truth of their label with IoU >= 0.5, one to one.
      mean_iou: of the matched; None if there are none.
      score: 0..1, 2 * (sum of the matches' IoU, whatever their size) / (detections + truths); 1
        where both are none. None without truth, like matched, mean_iou and correct.
      correct: whether every detection and every truth is matched.

    Raises:
      ValueError: the true text is no detection.
    """
    text = prediction if tokens is None else box_text.join_pieces(piece for piece, _ in tokens)
    predicted = box_text.parse(text, convention=convention)
    scores = np.ones(len(predicted)) if tokens is None else box_text.box_scores(tokens)
    row = {"detections": with_scores(predicted, scores), "dropped": dict(predicted.dropped)}
    return row | compare(predicted, suffix, convention)


def score_with_noise(
    prediction: str,
    *,
    suffix: str | None,
    tokens: Sequence[tuple[str, float]] | None = None,
    convention: str = geometry.DEFAULT_CONVENTION,
) -> dict[str, Any]:
    """As `score_example`, with `box_text.label_scores` as confidences.

    Of a model that was trained with noise boxes (`data.noise_boxes`; arXiv:2412.03555, App. C):
    after its real boxes every training answer went on with boxes at random places whose class was
    "noise". Noise and eos are forbidden while the model answers, so it always names as many boxes
    as there is room for, and the likelihood of a label says which of them are meant.

    Boxes of confidence SURE or more are the row's `detections`, which all keys speak of; the others
    are in the key `unsure`, of the same form, which only average precision looks at. What comes
    after the last separator was cut off and does not count.
    """
    if tokens is None:
        named = box_text.parse(prediction.rpartition(";")[0], convention=convention)
        scores = np.ones(len(named))
    else:
        finished = box_text.drop_unfinished(tokens)
        text = box_text.join_pieces(piece for piece, _ in finished)
        named = box_text.parse(text, convention=convention)
        scores = box_text.label_scores(finished)
    sure = _choose(named, scores >= SURE)
    return {
        "detections": with_scores(sure, scores[scores >= SURE]),
        "unsure": with_scores(_choose(named, scores < SURE), scores[scores < SURE]),
        "dropped": dict(named.dropped),
        **compare(sure, suffix, convention),
    }


def compare(predicted: box_text.Detections, suffix: str | None, convention: str) -> dict[str, Any]:
    """Returns the keys of `score_example` from `truths` on."""
    if suffix is None:
        return dict.fromkeys(("truths", "matched", "mean_iou", "score", "correct"))
    if problem := box_text.check(suffix):
        raise ValueError(f"the true suffix is no detection: {problem}")
    truth = box_text.parse(suffix, convention=convention)
    same = [pair for pair in match(truth, predicted, min_iou=0) if pair.same_label]
    matched = [pair.iou for pair in same if pair.iou >= MATCH_IOU]
    total = len(truth) + len(predicted)
    return {
        "truths": _to_rows(truth),
        "matched": len(matched),
        "mean_iou": round(_mean(matched), 6) if matched else None,
        "score": round(2 * sum(pair.iou for pair in same) / total, 6) if total else 1.0,
        "correct": len(matched) == len(truth) == len(predicted),
    }


def with_scores(detections: box_text.Detections, scores: np.ndarray) -> list[dict[str, Any]]:
    """Returns detections as the rows have them, with a confidence each."""
    return [
        {**row, "score": round(float(score), 6)}
        for row, score in zip(_to_rows(detections), scores, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A truth and a prediction, by their places in their lists, that cover the same thing."""

    truth: int
    prediction: int
    iou: float
    same_label: bool


def match(
    truth: box_text.Detections, predicted: box_text.Detections, *, min_iou: float
) -> list[Pair]:
    """Pairs truths with predictions one to one: those of the same label first, then by IoU.

    Confidences play no part: a text names its boxes or it does not. Pairs have IoU >= min_iou
    and above 0.
    """
    overlaps = geometry.iou(truth.boxes_yxyx, predicted.boxes_yxyx)
    candidates = [
        Pair(int(t), int(p), float(overlaps[t, p]), truth.labels[t] == predicted.labels[p])
        for t, p in np.argwhere((overlaps >= min_iou) & (overlaps > 0))
    ]
    pairs, used = [], (set(), set())
    for pair in sorted(candidates, key=lambda pair: (not pair.same_label, -pair.iou)):
        if pair.truth not in used[0] and pair.prediction not in used[1]:
            used[0].add(pair.truth)
            used[1].add(pair.prediction)
            pairs.append(pair)
    return pairs


def aggregate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the scores of a data set from its rows; `score_example` lists their keys.

    Rows without truth are left out. Numbers that do not exist, for lack of boxes, are nan.

    Returns:
      map, map50, map75: COCO's average precision over classes that have a truth, with the boxes'
        confidences (`average_precision`); per_class has each class's own. Boxes under the key
        "unsure", which `score_with_noise` gives, count here and nowhere else.
      precision50, recall50, mean_iou: of all boxes, from pairs of one label with IoU >= 0.5. A
        label that is no truth's (`unknown_labels` counts them) is a false positive here.
      image_score, correct: means of the rows' values. count_correct: share of images with as many
        boxes as they should have.
      num_images, num_truths, num_predictions, empty (images without predictions), duplicates
        (boxes with IoU >= 0.9 with an earlier one of their label), dropped ({reason: count}).
      per_class: {label: {map, map50, map75, precision50, recall50, num_truths, num_predictions}}
        for the labels of truths.
      confusion: {"labels": [...], "counts": [[...]]}, counts[truth][prediction] of pairs with IoU
        >= 0.5. The labels are those of truths and prompts, then "(other)" for what else was
        predicted, then "(nothing)": a prediction without truth, a truth without prediction.
      pr_curves: {label: precision at recalls of 0, 0.01, .. 1, at IoU 0.5}.
    """
    images = [_Image.of(row) for row in rows if row["truths"] is not None]
    labels = sorted({label for image in images for label in image.truth.labels})
    known = {label for image in images for label in image.known}
    per_class = _per_class(images, labels)
    curves = {label: values.pop("curve50") for label, values in per_class.items()}
    return {
        **{
            key: _mean([values[key] for values in per_class.values()])
            for key in ("map", "map50", "map75")
        },
        **_quality(images),
        **_counts(images),
        "unknown_labels": dict(
            Counter(
                label for image in images for label in image.predicted.labels if label not in known
            )
        ),
        "per_class": per_class,
        "confusion": _confusion(images),
        "pr_curves": curves,
    }


def pairs(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (true label, predicted label) of everything that a row of labelled boxes counts.

    NOTHING stands for the missing side. Labels that no data set knows are as the model wrote them.
    """
    return _Image.of(row).labels_of_pairs()


def confusion(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the confusion matrix of `aggregate`, of rows of any task that has labelled boxes."""
    return _confusion([_Image.of(row) for row in rows if row["truths"] is not None])


@dataclasses.dataclass(frozen=True, eq=False)
class _Image:
    """A row, ready to be counted.

    `pairs` overlap by MATCH_IOU or more; `ranked` has the unsure; `known` labels are those of the
    truths and of the prompt.
    """

    row: Mapping[str, Any]
    truth: box_text.Detections
    predicted: box_text.Detections
    ranked: box_text.Detections
    scores: list[float]
    pairs: list[Pair]
    known: set[str]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "_Image":
        truth, predicted = _from_rows(row["truths"]), _from_rows(row["detections"])
        ranked = [*row["detections"], *row.get("unsure", ())]
        return cls(
            row=row,
            truth=truth,
            predicted=predicted,
            ranked=_from_rows(ranked),
            scores=[row_of_box["score"] for row_of_box in ranked],
            pairs=match(truth, predicted, min_iou=MATCH_IOU),
            known={*truth.labels, *box_text.prefix_classes(row.get("prefix", ""))},
        )

    def labels_of_pairs(self) -> list[tuple[str, str]]:
        """Returns what `pairs` does."""
        partner = {pair.truth: pair.prediction for pair in self.pairs}
        alone = sorted(set(range(len(self.predicted))) - set(partner.values()))
        predicted = [*self.predicted.labels, NOTHING]
        return [
            *((label, predicted[partner.get(n, -1)]) for n, label in enumerate(self.truth.labels)),
            *((NOTHING, predicted[number]) for number in alone),
        ]


def _quality(images: Sequence[_Image]) -> dict[str, float]:
    ious = [pair.iou for image in images for pair in image.pairs if pair.same_label]
    return {
        "precision50": _ratio(len(ious), sum(len(image.predicted) for image in images)),
        "recall50": _ratio(len(ious), sum(len(image.truth) for image in images)),
        "mean_iou": _mean(ious),
        "image_score": _mean([image.row["score"] for image in images]),
        "correct": _mean([image.row["correct"] for image in images]),
        "count_correct": _mean([len(image.truth) == len(image.predicted) for image in images]),
    }


def _counts(images: Sequence[_Image]) -> dict[str, Any]:
    dropped = Counter()
    for image in images:
        dropped.update(image.row["dropped"])
    return {
        "num_images": len(images),
        "num_truths": sum(len(image.truth) for image in images),
        "num_predictions": sum(len(image.predicted) for image in images),
        "empty": sum(len(image.predicted) == 0 for image in images),
        "duplicates": sum(_count_duplicates(image.predicted) for image in images),
        "dropped": dict(dropped),
    }


def _per_class(images: Sequence[_Image], labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    precisions = average_precision.average_precision(
        [image.truth for image in images],
        [image.ranked for image in images],
        [image.scores for image in images],
        labels=labels,
    )
    num_truths = Counter(label for image in images for label in image.truth.labels)
    num_predictions = Counter(label for image in images for label in image.predicted.labels)
    matched = Counter(
        image.truth.labels[pair.truth]
        for image in images
        for pair in image.pairs
        if pair.same_label
    )
    return {
        label: {
            **precisions[label],
            "precision50": _ratio(matched[label], num_predictions[label]),
            "recall50": _ratio(matched[label], num_truths[label]),
            "num_truths": num_truths[label],
            "num_predictions": num_predictions[label],
        }
        for label in labels
    }


def _confusion(images: Sequence[_Image]) -> dict[str, Any]:
    names = [*sorted({label for image in images for label in image.known}), OTHER, NOTHING]
    place = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), int)
    for image in images:
        for truth, prediction in image.labels_of_pairs():
            counts[place[truth], place.get(prediction, place[OTHER])] += 1
    return {"labels": names, "counts": counts.tolist()}


def _count_duplicates(predicted: box_text.Detections) -> int:
    overlaps = geometry.iou(predicted.boxes_yxyx, predicted.boxes_yxyx)
    labels = np.array(predicted.labels, object)
    same = np.tril((overlaps >= DUPLICATE_IOU) & (labels[:, None] == labels[None, :]), k=-1)
    return int(same.any(axis=1).sum())


def _choose(detections: box_text.Detections, is_chosen: np.ndarray) -> box_text.Detections:
    numbers = np.flatnonzero(is_chosen)
    labels = tuple(detections.labels[number] for number in numbers)
    return box_text.Detections(detections.boxes_yxyx[numbers], labels)


def _to_rows(detections: box_text.Detections) -> list[dict[str, Any]]:
    return [
        {"box_yxyx": [round(float(value), 6) for value in box], "label": label}
        for box, label in zip(detections.boxes_yxyx, detections.labels, strict=True)
    ]


def _from_rows(rows: Sequence[Mapping[str, Any]]) -> box_text.Detections:
    boxes = np.array([row["box_yxyx"] for row in rows], np.float32).reshape(-1, 4)
    return box_text.Detections(boxes, tuple(row["label"] for row in rows))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
