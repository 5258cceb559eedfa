"""What the scores of an evaluation mean, each in a line; and the few that are read first."""

from collections.abc import Mapping

from paligemma_jax.tasks import metrics

DOCS = {
    "loss": "mean over examples of -log p of a true answer's tokens; lower is better",
    "perplexity": "e to the loss: 1 is certain of the truth",
    "map": "COCO's AP: mean over classes and over IoU 0.5 to 0.95",
    "map50": "AP where a box counts as found at IoU 0.5, mean over classes",
    "map75": "AP at IoU 0.75, mean over classes",
    "precision50": "share of predicted boxes that are a true one, IoU 0.5",
    "recall50": "share of true boxes that are found, IoU 0.5",
    "mean_iou": "mean IoU of the boxes that are found",
    "miou": "IoU of masks, mean over true objects; 0 for one without an answer",
    "box_accuracy50": "share of true objects whose box has IoU 0.5 with the answer's",
    "box_accuracy75": "the same at IoU 0.75",
    "pixel_iou": "pixels of all intersections over those of all unions",
    "invalid": "true objects without an answer that has a mask",
    **{name: metric.doc for name, metric in metrics.METRICS.items()},
    "pope_valid": "share of answers that are yes or no",
    "scienceqa_parse_failures": "share of answers without a letter",
    "rsvqa_average": "mean over question types",
    "rsvqa_average_nonum": "the same without counts",
    "json_valid": "share of answers that are JSON",
    "correct": "share of examples with nothing wrong and nothing left out",
    "verbatim": "share of answers that are the truth letter by letter",
    "image_score": "mean of the examples' scores, by which the worst come first",
    "count_correct": "share of images with as many objects as there should be",
    "num_images": "images with a known truth",
    "num_examples": "examples with a known truth",
    "num_truths": "true objects",
    "num_predictions": "predicted objects",
    "empty": "examples for which nothing was predicted",
    "duplicates": "boxes on an earlier one of their label, IoU 0.9",
    "num_hit_max_new_tokens": "answers that were cut off: no end within max_new_tokens",
    "mean_tokens": "mean length of an answer",
}
# Of an evaluation those that it has.
FIRST = (
    *("loss", "map50", "map", "precision50", "recall50", "miou", "box_accuracy50"),
    *metrics.METRICS,
    "verbatim",
)


def choose_first(scores: Mapping[str, float]) -> dict[str, float]:
    """Returns the scores that say most, in the order they are read in."""
    return {name: scores[name] for name in FIRST if name in scores}
