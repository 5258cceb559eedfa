"""What is given instead of a JSONL file is told apart, with the command or the name that helps."""

import json

import pytest

from paligemma_jax.data import jsonl, locations, records

ROW = {"image": "a.png", "prefix": "detect cat", "suffix": "cat"}
COCO = {"images": [], "annotations": [{"bbox": [0, 0, 1, 1]}], "categories": []}
CAPTIONS = {"images": [], "annotations": [{"caption": "a cat"}]}


def write(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def error_of(path) -> str:
    with pytest.raises(ValueError) as error:
        jsonl.check_path(str(path))
    return str(error.value)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(("content", "task"), [(COCO, "detection"), (CAPTIONS, "caption")])
def test_cocos_json_is_named_with_the_command_that_converts_it(tmp_path, content, task, indent):
    path = tmp_path / "my images.json"
    path.write_text(json.dumps(content, indent=indent))
    message = error_of(path)
    assert f"{path} is COCO's JSON, expected JSONL" in message
    words = f"'{path}' '{tmp_path}/my images_jsonl' --task {task}"
    assert f"python -m paligemma_jax.import_data {words}" in message


@pytest.mark.parametrize(
    ("name", "task"), [("a.csv", "vqa"), ("a.PARQUET", "vqa"), ("data.yaml", "detection")]
)
def test_files_of_other_formats_are_named_with_the_command_that_converts_them(tmp_path, name, task):
    path = tmp_path / name
    path.touch()
    target = path.with_suffix("")
    command = f"python -m paligemma_jax.import_data {path} {target}_jsonl --task {task}"
    assert command in error_of(path)


def test_an_address_is_to_be_downloaded_and_its_images_are_not():
    assert "set input.data.image_dir=gs://bucket/data" in error_of("gs://bucket/data/a.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps([ROW, ROW], indent=1), "is one JSON list"),
        (json.dumps([ROW, ROW]), "is one JSON list"),
        (json.dumps(ROW, indent=1), "is one JSON object over several lines"),
    ],
)
def test_one_json_document_is_no_jsonl(tmp_path, content, message):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    assert message in error_of(path)


@pytest.mark.parametrize("content", ['{"image": ', "[1]\n[2]", "{\n\n", "no JSON", "\n\n{}"])
def test_a_file_of_bad_lines_is_left_to_the_list_of_bad_lines(tmp_path, content):
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    jsonl.check_path(str(path))
    with pytest.raises(ValueError, match=r"lines (is|are) bad"):
        records.read_jsonl(path)


def test_a_folder_names_the_data_in_it_and_not_the_files_beside_converted_data(tmp_path):
    for name in ("train", "dropped", "mask_round_trip", "valid"):
        write(tmp_path / f"{name}.jsonl", ROW)
    message = error_of(tmp_path)
    assert message.startswith(f"{tmp_path} is a folder, expected JSONL")
    assert message.endswith(f"JSONL files in {tmp_path}: train.jsonl, valid.jsonl")


def test_a_folder_without_jsonl_is_perhaps_another_format(tmp_path):
    (tmp_path / "coco").mkdir()
    message = error_of(f"{tmp_path}/coco/")
    assert "JSONL files in" in message and ": none. Another format?" in message
    assert f"paligemma_jax.import_data {tmp_path}/coco/ {tmp_path}/coco_jsonl --task" in message


def test_paths_below_the_working_folder_are_shown_as_they_are_typed(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "valid.jsonl").write_text(json.dumps(ROW))
    monkeypatch.chdir(tmp_path)
    message = error_of("data/vald.jsonl")
    assert "did you mean data/valid.jsonl? JSONL files in data: valid.jsonl" in message
    assert error_of("date/valid.jsonl").endswith("no folder date; did you mean data?")
    assert locations.ImageFolder("data").locate("a.png")[1][1].endswith("no such file in data")


def test_a_typo_gets_the_nearest_name(tmp_path):
    data = write(tmp_path / "fracture" / "train.jsonl", ROW)
    write(data.parent / "dropped.jsonl", ROW)
    assert f"no such file; did you mean {data}? JSONL" in error_of(data.with_name("trian.jsonl"))
    assert "did you mean" not in error_of(data.with_name("droped.jsonl"))
    message = error_of(tmp_path / "fractures" / "train.jsonl")
    assert f"there is no folder {tmp_path}/fractures; did you mean {tmp_path}/fracture?" in message
    assert f"there is no folder {tmp_path}/else" in error_of(tmp_path / "else" / "where" / "x")


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        (
            {"file_name": "a.png", "Question": "q", "answer": "b"},
            "set input.data.fields.image=file_name, input.data.fields.prefix=Question, "
            "input.data.fields.suffix=answer",
        ),
        (
            {"image": "a.png", "my text": "", "description": "b"},
            "input.data.prefix_template='caption en' (one prompt for all), "
            "input.data.fields.suffix=description",
        ),
        ({"image": "a.png", "prefix": "q", "truth": "b"}, "set input.data.fields.suffix=KEY"),
        ({"image": "a.png", "objects": {}}, "python -m paligemma_jax.import_data"),
    ],
)
def test_rows_with_other_keys_get_the_settings_that_map_them(tmp_path, row, settings):
    (tmp_path / "a.png").touch()
    path = write(tmp_path / "x.jsonl", row, row)
    with pytest.raises(ValueError, match="2 of 2 lines are bad") as error:
        records.read_jsonl(path)
    assert settings in str(error.value)
    with pytest.raises(ValueError, match="correct or remove these lines") as error:
        records.read_jsonl(write(path, row, ROW))
    assert settings not in str(error.value)


def test_the_settings_that_are_proposed_read_the_rows(tmp_path):
    (tmp_path / "a.png").touch()
    path = write(tmp_path / "x.jsonl", {"file_name": "a.png", "query": "q", "response": "b"})
    (record,) = records.read_jsonl(
        path, keys={"image": "file_name", "prefix": "query", "suffix": "response"}
    )
    assert (record.prefix, record.suffix) == ("q", "b")


def test_a_template_that_names_a_key_of_no_row_is_said(tmp_path):
    (tmp_path / "a.png").touch()
    path = write(tmp_path / "x.jsonl", ROW)
    with pytest.raises(ValueError, match=r"an input.data.prefix_template without question"):
        records.read_jsonl(path, prefix_template="answer {question}")
