"""JSONL and CSV: which column is what, our own rows, and every kind of bad row."""

import json

import pytest

from paligemma_jax.importers import formats


def jsonl(path, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def test_questions_and_answers(tmp_path, picture, read):
    picture("photos/a.png")
    row = {"image": "photos/a.png", "question": "how many?", "answer": 3, "note": "x"}
    jsonl(tmp_path / "labels.jsonl", row)
    for path in (tmp_path, tmp_path / "labels.jsonl"):
        _, (one,), tally = read("jsonl", path, task="vqa")
        assert (one.question, one.suffix, one.prefix) == ("how many?", "3", None)
        assert one.source == "labels.jsonl:1" and not tally.drops


def test_columns_are_named_by_the_user(tmp_path, picture, read):
    picture("a.png")
    jsonl(tmp_path / "x.jsonl", {"pic": "a.png", "q": "why?", "a": "so", "question": "no"})
    columns = {"image": "pic", "question": "q", "answer": "a"}
    _, (one,), _ = read("jsonl", tmp_path, task="vqa", columns=columns)
    assert (one.question, one.suffix) == ("why?", "so")
    with pytest.raises(ValueError, match=r"no column 'Q'; found \['pic', 'q'"):
        read("jsonl", tmp_path, task="vqa", columns={"question": "Q"})
    with pytest.raises(ValueError, match=r"no column for image, answer, .*--columns image="):
        read("jsonl", tmp_path, task="vqa")


def test_our_own_rows_keep_prefix_suffix_and_objects(tmp_path, picture, read):
    picture("a.png")
    row = {
        "image": "a.png",
        "prefix": "detect cat",
        "suffix": "<loc0000><loc0000><loc0001><loc0001> cat",
    }
    kept = {"width": 64, "height": 48, "objects": [{"label": "cat", "box": [0, 0, 9, 9]}]}
    jsonl(tmp_path / "_annotations.valid.jsonl", row | kept, row | {"objects": [3]})
    _, (one, other), tally = read("jsonl", tmp_path)
    assert (other.suffix, other.objects) == (row["suffix"], None)
    assert (one.prefix, one.suffix, one.split) == (row["prefix"], row["suffix"], "valid")
    assert one.objects.labels == ("cat",)
    assert [(d.what, d.reason, d.source) for d in tally.drops] == [
        ("object list", "bad objects", "_annotations.valid.jsonl:2")
    ]


def test_bad_jsonl_rows_are_named(tmp_path, picture, read, drops):
    picture("a.png")
    (tmp_path / "empty.png").touch()
    good = {"image": "a.png", "question": "q", "answer": "a"}
    jsonl(
        tmp_path / "x.jsonl",
        good,
        "{",
        "[]",
        good | {"answer": None},
        good | {"image": 3},
        good | {"image": "gone.png"},
        good | {"image": "../a.png"},
        good | {"image": "empty.png"},
    )
    _, examples, tally = read("jsonl", tmp_path, task="vqa")
    assert len(examples) == 1 and tally.read["rows"] == 8 == 1 + len(tally.drops)
    dropped = drops(tally)
    assert [message[:9] for message in dropped[("row", "broken JSON")]] == ["x.jsonl:2"]
    assert [message[:9] for message in dropped[("row", "not an object")]] == ["x.jsonl:3"]
    assert "found None" in dropped[("row", "column without text")][0]
    assert {reason for _, reason in dropped} >= {
        "without an image",
        "image not found",
        "image outside the folder",
        "image file is empty",
    }


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_captions_in_csv(tmp_path, picture, read, delimiter):
    picture("a.png")
    path = tmp_path / "captions.csv"
    path.write_text(
        f'﻿Image{delimiter}Caption{delimiter}split\na.png{delimiter}"a{delimiter}\n""b"""'
        f"{delimiter}test\n"
    )
    _, (one,), tally = read("csv", path, task="caption")
    assert (one.suffix, one.split) == (f'a{delimiter}\n"b"', "test") and not tally.drops


@pytest.mark.parametrize("name", ["../evil", "a/b", "dropped", ".hidden"])
def test_a_split_cannot_lead_outside(tmp_path, picture, read, drops, name):
    picture("a.png")
    (tmp_path / "a.csv").write_text(f"image,caption,split\na.png,x,{name}\na.png,y,fold-1\n")
    _, (one,), tally = read("csv", tmp_path, task="caption")
    assert one.split == "fold-1"
    assert list(drops(tally)) == [("row", "split that is no name for a file")]


def test_rows_of_another_length_are_named(tmp_path, picture, read, drops):
    picture("a.png")
    (tmp_path / "a.csv").write_text("image,caption\na.png,one\na.png\na.png,a,b\n")
    _, examples, tally = read("csv", tmp_path, task="caption")
    assert len(examples) == 1
    ((key, messages),) = drops(tally).items()
    assert key == ("row", "wrong number of columns")
    assert messages == [
        "a.csv:3: expected 2 columns, found 1",
        "a.csv:4: expected 2 columns, found 3",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"image,caption\na.png,caf\xe9\n", "byte 0xe9 is not UTF-8"),
        (b'image,caption\na.png,"open\n', "broken CSV"),
        (b"image,words\na.png,x\n", "no column for caption"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, picture, read, content, message):
    picture("a.png")
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read("csv", tmp_path, task="caption")


def test_hugging_faces_image_folder_has_objects(tmp_path, picture, read, drops):
    picture("train/a.png")
    objects = {"bbox": [[10, 5, 20, 30], [0, 0, 9, 9]], "categories": [1, 0]}
    rows = [{"file_name": "a.png", "objects": value} for value in (objects, {"boxes": []}, 3)]
    rows.append({"file_name": "a.png", "objects": {"bbox": [[1, 1, 2, 2]], "categories": []}})
    rows.append({"file_name": "a.png", "objects": {"bbox": [[1, 1, 2, 2]], "categories": [7]}})
    jsonl(tmp_path / "train" / "metadata.jsonl", *rows)
    classes, (one,), tally = read("jsonl", tmp_path / "train", classes=("cat", "dog"))
    assert classes == ("cat", "dog") == one.objects.labels[::-1]
    assert one.objects.boxes_xyxy.tolist() == [[10, 5, 30, 35], [0, 0, 9, 9]]
    dropped = drops(tally)
    assert len(dropped[("row", "bad objects")]) == 3
    assert "object 1: category 7 of 2 names" in dropped[("object", "without a class name")][0]


def test_boxes_cannot_be_made_of_questions(tmp_path, picture, read):
    picture("a.png")
    jsonl(tmp_path / "x.jsonl", {"image": "a.png", "question": "q", "answer": "a"})
    with pytest.raises(ValueError, match="no column for objects, nor suffix"):
        read("jsonl", tmp_path)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("captions.txt", ["image,caption", '1.png,"A box , red"']),  # Flickr8k
        ("results.csv", ["image_name| comment_number| comment", "1.png| 0| A box , red"]),  # 30k
        ("a.csv", ["image; caption", "1.png; A box , red"]),
        ("a.tsv", ["image\tcaption", "1.png\tA box , red"]),
    ],
)
def test_captions_of_flickr_are_read_with_images_in_a_folder_below(
    tmp_path, picture, read, name, lines
):
    picture("Images/1.png")
    (tmp_path / name).write_text("\n".join(lines))
    assert formats.choose(str(tmp_path), "caption")[0] == "csv"
    _, (one,), tally = read("csv", tmp_path, task="caption")
    assert (one.picture.name, one.suffix) == ("1.png", "A box , red") and not tally.drops


def test_a_quotation_mark_between_bars_is_text(tmp_path, picture, read):
    picture("1.png")
    (tmp_path / "a.csv").write_text('image| caption\n1.png| "A" is a letter\n1.png| 5" wide\n')
    _, examples, _ = read("csv", tmp_path, task="caption")
    assert [one.suffix for one in examples] == ['"A" is a letter', '5" wide']


def test_a_text_file_without_a_column_of_images_is_no_table(tmp_path):
    (tmp_path / "README.txt").write_text("Captions, of images, by us\n")
    (tmp_path / "binary.txt").write_bytes(b"image,\xff\xfe")
    with pytest.raises(ValueError, match="no data set of a known format"):
        formats.choose(str(tmp_path), "caption")


def answers_of(read, tmp_path, row, task="vqa", **request):
    jsonl(tmp_path / "rows.jsonl", {"image": "a.png", "question": "what?"} | row)
    _, (one,), tally = read("jsonl", tmp_path / "rows.jsonl", task, **request)
    return one.suffix, dict(one.extra), tally


@pytest.mark.parametrize(
    ("row", "suffix", "answers"),
    [
        ({"answers": ["12 May", "May 12"]}, "12 May", ["12 May", "May 12"]),
        ({"answer": ["no", "yes", "yes"]}, "yes", ["no", "yes", "yes"]),
        ({"answers": [{"answer": "a", "answer_id": 1}, {"answer": "b"}]}, "a", ["a", "b"]),
        ({"label": [3, 3.5]}, "3", ["3", "3.5"]),
        ({"answer": "x", "answers": ["x", "y"]}, "x", ["x", "y"]),
    ],
)
def test_a_list_of_answers_gives_the_commonest_and_keeps_all(
    tmp_path, picture, read, row, suffix, answers
):
    picture("a.png")
    assert answers_of(read, tmp_path, row)[:2] == (suffix, {"answers": answers})


def test_a_list_of_captions_is_one_row(tmp_path, picture, read):
    picture("a.png")
    row = {"captions": ["A red bus.", "A bus."]}
    suffix, extra, _ = answers_of(read, tmp_path, row, "caption")
    assert (suffix, extra["answers"]) == ("A red bus.", row["captions"])


def test_keys_that_scores_read_are_kept(tmp_path, picture, read):
    picture("a.png")
    row = {"answer": "3", "issimple": True, "question_type": "count", "who": "me"}
    _, extra, _ = answers_of(read, tmp_path, row)
    assert extra == {"issimple": True, "question_type": "count"}


def test_answers_that_are_no_texts_are_named_and_the_row_stays(tmp_path, picture, read, drops):
    picture("a.png")
    suffix, extra, tally = answers_of(read, tmp_path, {"answer": "x", "answers": [None]})
    assert (suffix, extra) == ("x", {})
    assert drops(tally) == {
        ("key", "'answers' is no list of texts"): ["rows.jsonl:1: found [None]"]
    }


def test_an_image_at_an_address_is_one_dropped_row(tmp_path, picture, read, drops):
    picture("a.png")
    good = {"image": "a.png", "question": "q", "answer": "a"}
    jsonl(tmp_path / "rows.jsonl", good | {"image": "https://u:p@x.org/b.png?key=1"}, good)
    _, (one,), tally = read("jsonl", tmp_path / "rows.jsonl", "vqa")
    assert one.source == "rows.jsonl:2"
    ((places,),) = drops(tally).values()
    assert places.startswith("rows.jsonl:1: https://x.org/b.png: download the images and give")


def test_a_list_of_one_image_is_that_image(tmp_path, picture, read):
    picture("a.png")
    jsonl(tmp_path / "rows.jsonl", {"images": ["a.png"], "question": "q", "answer": "a"})
    _, (one,), _ = read("jsonl", tmp_path / "rows.jsonl", "vqa")
    assert one.picture.name == "a.png"


def test_files_of_splits_lie_in_folders_of_their_own(tmp_path, picture, read):
    for split in ("train", "test"):
        picture(f"{split}/a.png")
        jsonl(tmp_path / split / "metadata.jsonl", {"file_name": "a.png", "text": split})
    assert formats.choose(str(tmp_path), "caption") == ("jsonl", "test/metadata.jsonl")
    _, examples, _ = read("jsonl", tmp_path, "caption")
    rows = {(one.split, one.picture.name, one.suffix) for one in examples}
    assert rows == {("train", "train/a.png", "train"), ("test", "test/a.png", "test")}


def test_an_image_above_its_file_is_found_where_the_source_or_the_option_holds_it(
    tmp_path, picture, read, drops
):
    picture("photos/a.png")
    (tmp_path / "notes").mkdir()
    jsonl(tmp_path / "notes/rows.jsonl", {"image": "../photos/a.png", "caption": "a"})
    assert read("jsonl", tmp_path, "caption")[1][0].picture.name == "photos/a.png"
    file, images = tmp_path / "notes/rows.jsonl", str(tmp_path / "photos")
    assert read("jsonl", file, "caption", images=images)[1][0].picture.name == "a.png"
    _, examples, tally = read("jsonl", file, "caption")
    (message,) = drops(tally)["image", "image outside the folder"]
    assert not examples and "set --images" in message


@pytest.mark.parametrize("text", ["sep=;\nimage;caption\na.png;red, round\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le"])
def test_what_a_spreadsheet_saves_is_read(tmp_path, picture, read, text, encoding):
    picture("a.png")
    (tmp_path / "rows.csv").write_bytes(text.encode(encoding))
    _, (one,), _ = read("csv", tmp_path, "caption")
    assert one.suffix == "red, round" and one.source == "rows.csv:3"


def test_an_address_whose_image_lies_here_is_that_image(tmp_path, picture, read):
    picture("photos/b.png")
    row = {"question": "q", "answer": "a"}
    jsonl(tmp_path / "rows.jsonl", {"image": "https://u:p@x.org/o/b.jpg?key=1", **row})
    images = str(tmp_path / "photos")
    _, (one,), tally = read("jsonl", tmp_path / "rows.jsonl", "vqa", images=images)
    assert one.picture.name == "b.png"
    assert tally.changed["images found by the name in their address"] == 1


def test_a_pointer_in_the_place_of_a_table_is_called_one(tmp_path, read):
    (tmp_path / "rows.csv").write_text("version https://git-lfs.github.com/spec/v1\nsize 4\n")
    with pytest.raises(ValueError, match=r"rows.csv: it is a Git LFS pointer: run 'git lfs pull'"):
        read("csv", tmp_path, "caption")


def test_two_columns_of_one_name_are_not_chosen_from(tmp_path, picture, read):
    picture("a.png")
    (tmp_path / "rows.csv").write_text("image,caption,caption\na.png,one,two\n")
    with pytest.raises(ValueError, match=r"rows.csv: two columns are called 'caption'; rename one"):
        read("csv", tmp_path, "caption")
    (tmp_path / "rows.csv").write_text(",image,caption,\n0,a.png,one,\n")
    assert read("csv", tmp_path, "caption")[1][0].suffix == "one"
