"""Parquet and Arrow files: what datasets writes, images as bytes and paths, and broken files."""

import json

import pyarrow
import pyarrow.ipc
import pytest
from pyarrow import parquet


@pytest.mark.parametrize("folder", ["arrow", "parquet"])
def test_what_datasets_writes_is_read_split_by_split(datasets, read, folder):
    _, examples, tally = read("parquet", datasets / folder, task="vqa")
    assert [(one.split, one.suffix) for one in examples] == [
        ("test", "0"),
        ("train", "1"),
        ("train", "2"),
        ("train", "3"),
    ]
    pixels = (datasets / "coco" / "images" / "0.png").read_bytes()
    assert examples[1].picture.data == pixels and examples[1].picture.name.endswith(".png")
    assert len({one.picture.name for one in examples}) == 4
    assert examples[0].question == "how many coins?" and not tally.drops


def test_class_labels_are_words(datasets, read):
    columns = {"answer": "label"}
    examples = read("parquet", datasets / "arrow", task="vqa", columns=columns)[1]
    assert [one.suffix for one in examples] == ["even", "odd", "even", "odd"]


@pytest.mark.parametrize("as_lists", [True, False])
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_objects_have_boxes_and_described_categories(tmp_path, picture, read, as_lists, ending):
    data = picture("a.png").read_bytes()
    pairs = [([10, 5, 20, 30], 1), ([0, 0, 9, 9], 0)]
    objects = [{"bbox": box, "category": category} for box, category in pairs]
    if as_lists:
        objects = {"bbox": [box for box, _ in pairs], "category": [c for _, c in pairs]}
    label = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    features = {"objects": {"feature": {"category": label, "bbox": {}}, "_type": "List"}}
    table = pyarrow.table({"image": [{"bytes": data}], "objects": [objects]})
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    path = tmp_path / f"train.{ending}"
    if ending == "parquet":
        parquet.write_table(table, path)
    else:
        with pyarrow.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    classes, (one,), tally = read("parquet", tmp_path)
    assert classes == ("cat", "dog") and not tally.drops and one.split == "train"
    assert one.objects.labels == ("dog", "cat")
    assert one.objects.boxes_xyxy.tolist() == [[10, 5, 30, 35], [0, 0, 9, 9]]


def test_categories_in_words_are_the_classes(tmp_path, picture, read):
    data = picture("a.png").read_bytes()
    objects = [{"bbox": [[1, 1, 9, 9]], "category": [name]} for name in ("dog", "cat", "dog")]
    table = pyarrow.table({"image": [{"bytes": data}] * 3, "objects": objects})
    parquet.write_table(table, tmp_path / "a.parquet")
    classes, examples, _ = read("parquet", tmp_path)
    assert classes == ("dog", "cat")
    assert [one.objects.labels for one in examples] == [("dog",), ("cat",), ("dog",)]


def test_images_may_be_bytes_or_paths_inside_the_folder(tmp_path, picture, read, drops):
    path = picture("photos/a.png")
    images = [{"bytes": path.read_bytes(), "path": None}, {"bytes": None, "path": "photos/a.png"}]
    images += [{"bytes": None, "path": "../b.png"}, {"bytes": b"", "path": None}, None]
    images += [{"bytes": b"no picture", "path": None}]
    (tmp_path.parent / "b.png").touch()
    table = pyarrow.table({"image": images, "text": ["a"] * len(images)})
    parquet.write_table(table, tmp_path / "rows.parquet")
    _, examples, tally = read("parquet", tmp_path / "rows.parquet", task="caption")
    assert [one.picture.path is None for one in examples] == [True, False]
    assert tally.read["rows"] == 6 == len(examples) + len(tally.drops)
    assert {reason for _, reason in drops(tally)} == {
        "image outside the folder",
        "image file is empty",
        "without an image",
        "not an image",
    }


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_broken_file_is_an_error(tmp_path, read, name):
    (tmp_path / name).write_bytes(b"PAR1 or not")
    with pytest.raises(ValueError, match=f"{name}: pyarrow cannot read it"):
        read("parquet", tmp_path, task="vqa")


def test_a_file_without_rows_is_an_error(tmp_path, read):
    parquet.write_table(pyarrow.table({"image": [], "text": []}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="hold no rows"):
        read("parquet", tmp_path, task="caption")


def test_without_pyarrow_the_extra_is_named(datasets, read, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install 'paligemma-jax\[parquet\]'"):
        read("parquet", datasets / "arrow", task="vqa")


@pytest.mark.parametrize(
    "text", ['{"info": [1]}', '{"info": {"features": [1]}}', "{", "[" * 100_000]
)
def test_a_broken_description_of_columns_names_the_file(tmp_path, read, text):
    table = pyarrow.table({"image": ["a.png"], "text": ["a"]})
    parquet.write_table(
        table.replace_schema_metadata({"huggingface": text}), tmp_path / "a.parquet"
    )
    with pytest.raises(ValueError, match=r"a\.parquet: its entry 'huggingface' is no description"):
        read("parquet", tmp_path, task="caption")
