"""What the scores of an evaluation mean, each in a line; and the few that are read first."""

from collections.abc import Mapping

from paligemma_jax.tasks import metrics, task

LOSSES = {
    "loss": "mean over examples of -log p of a true answer's tokens; lower is better",
    "perplexity": "e to the loss: 1 is certain of the truth",
}
COMMON = {
    "correct": "share of examples with nothing wrong and nothing left out",
    "verbatim": "share of answers that are the truth letter by letter",
    "image_score": "mean of the examples' scores, by which the worst come first",
    "count_correct": "share of images with as many objects as there should be",
    "num_images": "images with a known truth",
    "num_examples": "examples with a known truth",
    "num_truths": "true objects",
    "num_predictions": "predicted objects",
    "empty": "examples for which nothing was predicted",
    "num_hit_max_new_tokens": "answers that were cut off: no end within max_new_tokens",
    "mean_tokens": "mean length of an answer",
}


def all_docs() -> dict[str, str]:
    """Returns {score: what it means}, of every task and metric."""
    docs = dict(LOSSES)
    for one in task.every():
        docs |= one.score_docs
    docs |= {name: metric.doc for name, metric in metrics.METRICS.items()}
    for metric in metrics.METRICS.values():
        docs |= metric.further
    return docs | COMMON


def first() -> tuple[str, ...]:
    """Returns the scores that say most, of every task and metric, in the order they are read in."""
    of_tasks = [name for one in task.every() for name in one.first_scores]
    return ("loss", *of_tasks, *metrics.METRICS, "verbatim")


def choose_first(scores: Mapping[str, float]) -> dict[str, float]:
    """Returns those of the scores that say most, in the order they are read in."""
    return {name: scores[name] for name in first() if name in scores}
