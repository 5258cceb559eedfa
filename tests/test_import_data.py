"""Data sets through the door: every format on what its tool writes, and what the door refuses."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from paligemma_jax import import_data
from paligemma_jax.data import objects, records, tokens
from paligemma_jax.files import atomic
from paligemma_jax.importers import roboflow
from paligemma_jax.tasks import box_text, mask_text

DATASETS = pathlib.Path(__file__).parent / "reference" / "datasets"
CODEC = pathlib.Path(__file__).parents[1] / "experiments" / "mask_codec" / "codec.npz"


def run(capsys, *words) -> dict:
    """Runs the door and returns what it prints, with what it says as `printed`."""
    import_data.main([str(word) for word in words])
    out, printed = capsys.readouterr()
    return {**json.loads(out), "printed": printed}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def photos(tmp_path):
    """A CSV with captions of ten pictures, of which two are the same."""
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = ["image,caption"]
    for number in range(10):
        pixels = np.full((8, 8, 3), 20 * max(number, 1), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,picture {number}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("name", ["coco", "yolo", "voc"])
def test_boxes_become_rows_that_training_reads(name, tmp_path, capsys):
    out = tmp_path / "out"
    result = run(capsys, DATASETS / name, out, "--task", "detection")
    assert f"is {name} (" in result["printed"] and "6 boxes within 0." in result["printed"]
    assert result["rows"] == {"train": 4} and result["read"] == {"images": 4, "objects": 6}
    written = records.read_jsonl(out / "train.jsonl", check=box_text.check)
    assert {record.prefix for record in written} == {"detect dime ; half dollar"}
    assert [box_text.parse(record.suffix).labels for record in written] == [
        ("dime",),
        ("half dollar", "dime"),
        ("dime", "dime", "half dollar"),
        (),
    ]
    for record in written:
        assert box_text.format(objects.to_detections(record.objects)) == record.suffix
        assert pathlib.Path(record.images[0]).is_relative_to(out / "images")
    assert {path.name for path in out.iterdir()} == {
        "conversion.json",
        "contact_sheet.png",
        "images",
        "train.jsonl",
    }
    assert not list(tmp_path.glob("out.*"))


def test_counts_of_a_coco_file(tmp_path, capsys):
    words = [tmp_path / "out", "--task", "counting", "--prompt", "how many?"]
    result = run(capsys, DATASETS / "coco", *words)
    written = rows(tmp_path / "out" / "train.jsonl")
    assert [json.loads(row["suffix"]) for row in written] == [
        {"dime": 1},
        {"half dollar": 1, "dime": 1},
        {"dime": 2, "half dollar": 1},
        {},
    ]
    assert written[0]["prefix"] == "how many?"
    assert (
        "c.task = 'json'" in result["printed"] and "('count_exact', 'json_f1')" in result["printed"]
    )


@pytest.mark.parametrize("name", ["arrow", "parquet"])
def test_questions_of_hugging_face_keep_their_splits(name, tmp_path, capsys):
    result = run(capsys, DATASETS / name, tmp_path / "out", "--task", "vqa")
    assert result["rows"] == {"train": 3, "test": 1} and result["images"] == {"written": 4}
    (row,) = rows(tmp_path / "out" / "test.jsonl")
    assert (row["prefix"], row["suffix"]) == ("answer en how many coins?", "0")
    assert (tmp_path / "out" / row["image"]).is_file()


def test_masks_become_boxes_and_outlines(tmp_path, capsys):
    mask = np.zeros((48, 64), np.uint8)
    mask[10:20, 30:50] = 255
    for name, pixels in {"images/a.png": mask + 1, "masks/a.png": mask}.items():
        (tmp_path / "water" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "water" / name)
    words = [tmp_path / "water", tmp_path / "out", "--task", "detection", "--classes", "water"]
    run(capsys, *words)
    (record,) = records.read_jsonl(tmp_path / "out" / "train.jsonl")
    assert record.suffix == "<loc0213><loc0480><loc0426><loc0799> water"
    shown = objects.bitmap(record.objects.segmentations[0], width=64, height=48)
    np.testing.assert_array_equal(shown, mask > 0)


def test_images_are_linked_not_copied_and_copied_where_that_fails(tmp_path, capsys, monkeypatch):
    source = shutil.copytree(DATASETS / "coco", tmp_path / "coco")
    result = run(capsys, source, tmp_path / "a", "--task", "detection")
    assert result["images"] == {"hard-linked": 4}
    assert os.path.samefile(source / "images" / "0.png", tmp_path / "a" / "images" / "0.png")

    def refuse(*_):
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    result = run(capsys, source, tmp_path / "b", "--task", "detection")
    assert result["images"] == {"copied": 4}


def test_a_split_is_the_same_every_time_and_keeps_equal_images_together(photos, tmp_path, capsys):
    split = ["--task", "caption", "--split", "train=0.6,valid=0.4"]
    result = run(capsys, photos, tmp_path / "a", *split)
    assert result["rows"] == {"train": 6, "valid": 4}
    run(capsys, photos, tmp_path / "b", *split)
    parts = {}
    for name in ("train", "valid"):
        text = (tmp_path / "a" / f"{name}.jsonl").read_text()
        assert text == (tmp_path / "b" / f"{name}.jsonl").read_text()
        parts[name] = {row["suffix"] for row in rows(tmp_path / "a" / f"{name}.jsonl")}
    twins = {"picture 0", "picture 1"}
    assert twins <= parts["train"] or twins <= parts["valid"]
    run(capsys, photos, tmp_path / "c", *split, "--seed", 1)
    assert {row["suffix"] for row in rows(tmp_path / "c" / "train.jsonl")} != parts["train"]


def test_a_group_stays_in_one_split(photos, tmp_path, capsys):
    for number in range(10):
        (photos / f"{number}.png").rename(photos / f"{'ab'[number // 5]}-{number}.png")
    lines = [f"{'ab'[number // 5]}-{number}.png,x" for number in range(10)]
    (photos / "captions.csv").write_text("\n".join(["image,caption", *lines]))
    words = ["--task", "caption", "--split", "train=0.5,valid=0.5", "--group", "^(.)-"]
    run(capsys, photos, tmp_path / "a", *words)
    groups = [
        {row["image"].removeprefix("images/")[0] for row in rows(tmp_path / "a" / f"{name}.jsonl")}
        for name in ("train", "valid")
    ]
    assert sorted(groups, key=min) == [{"a"}, {"b"}]


def test_a_group_that_is_no_regular_expression_is_an_error(photos, tmp_path):
    words = ["--task=caption", "--split=train=0.5,valid=0.5", "--group", "("]
    with pytest.raises(ValueError, match=r"--group '\(' is no regular expression: missing \)"):
        import_data.main([str(photos), str(tmp_path / "a"), *words])


def test_the_sources_splits_are_kept_and_a_leak_is_told(photos, tmp_path, capsys):
    text = (photos / "captions.csv").read_text().splitlines()
    (photos / "captions.csv").unlink()
    (photos / "train.csv").write_text("\n".join([text[0], *text[1:2], *text[3:]]))
    (photos / "val.csv").write_text("\n".join([text[0], text[2]]))
    result = run(capsys, photos, tmp_path / "a", "--task", "caption")
    assert result["rows"] == {"train": 9, "valid": 1}
    assert (
        "in several splits of the source: 1 image: 0.png (train) = 1.png (valid)"
        in (result["printed"])
    )
    with pytest.raises(ValueError, match=r"--split is for sources without splits; .* train, valid"):
        import_data.main([str(photos), str(tmp_path / "b"), "--task", "caption", "--split", "a=1"])


def test_what_was_dropped_is_counted_shown_and_listed(photos, tmp_path, capsys):
    (photos / "3.png").write_text("no picture")
    (photos / "4.png").unlink()
    with open(photos / "captions.csv", "a") as file:
        file.write("5.png,\n")
    result = run(capsys, photos, tmp_path / "a", "--task", "caption")
    assert result["dropped"] == {
        "image": {"not an image": 1, "image not found": 1},
        "row": {"bad suffix": 1},
    }
    assert (
        "dropped  1 row, bad suffix: captions.csv:12: '': the answer is empty" in result["printed"]
    )
    listed = rows(tmp_path / "a" / "dropped.jsonl")
    assert {drop["source"] for drop in listed} == {f"captions.csv:{n}" for n in (5, 6, 12)}
    assert result["read"]["rows"] == 11 == sum(result["rows"].values()) + len(listed)


def test_nothing_left_is_an_error_that_says_why(photos, tmp_path):
    for path in photos.glob("*.png"):
        path.write_text("no picture")
    with pytest.raises(ValueError, match="nothing is left to write\ndropped  10 images, not an"):
        import_data.main([str(photos), str(tmp_path / "a"), "--task", "caption"])
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_only_what_was_converted_is_replaced(photos, tmp_path, capsys):
    words = [photos, tmp_path / "a", "--task", "caption"]
    run(capsys, *words)
    with pytest.raises(ValueError, match="--overwrite replaces it"):
        run(capsys, *words)
    run(capsys, *words, "--overwrite")
    (tmp_path / "a" / "conversion.json").unlink()
    with pytest.raises(ValueError, match="holds something else"):
        run(capsys, *words, "--overwrite")
    assert (tmp_path / "a" / "train.jsonl").exists()


def test_a_failed_conversion_leaves_what_was_there(photos, tmp_path, capsys, monkeypatch):
    words = [photos, tmp_path / "a", "--task", "caption"]
    run(capsys, *words)
    before = (tmp_path / "a" / "train.jsonl").read_text()
    monkeypatch.setattr(records, "read_jsonl", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(capsys, *words, "--overwrite")
    assert (tmp_path / "a" / "train.jsonl").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "photos"]


def test_roboflow_is_fetched_with_the_key_of_the_environment(tmp_path, capsys, monkeypatch):
    def download(address, folder, *, key, with_outlines, progress, host):
        assert (address, key, with_outlines) == ("roboflow://a/b/3", "secret", False)
        assert host.startswith("https://api.roboflow.com")
        shutil.copytree(DATASETS / "coco", folder)

    monkeypatch.setattr(roboflow, "download", download)
    monkeypatch.setenv("ROBOFLOW_API_KEY", "secret")
    result = run(capsys, "roboflow://a/b/3", tmp_path / "out", "--task", "detection")
    assert result["rows"] == {"train": 4} and "secret" not in json.dumps(result)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_all_that_an_import_writes_on_the_way_lies_in_one_folder_that_the_next_one_removes(
    tmp_path, monkeypatch
):
    folders = []

    def download(address, folder, **_):
        folders.extend(path.name for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(roboflow, "download", download)
    with pytest.raises(KeyboardInterrupt):
        import_data.main(["roboflow://a/b/3", str(tmp_path / "out"), "--task", "detection"])
    (folder,) = folders
    assert folder.startswith("out.") and folder.endswith(atomic.SUFFIX)
    assert list(tmp_path.iterdir()) == []


def test_roboflow_without_a_key_names_the_page(tmp_path, monkeypatch):
    monkeypatch.delenv("ROBOFLOW_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"app\.roboflow\.com/settings/api"):
        import_data.main(["roboflow://a/b/3", str(tmp_path / "out"), "--task", "detection"])
    assert list(tmp_path.iterdir()) == []


def test_outlines_become_mask_tokens_that_read_back(tmp_path, capsys):
    out = tmp_path / "out"
    result = run(capsys, DATASETS / "coco", out, "--task", "segmentation", "--mask_codec", CODEC)
    assert f"c.mask_codec = '{CODEC}'" in result["printed"] and result["mask_codec"] == str(CODEC)
    written = records.read_jsonl(out / "train.jsonl", check=mask_text.check)
    parsed = [mask_text.parse(record.suffix) for record in written]
    assert [len(one) for one in parsed] == [len(record.objects) for record in written]
    assert not any(one.dropped for one in parsed)
    checked = json.loads((out / "conversion.json").read_text())["round_trip"]
    assert checked["masks"] == sum(map(len, parsed)) == 6 and checked["mask_iou_mean"] > 0.85
    masks = rows(out / "mask_round_trip.jsonl")
    assert len(masks) == 6 and masks == sorted(masks, key=lambda mask: mask["iou"])
    assert checked["mask_iou_lowest"] == masks[0]["iou"]


def test_a_mask_codec_is_for_masks(tmp_path):
    words = [str(DATASETS / "coco"), str(tmp_path / "out"), "--task", "detection"]
    with pytest.raises(ValueError, match="--mask_codec: for --task segmentation, not detection"):
        import_data.main([*words, "--mask_codec", str(CODEC)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "arguments are required: --task"),
        (["--task", "vqua"], "invalid choice"),
        (["--task", "vqa", "--dtype", "float16"], "unrecognized arguments: --dtype"),
    ],
)
def test_a_wrong_command_line_is_refused(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        import_data.main([str(DATASETS / "coco"), str(tmp_path / "out"), *words])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "3"], "add --split"),
        (["--split", "train"], "no rows of a split 'train'"),
        (["--split", "train=0.5,valid"], "expected name=value"),
        (["--split", "train=x"], "'x' is no share"),
        (["--split", "../a=1"], "is no name for a file"),
        (["--split", "dropped=1"], "is no name for a file"),
        (["--split", "train=0.5,valid=0.1"], "sum to 1"),
        (["--columns", "q=question"], "names image, prefix"),
        (["--format", "yolo"], "has no texts for --task vqa"),
    ],
)
def test_wrong_values_are_told(words, message, photos, tmp_path):
    task = ["--task", "vqa" if words[0] == "--format" else "caption"]
    with pytest.raises(ValueError, match=message):
        import_data.main([str(photos), str(tmp_path / "out"), *task, *words])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", [".", "out", ".."])
def test_source_and_target_are_apart(photos, target):
    with pytest.raises(ValueError, match="lie in one another"):
        import_data.main([str(photos), str(photos / target), "--task", "caption", "--overwrite"])


def test_a_tokenizer_is_learnt_from_the_texts(tmp_path, capsys):
    target = tmp_path / "out"
    result = run(capsys, DATASETS / "coco", target, "--task=detection", "--train_tokenizer")
    learnt = tokens.load_tokenizer(target / "tokenizer.model")
    for row in rows(target / "train.jsonl"):
        assert learnt.decode(learnt.encode(row["suffix"])) == row["suffix"]
    assert f"c.tokenizer = '{target / 'tokenizer.model'}'" in result["printed"]
