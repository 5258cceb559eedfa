"""COCO: what supervision and Roboflow write, and everything that can be wrong with it."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from paligemma_jax.data import objects
from paligemma_jax.importers import coco


def write(folder, name="annotations/instances_train2017.json", **changes):
    """Writes one image with one box of a cat; changes replace parts."""
    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": 64, "height": 48}],
        "annotations": [annotation()],
        "categories": [{"id": 3, "name": "cat", "supercategory": "animal"}],
    }
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changes))
    return path


def annotation(**changes):
    return {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 30], **changes}


def test_supervisions_file_gives_boxes_and_polygons(datasets, read):
    classes, examples, tally = read("coco", datasets / "coco")
    assert classes == ("dime", "half dollar")
    assert [len(one.objects) for one in examples] == [1, 2, 3, 0]
    second = examples[1].objects
    assert second.labels == ("half dollar", "dime")
    np.testing.assert_array_equal(second.boxes_xyxy, [[5, 16, 27, 39], [18, 10, 38, 33]])
    assert all(isinstance(outline, tuple) for outline in second.segmentations)
    assert not tally.drops and tally.read == {"images": 4, "objects": 6}
    assert {one.split for one in examples} == {"train"}


def test_roboflows_splits_and_its_empty_category(tmp_path, picture, read):
    categories = [
        {"id": 0, "name": "coins", "supercategory": "none"},
        {"id": 3, "name": "dime", "supercategory": "coins"},
        {"id": 4, "name": "penny", "supercategory": "coins"},
    ]
    for split, annotations in {"train": [annotation()], "valid": []}.items():
        picture(f"{split}/a.png")
        name = f"{split}/_annotations.coco.json"
        write(tmp_path, name, categories=categories, annotations=annotations)
    classes, examples, _ = read("coco", tmp_path)
    assert classes == ("dime", "penny")
    assert [one.split for one in examples] == ["train", "valid"]
    assert [one.picture.name for one in examples] == ["train/a.png", "valid/a.png"]


def test_images_are_found_beside_below_and_where_said(tmp_path, picture, read):
    picture("train2017/a.png")
    path = write(tmp_path)
    assert read("coco", tmp_path)[1][0].picture.name == "train2017/a.png"
    assert read("coco", path)[1][0].picture.name == "train2017/a.png"
    picture("elsewhere/a.png")
    (one,) = read("coco", path, images=str(tmp_path / "elsewhere"))[1]
    assert one.picture.path == str(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "train2017" / "a.png").unlink()
    (tmp_path / "elsewhere" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"looked for 'a\.png'.*--images FOLDER"):
        read("coco", tmp_path)


def test_a_file_of_any_name_is_known_by_what_it_lists(tmp_path, picture, read):
    picture("images/a.png")
    (tmp_path / "notes.json").write_text("[1]")
    write(tmp_path, "result.json")
    assert coco.detect(str(tmp_path)) == str(tmp_path / "result.json")
    assert read("coco", tmp_path)[1][0].picture.name == "images/a.png"


def test_a_folder_without_such_a_file_is_an_error(tmp_path, read):
    (tmp_path / "notes.json").write_text("[1]")
    assert coco.detect(str(tmp_path)) is None
    with pytest.raises(ValueError, match="no JSON file with 'images' and 'annotations' here"):
        read("coco", tmp_path)


def test_run_lengths_of_both_kinds_are_kept_compressed(tmp_path, picture, read):
    picture("a.png")
    mask = np.zeros((48, 64), bool)
    mask[5:35, 10:30] = True
    plain = [10 * 48 + 5, *([30, 18] * 19), 30, 13 + 34 * 48]
    packed = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    for counts in (plain, packed):
        outline = {"size": [48, 64], "counts": counts}
        write(tmp_path, annotations=[annotation(segmentation=outline)])
        _, (one,), tally = read("coco", tmp_path)
        assert not tally.drops and one.objects.segmentations == (packed,)
        shown = objects.bitmap(one.objects.segmentations[0], width=64, height=48)
        np.testing.assert_array_equal(shown, mask)


def test_without_a_box_it_is_the_outlines(tmp_path, picture, read):
    picture("a.png")
    triangle = [annotation(bbox=None, segmentation=[[10, 5, 30, 5, 30, 35]])]
    write(tmp_path, annotations=triangle)
    _, (one,), _ = read("coco", tmp_path)
    assert one.objects.boxes_xyxy.tolist() == [[10, 5, 30, 35]]


@pytest.mark.parametrize(
    ("changes", "what", "reason", "shown"),
    [
        ({"category_id": 9}, "object", "without a class name", "category_id 9 is in no category"),
        ({"category_id": [3]}, "object", "without a class name", "category_id [3]"),
        ({"image_id": {}}, "object", "of an image that is not listed", "image_id {}"),
        ({"image_id": 8}, "object", "of an image that is not listed", "image_id 8"),
        ({"iscrowd": 1}, "object", "crowd region", "annotation 2"),
        ({"bbox": [1, 2, 0, 5]}, "object", "box without area", "[1.0, 2.0, 1.0, 7.0] in 64x48"),
        ({"bbox": [70, 2, 9, 5]}, "object", "box outside its image", "[70.0, 2.0, 79.0, 7.0]"),
        ({"bbox": [1, 2, 5]}, "object", "box is not four numbers", "[1, 2, 5]"),
        ({"bbox": [1, 2, 5, "x"]}, "object", "box is not four numbers", "'x'"),
        ({"bbox": [1, 2, 10**400, 5]}, "object", "box is not four numbers", "000"),
        ({"segmentation": [[10**400] * 6]}, "outline", "broken outline", "too large"),
        ({"bbox": None}, "object", "neither box nor outline", "annotation 2"),
        ({"segmentation": [[1, 2, 3, 4]]}, "outline", "broken outline", "three points"),
        ({"segmentation": [["x"] * 6]}, "outline", "broken outline", "could not convert"),
        (
            {"segmentation": {"size": [4, 4], "counts": "0"}},
            "outline",
            "broken outline",
            "[48, 64]",
        ),
        ({"segmentation": {"size": [48, 64], "counts": [5]}}, "outline", "broken outline", "3072"),
        ({"segmentation": {"size": [48, 64], "counts": "~~"}}, "outline", "broken outline", "3072"),
    ],
)
def test_a_bad_annotation_is_named_and_the_others_stay(
    tmp_path, picture, read, drops, changes, what, reason, shown
):
    picture("a.png")
    write(tmp_path, annotations=[annotation(), annotation(id=2, **changes)])
    _, (one,), tally = read("coco", tmp_path)
    ((key, (message,)),) = drops(tally).items()
    assert key == (what, reason) and "annotation 2" in message and shown in message
    assert len(one.objects) == (2 if what == "outline" else 1)


def test_an_image_that_lost_all_its_objects_is_not_taken_for_an_empty_one(
    tmp_path, picture, read, drops
):
    picture("a.png")
    write(tmp_path, annotations=[annotation(category_id=9)])
    _, examples, tally = read("coco", tmp_path)
    assert examples == [] and ("image", "none of its objects could be kept") in drops(tally)


def test_bad_images_are_named_with_their_reason(tmp_path, picture, read, drops):
    picture("good.png")
    picture("turned.png", size=(48, 64))
    picture("tiff.png", format="TIFF")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    picture("huge.png")
    data = bytearray((tmp_path / "huge.png").read_bytes())
    data[16:24] = (30_000).to_bytes(4, "big") * 2  # width and height in the header
    data[29:33] = __import__("zlib").crc32(bytes(data[12:29])).to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(data)
    names = ("good", "turned", "tiff", "empty", "text", "huge", "gone", "../outside")
    (tmp_path.parent / "outside.png").touch()
    images = [
        {"id": number, "file_name": f"{name}.png", "width": 64, "height": 48}
        for number, name in enumerate(names)
    ]
    write(tmp_path, images=[*images, images[0], {"id": 99}], annotations=[])
    _, examples, tally = read("coco", tmp_path)
    assert [dropped.picture.name for dropped in examples] == ["good.png"]
    dropped = {reason: message for (_, reason), (message,) in drops(tally).items()}
    assert dropped.keys() == {
        "image of another size than its annotations",
        "image format that training cannot read",
        "image file is empty",
        "not an image",
        "image too large",
        "image not found",
        "image outside the folder",
        "listed twice",
        "without a file_name",
    }
    assert (
        "turned.png has 48x64 pixels, its annotations 64x48"
        in dropped["image of another size than its annotations"]
    )
    assert "tiff.png is TIFF" in dropped["image format that training cannot read"]
    assert "--images" in dropped["image outside the folder"]
    assert tally.read["images"] == 10 == len(examples) + len(tally.drops)


def test_every_annotation_is_kept_or_dropped_by_name(tmp_path, picture, read):
    picture("a.png")
    images = [{"id": 7, "file_name": "a.png"}, {"id": 8, "file_name": "gone.png"}]
    changes = [{}, {"image_id": 8}, {"image_id": 9}, {"category_id": 9}, {"iscrowd": 1}]
    annotations = [annotation(id=number, **change) for number, change in enumerate(changes)]
    write(tmp_path, images=images, annotations=annotations)
    _, (one,), tally = read("coco", tmp_path)
    dropped = [drop for drop in tally.drops if drop.what == "object"]
    assert tally.read["objects"] == 5 == len(one.objects) + len(dropped)
    assert [sum(f"annotation {n}" in drop.source for drop in dropped) for n in range(5)] == [
        *(0, 1, 1, 1, 1)
    ]


def test_a_photo_that_exif_turns_is_told_apart(tmp_path, picture, read, drops):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    picture("a.jpg", size=(48, 64), exif=exif)
    write(tmp_path, images=[{"id": 7, "file_name": "a.jpg", "width": 64, "height": 48}])
    _, _, tally = read("coco", tmp_path)
    (message,) = drops(tally)["image", "image of another size than its annotations"]
    assert "EXIF orientation: rotate the file for good" in message


def test_boxes_are_clipped_to_the_image_and_counted(tmp_path, picture, read):
    picture("a.png")
    boxes = [[-10, 5, 20, 30], [40, 20, 24.01, 28.01]]
    write(tmp_path, annotations=[annotation(id=n, bbox=box) for n, box in enumerate(boxes)])
    _, (one,), tally = read("coco", tmp_path)
    assert one.objects.boxes_xyxy.tolist() == [[0, 5, 10, 35], [40, 20, 64, 48]]
    assert tally.changed == {"boxes clipped to their image": 1}


def test_half_characters_do_not_reach_the_rows(tmp_path, picture, read, drops):
    picture("a.png")
    write(tmp_path, categories=[{"id": 3, "name": "\ud800"}])
    _, _, tally = read("coco", tmp_path)
    assert ("object", "without a class name") in drops(tally)


def test_captions_are_an_example_each(tmp_path, picture, read, drops):
    picture("val2017/a.png")
    captions = [
        {"id": n, "image_id": 7, "caption": text} for n, text in enumerate(["a cat", " a\ndog", ""])
    ]
    write(tmp_path, "annotations/instances_val2017.json")
    write(tmp_path, "annotations/captions_val2017.json", annotations=captions)
    _, examples, tally = read("coco", tmp_path, task="caption")
    assert [one.suffix for one in examples] == ["a cat", "a dog"]
    assert ("caption", "empty or missing") in drops(tally)
    assert len(read("coco", tmp_path)[1][0].objects) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"{", "broken JSON"),
        (b'{"images": []}', r"expected the keys images and annotations, found \['images'\]"),
        (b'{"images": [], "annotations": [], "categories": []}', "no images are listed"),
        (b'{"images": 3, "annotations": []}', "'images' must be a list of objects"),
        (b'{"images": [{"id": 1}], "annotations": []}', "no image has a 'file_name'"),
        (b'{"images": "caf\xe9"}', "byte 15 is not UTF-8"),
    ],
)
def test_a_file_that_is_not_coco_is_an_error(tmp_path, read, content, message):
    path = tmp_path / "_annotations.coco.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read("coco", tmp_path)


def test_ids_as_text_name_the_same_images_as_numbers(tmp_path, picture, read):
    picture("a.png")
    outline = [10, 8, 40, 8, 40, 30, 10, 30]  # flat, as VIA writes it
    annotation = {"image_id": "0", "category_id": "3", "segmentation": outline}
    content = {
        "images": [{"id": 0, "file_name": "a.png"}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"id": 1, "bbox": [10, 8, 30, 22], **annotation}],
    }
    (tmp_path / "via.json").write_text(json.dumps(content))
    _, (one,), tally = read("coco", tmp_path)
    assert one.objects.labels == ("cat",) and not tally.drops
    assert one.objects.segmentations[0][0].reshape(-1).tolist() == outline


def test_a_box_that_is_another_one_than_its_outline_s_is_counted(tmp_path, picture, read):
    picture("a.png")
    outline = [[1, 1, 9, 1, 9, 9, 1, 9]]
    boxes = [[1, 1, 8, 8], [30, 20, 8, 8]]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "segmentation": outline}
            for n, box in enumerate(boxes)
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    _, _, tally = read("coco", tmp_path)
    assert tally.changed == {"boxes kept that are not around their outlines: look at the sheet": 1}


def test_numbers_that_are_text_are_a_size_and_no_corners(tmp_path, picture, read):
    picture("a.png")
    write(tmp_path, annotations=[annotation(bbox=["10", "5", "20", " 30"])])
    _, (one,), _ = read("coco", tmp_path)
    assert one.objects.boxes_xyxy.tolist() == [[10, 5, 30, 35]]


@pytest.mark.parametrize(
    "bbox", [[False, False, True, True], [1.5, 2, 10**400, 5], ["1", 2, "x", 4]]
)
def test_what_is_no_number_is_no_box(tmp_path, picture, read, drops, bbox):
    picture("a.png")
    write(tmp_path, annotations=[annotation(bbox=bbox), annotation(id=2)])
    _, (one,), tally = read("coco", tmp_path)
    assert drops(tally).keys() == {("object", "box is not four numbers")} and len(one.objects) == 1


def test_ids_that_went_through_a_table_are_the_same_ids(tmp_path, picture, read):
    picture("a.png")
    write(tmp_path, annotations=[annotation(image_id=7.0, category_id="3")])
    _, (one,), tally = read("coco", tmp_path)
    assert one.objects.labels == ("cat",) and not tally.drops


def test_images_beside_the_folder_of_annotations_may_be_named_from_it(tmp_path, picture, read):
    picture("photos/a.png")
    write(tmp_path, images=[{"id": 7, "file_name": "../photos/a.png"}])
    _, (one,), _ = read("coco", tmp_path)
    assert one.picture.name == "photos/a.png"
