"""Data without a config: JSONL is found, other data sets are imported, a validation set is made."""

import json

import pytest

from paligemma_jax.data import records
from paligemma_jax.importers import likely_task
from paligemma_jax.preparing import data_search

OUT = "runs/mine/data"


def find(place, source, **wanted):
    return data_search.find(data_search.Wanted(data=str(source), **wanted), place / OUT)


def read(data, name):
    return records.read_jsonl(data.folder / name, image_dir=data.image_dir)


@pytest.mark.parametrize(
    ("train", "valid"),
    [
        ("train.jsonl", "valid.jsonl"),
        ("_annotations.train.jsonl", "_annotations.valid.jsonl"),
        ("dataset/_annotations.train.jsonl", "dataset/_annotations.valid.jsonl"),
        ("my-train.jsonl", "my-val.jsonl"),
    ],
)
def test_rows_of_ours_are_trained_on_where_they_are(place, write_jsonl, train, valid):
    write_jsonl(f"data/{valid}", 2, first=50)
    path = write_jsonl(f"data/{train}", 6)
    data = find(place, "data")
    assert (data.folder / data.train, data.num_train) == (path.relative_to(place), 6)
    assert data.valid == valid.rpartition("/")[2] and len(data.examples) == 8
    assert data.task == "detection" and not (place / OUT).exists()


def test_a_validation_set_is_kept_out_of_the_training_data(place, write_jsonl):
    write_jsonl("data/all.jsonl", 20)
    data = find(place, "data")
    train, valid = read(data, data.train), read(data, data.valid)
    assert (len(train), len(valid), data.num_train) == (16, 4, 16)
    assert not {one.images for one in train} & {one.images for one in valid}
    assert str(data.folder) == str(place / OUT) and data.image_dir == str(place / "data")
    again = find(place, "data/all.jsonl")
    assert [one.suffix for one in read(again, again.valid)] == [one.suffix for one in valid]


def test_few_rows_are_all_trained_on(place, write_jsonl):
    write_jsonl("data/train.jsonl", 3)
    data = find(place, "data")
    assert (data.valid, data.num_train, len(data.examples)) == (None, 3, 3)


def test_questions_on_one_picture_are_not_divided(place, write_jsonl, capsys):
    write_jsonl("data/train.jsonl", 9, image="0.png", prefix="answer en what?", suffix="a cat")
    data = find(place, "data")
    assert data.valid is None and data.task == "caption"
    assert "make only 1 groups" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "task"),
    [
        ([("detect cat", "")], "detection"),
        ([("segment cat", "")], "segmentation"),
        ([("answer en a?", "yes"), ("answer en b?", "3")], "vqa"),
        ([("caption en", "a cat"), ("caption en", "a dog")], "caption"),
        ([("count", '{"a": 2}'), ("count", "{}")], "json"),
    ],
)
def test_the_task_is_what_the_answers_look_like(place, rows, task):
    (place / "data").mkdir()
    lines = [{"image": [], "prefix": prefix, "suffix": suffix} for prefix, suffix in rows]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (place / "data/train.jsonl").write_text(text)
    assert find(place, "data").task == task


def test_an_export_of_another_tool_is_imported_and_divided(place, write_coco):
    data = find(place, write_coco("data/coco", 20))
    assert (data.task, data.train, data.valid, data.num_train) == (
        *("detection", "train.jsonl", "valid.jsonl"),
        16,
    )
    assert {one.prefix for one in data.examples} == {"detect coin ; note"}
    assert len(read(data, data.valid)) == 4 and data.image_dir is None
    # Given again after it was cut short, it is the same.
    again = find(place, place / "data/coco")
    assert [one.suffix for one in again.examples] == [one.suffix for one in data.examples]


def test_another_task_is_imported_with_its_scores(place, write_coco):
    data = find(place, write_coco("data/coco", 6), task="counting", words=("--prompt", "how many?"))
    assert data.task == "json" and data.keys["evals.valid.scores"][0] == "count_exact"
    assert {one.prefix for one in data.examples} == {"how many?"}


@pytest.mark.parametrize(
    ("content", "task"),
    [
        ({"question": "how many?", "answer": "2"}, "vqa"),
        ({"caption": "a cat"}, "caption"),
        ({"conversations": []}, "vqa"),
    ],
)
def test_columns_tell_the_task(place, content, task):
    (place / "rows.jsonl").write_text(json.dumps({"file_name": "a.png"} | content) + "\n")
    assert likely_task.find("rows.jsonl")[0] == task


def test_columns_that_tell_of_no_task_need_one(place):
    (place / "rows.jsonl").write_text('{"file_name": "a.png", "width": 3}\n')
    with pytest.raises(ValueError, match=r"tell of no task: say what answers are: --task detec"):
        likely_task.find("rows.jsonl")


def test_what_is_no_data_set_says_what_is_there(place, write_jsonl):
    (place / "empty").mkdir()
    for source, message in (
        ("nowhere", "SRC nowhere: no such file or folder"),
        ("empty", "no data set of a known format"),
        ("roboflow://a/b/3", "--task detection"),
    ):
        with pytest.raises(ValueError, match=message):
            find(place, source)
    write_jsonl("data/train.jsonl", 6)
    with pytest.raises(ValueError, match=r"--classes cat: for data sets of other tools.*leave"):
        find(place, "data", words=("--classes", "cat"))
