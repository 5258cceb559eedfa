"""Every number of a report is explained, and those that say most are known."""

import numpy as np
import pytest

from paligemma_jax.tasks import metrics, task

BOX = "<loc0000><loc0001><loc0500><loc0600>"
SUFFIXES = {
    "detection": f"{BOX} cat",
    "segmentation": BOX + "<seg007>" * 16 + " cat",
    "vqa": "a cat",
    "caption": "a cat",
    "json": '{"cat": 1}',
    "mixed": f"{BOX} cat",
}
EXTRA = {"answers": ["a cat"] * 10, "question_type": "presence"}


def numbers(chosen, suffix):
    judged = chosen.score_example(suffix, suffix=suffix, extra=EXTRA)
    scores = chosen.aggregate([{"prefix": "", "prediction": suffix, **judged}])
    return {key: value for key, value in scores.items() if isinstance(value, int | float)}


@pytest.mark.parametrize("name", sorted(task.TASKS))
def test_every_number_of_a_task_is_explained_and_its_metric_is_read_first(name):
    chosen = task.choose(name, task.Options(codec=lambda codes: np.ones((len(codes), 64, 64))))
    found = numbers(chosen, SUFFIXES[name])
    assert set(found) <= set(task.all_score_docs())
    assert chosen.metric in task.choose_first_scores(found)


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_every_number_of_a_metric_is_explained_and_the_metric_is_read_first(name):
    found = numbers(task.choose("vqa", task.Options(scores=(name,))), "a cat")
    assert set(found) <= set(task.all_score_docs())
    assert name in task.choose_first_scores(found)


def test_what_is_read_first_is_explained():
    assert set(task.first_scores()) <= set(task.all_score_docs())
    assert list(task.choose_first_scores({"verbatim": 0.0, "num_images": 3, "loss": 1.0})) == [
        "loss",
        "verbatim",
    ]
