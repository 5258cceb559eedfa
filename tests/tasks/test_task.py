import numpy as np
import pytest

from paligemma_jax.tasks import task

BOX = "<loc0000><loc0001><loc0500><loc0600>"
SUFFIXES = {
    "detection": f"{BOX} cat",
    "segmentation": BOX + "<seg007>" * 16 + " cat",
    "vqa": "a cat",
    "caption": "a cat",
    "json": '{"cat": 1}',
    "mixed": f"{BOX} cat",
}


def fill(codes):
    """A mask codec whose masks fill their boxes."""
    return np.ones((len(codes), 64, 64))


@pytest.mark.parametrize("name", sorted(task.TASKS))
def test_every_task_goes_from_text_to_scores(name):
    chosen, suffix = task.choose(name, task.Options(codec=fill)), SUFFIXES[name]
    assert chosen.check(suffix) is None
    assert chosen.format(chosen.parse(suffix)) == suffix
    row = {"prefix": "", "prediction": suffix, **chosen.score_example(suffix, suffix=suffix)}
    assert row["score"] == pytest.approx(1.0) and row["correct"]
    scores = chosen.aggregate([row])
    assert scores[chosen.metric] == pytest.approx(1.0)
    assert task.scalars(scores)[chosen.metric] == pytest.approx(1.0)


def test_the_convention_reaches_every_function():
    chosen = task.choose("detection", task.Options(convention="1024"))
    detections = chosen.parse("<loc0000><loc0000><loc0512><loc0512> cat")
    assert detections.boxes_yxyx.tolist() == [[0, 0, 0.5, 0.5]]
    assert chosen.format(detections) == "<loc0000><loc0000><loc0512><loc0512> cat"
    row = chosen.score_example("<loc0000><loc0000><loc0512><loc0512> cat", suffix=None)
    assert row["detections"][0]["box_yxyx"] == [0, 0, 0.5, 0.5]


def test_wrong_names_are_told_with_the_choices():
    with pytest.raises(ValueError, match=r"'detect' is unknown.*Did you mean 'detection'"):
        task.choose("detect")
    with pytest.raises(ValueError, match="'1000' is unknown"):
        task.choose("detection", task.Options(convention="1000"))
    with pytest.raises(ValueError, match="'detection' has its own scores"):
        task.choose("detection", task.Options(scores=("anls",)))
    with pytest.raises(ValueError, match="Did you mean 'cider'"):
        task.choose("caption", task.Options(scores=("cidr",)))
    with pytest.raises(ValueError, match="needs a mask codec"):
        task.choose("segmentation")


def test_chosen_scores_replace_the_usual_ones():
    chosen = task.choose("vqa", task.Options(scores=("anls", "exact_match")))
    assert chosen.metric == "anls"
    row = {"prediction": "cats", **chosen.score_example("cats", suffix="cat", tokens=[], extra={})}
    assert set(chosen.aggregate([row])) == {"anls", "exact_match", "num_examples", "empty"}


def test_curves_are_made_of_numbers_only():
    scores = {
        "map50": 0.5,
        "map75": float("nan"),
        "dropped": {"no_loc": 2},
        "unknown_labels": {"x/y": 3},
        "per_class": {"cat": {"map50": 0.5, "num_truths": 2}},
        "per_group": {"answer_type: number": {"anls": 0.5}},
        "confusion": {"labels": ["cat"], "counts": [[1]]},
    }
    assert task.scalars(scores) == {
        "map50": 0.5,
        "dropped/no_loc": 2.0,
        "per_class/cat/map50": 0.5,
        "per_class/cat/num_truths": 2.0,
        "per_group/answer_type: number/anls": 0.5,
    }


def test_every_row_knows_its_cells_of_the_confusion_matrix():
    chosen = task.choose("detection")
    other = "<loc0600><loc0600><loc0900><loc0900>"
    answers = {
        f"{BOX} cat": f"{BOX} cat ; {other} dog",  # one found, one missed
        f"{BOX} eel": f"{BOX} dog",  # a label that nobody knows
        f"{BOX} dog ; {other} cat": f"{BOX} cat",  # another class, and one too many
        "": "",
    }
    rows = [
        {"prefix": "detect cat ; dog", **chosen.score_example(answer, suffix=truth)}
        for answer, truth in answers.items()
    ]
    rows.append({"prefix": "", **chosen.score_example(f"{BOX} cat", suffix=None)})
    confusion = chosen.aggregate(rows)["confusion"]
    cells = task.confusion_cells(rows, confusion)
    labels = confusion["labels"]
    named = [[(labels[truth], labels[answer]) for truth, answer in row] for row in cells]
    assert named == [
        [("cat", "cat"), ("dog", "(nothing)")],
        [("dog", "(other)")],
        [("cat", "dog"), ("(nothing)", "cat")],
        [],
        [],
    ]
    counts = np.zeros_like(confusion["counts"])
    for cell in (cell for row in cells for cell in row):
        counts[cell] += 1
    assert counts.tolist() == confusion["counts"]


def test_answers_that_are_classes_have_cells_too():
    chosen = task.choose("vqa")
    truths = ["yes", "no"] * 4
    rows = [
        {"prediction": answer, **chosen.score_example(answer, suffix=truth)}
        for answer, truth in zip(["yes", "yes", "maybe", *truths[3:]], truths, strict=True)
    ]
    cells = task.confusion_cells(rows, chosen.aggregate(rows)["confusion"])
    assert cells[:4] == [[(1, 1)], [(0, 1)], [(1, 2)], [(0, 0)]]
    assert task.confusion_cells(rows, None) == [[]] * 8


def test_scores_that_lead_have_words_that_are_no_names():
    first = task.leading_scores()
    assert first[:2] == ("map50", "map") and set(task.first_scores()) == set(first)
    assert all("_" not in title for title in task.TITLES.values())
    assert set(task.TITLES) <= set(task.all_score_docs())
