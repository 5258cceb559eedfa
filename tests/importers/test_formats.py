"""Which format a path is taken for, and what is said where it is none."""

import pytest

from paligemma_jax import import_data
from paligemma_jax.importers import example, formats


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("coco", "annotations/train.json"),
        ("yolo", "data.yaml"),
        ("voc", "annotations/0.xml"),
    ],
)
def test_a_folder_is_known_by_its_files(datasets, name, reason):
    assert formats.choose(str(datasets / name), "detection") == (name, reason)


@pytest.mark.parametrize("folder", ["arrow", "parquet"])
def test_files_of_hugging_face_are_known(datasets, folder):
    assert formats.choose(str(datasets / folder), "vqa")[0] == "parquet"


def test_a_file_is_known_by_its_ending(tmp_path):
    for name in ("a.jsonl", "b.csv"):
        (tmp_path / name).touch()
    assert formats.choose(str(tmp_path / "a.jsonl"), "vqa") == ("jsonl", "its ending")
    assert formats.choose(str(tmp_path / "b.csv"), "caption") == ("csv", "its ending")


def test_what_could_be_several_says_so_and_can_be_forced(tmp_path):
    for name in ("a.jsonl", "b.csv"):
        (tmp_path / name).touch()
    name, reason = formats.choose(str(tmp_path), "caption")
    assert name == "jsonl" and reason == "a.jsonl; could also be csv (b.csv): --format chooses"
    assert formats.choose(str(tmp_path), "caption", "csv") == ("csv", "as --format says")


def test_the_task_decides_between_formats(tmp_path):
    (tmp_path / "a.xml").touch()
    (tmp_path / "b.csv").touch()
    assert formats.choose(str(tmp_path), "caption")[0] == "csv"
    assert formats.choose(str(tmp_path), "detection")[0] == "voc"


def test_nothing_known_and_wrong_tasks_are_errors(datasets, tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        formats.choose(str(tmp_path / "nowhere"), "vqa")
    with pytest.raises(ValueError, match="found nothing"):
        formats.choose(str(tmp_path), "vqa")
    with pytest.raises(ValueError, match="is yolo, which has no texts for --task vqa"):
        formats.choose(str(datasets / "yolo"), "vqa")


def test_a_class_list_beside_xml_files_is_not_yolo(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "1.xml").touch()
    assert formats.choose(str(tmp_path), "detection") == ("voc", "1.xml")
    (tmp_path / "2.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    assert formats.choose(str(tmp_path), "detection")[0] == "yolo"


@pytest.mark.parametrize(
    ("name", "option", "known"),
    [
        ("coco", {"min_area": 3}, "masks"),
        ("voc", {"first_class": 0}, "yolo, jsonl, parquet, masks"),
    ],
)
def test_an_option_that_a_format_would_ignore_is_an_error(name, option, known):
    request = example.Request("src", "detection", **option)
    with pytest.raises(ValueError, match=f"--{next(iter(option))} is for {known}.*src is {name}"):
        formats.check_options(name, request)
    formats.check_options("masks", request)


@pytest.mark.parametrize("file", ["annotations.json", "deep/er/labels.xml2"])
def test_a_pointer_is_what_a_folder_of_no_known_format_is_refused_for(tmp_path, file):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    with pytest.raises(ValueError, match=f"{file} is a Git LFS pointer: run 'git lfs pull'"):
        formats.choose(str(tmp_path), "detection")


def test_data_sets_below_a_folder_are_named(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.yaml").write_text("names: [a]")
    with pytest.raises(ValueError, match="first is yolo: give it as SRC"):
        formats.choose(str(tmp_path), "detection")


def test_the_first_class_s_number_has_a_bound(tmp_path):
    words = [str(tmp_path), str(tmp_path / "out"), "--task=detection", "--first_class=1000000000"]
    with pytest.raises(ValueError, match="the latter up to 65535"):
        import_data.main(words)
