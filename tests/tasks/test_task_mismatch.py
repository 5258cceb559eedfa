"""Answers of another task are known by how they look, as long as nearly all of them look so."""

import pytest

from paligemma_jax.tasks import task

BOX = "<loc0100><loc0200><loc0500><loc0600>"
SEGS = "".join(f"<seg{n:03}>" for n in range(16))
LOOKS = {
    "detection": [f"{BOX} cat", f"{BOX} cat ; {BOX} dog", f"{BOX} dog"],
    "segmentation": [f"{BOX}{SEGS} cat", f"{BOX}{SEGS} dog", f"{BOX}{SEGS}"],
    "json": ['{"dime": 2}', "{}", '[{"dime": 1}]'],
    "vqa": ["red", "a blue one", "two"],
}


@pytest.mark.parametrize("asked", [name for name in task.TASKS if name != "mixed"])
@pytest.mark.parametrize("given", LOOKS)
def test_answers_of_another_task_name_the_task_to_set(asked, given):
    found = task.find_mismatch(asked, LOOKS[given])
    is_text = asked in ("vqa", "caption")
    if asked == given or (is_text and given in ("vqa", "json")):
        assert found is None
        return
    assert f"task='{given}'" in found.remedy
    assert found.what.startswith("all 3 answers are ") and LOOKS[given][0][:60] in found.what
    refuses = [task.look_up(asked).check(answer) is not None for answer in LOOKS[given]]
    assert found.is_refused == all(refuses) == (not is_text)


def test_nearly_all_is_enough_and_empty_answers_say_nothing():
    found = task.find_mismatch("detection", ["red"] * 9 + [f"{BOX} cat"] + [""] * 10)
    assert found.what.startswith("9 of 10 answers are words without boxes")
    assert task.find_mismatch("detection", ["red"] * 8 + [f"{BOX} cat"] * 2) is None


def test_numbers_are_json_where_that_is_the_task():
    assert task.find_mismatch("json", ["1", "2", "3"]) is None
    assert "task='vqa'" in task.find_mismatch("detection", ["1", "2", "3"]).remedy


def test_two_answers_are_too_few_to_tell():
    assert task.find_mismatch("detection", ["red", "blue"]) is None


@pytest.mark.parametrize("given", LOOKS)
def test_mixed_data_may_hold_answers_of_any_task_and_none(given):
    assert task.find_mismatch("mixed", LOOKS[given]) is None
    check = task.look_up("mixed").check
    assert [check(answer) for answer in (*LOOKS[given], "")] == [None] * (len(LOOKS[given]) + 1)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (f"{BOX}", "has no label"),
        (f"{BOX[:-9]} cat", "exactly four <loc>"),
        (f"{BOX}{SEGS[:-8]} cat", "fewer than 16"),
    ],
)
def test_mixed_data_is_held_to_the_grammar_of_what_it_looks_like(answer, says):
    assert says in task.look_up("mixed").check(answer)
