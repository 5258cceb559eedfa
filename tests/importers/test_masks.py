"""Folders of images and masks: how they are paired, what pixels mean, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from paligemma_jax.data import objects


def save(path, values, **arguments):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **arguments)


def water():
    """Two lakes."""
    mask = np.zeros((48, 64), np.uint8)
    mask[5:20, 10:30] = mask[30:40, 40:60] = 255
    return mask


def shown(one, number=0):
    outline = one.objects.segmentations[number]
    return objects.bitmap(outline, width=64, height=48)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("Images/a.jpg", "Masks/a.jpg"),
        ("train/images/a.png", "train/masks/a.png"),
        ("images/a.png", "masks/a_mask.png"),
        ("a.png", "a_mask.png"),
        ("images/train/a.png", "masks/train/a.png"),
        ("train/a.png", "trainannot/a.png"),
        ("train/a.jpg", "train_masks/a_mask.gif"),
        ("Training_Input/a.png", "Training_GroundTruth/a_segmentation.png"),
        ("Images_cleaned/a.png", "Masks_cleaned/a.png"),
        ("image/a.png", "label/a.png"),
        ("images/a.png", "GT/a.png"),
        ("a_sat.png", "a_mask.png"),
        ("label-studio/images/a.png", "label-studio/masks/a.png"),
        ("JPEGImages/a.png", "SegmentationClass/a.png"),
    ],
)
def test_a_mask_is_found_and_its_pixels_are_one_object(tmp_path, picture, read, image, mask):
    picture(image)
    quality = {"quality": 95} if mask.endswith("jpg") else {}
    save(tmp_path / mask, water(), **quality)
    classes, (one,), tally = read("masks", tmp_path, classes=("water",))
    assert classes == ("water",) and one.picture.name == image and not tally.drops
    np.testing.assert_array_equal(shown(one), water() > 0)
    assert one.objects.boxes_xyxy.tolist() == [[10, 5, 60, 40]]
    assert one.split == ("train" if "train" in image.lower() else None)


def test_splits_with_the_same_stems_keep_their_own_masks(tmp_path, picture, read):
    for split, top in {"train": 5, "val": 25}.items():
        picture(f"{split}/1.png")
        mask = np.zeros((48, 64), np.uint8)
        mask[top : top + 5, :9] = 255
        save(tmp_path / f"{split}_masks" / "1.png", mask)
    _, examples, _ = read("masks", tmp_path, classes=("water",))
    assert [(one.split, one.objects.boxes_xyxy[0, 1]) for one in examples] == [
        ("train", 5),
        ("valid", 25),
    ]


def test_instance_masks_of_voc_are_neither_images_nor_masks(tmp_path, picture, read):
    picture("JPEGImages/a.png")
    for name in ("SegmentationClass", "SegmentationObject"):
        save(tmp_path / name / "a.png", water())
    _, (one,), tally = read("masks", tmp_path, classes=("water",))
    assert one.picture.name == "JPEGImages/a.png" and not tally.drops


def test_the_source_itself_may_be_called_masks(tmp_path, picture, read):
    picture("masks/a.png")
    save(tmp_path / "masks" / "a_mask.png", water())
    _, (one,), _ = read("masks", tmp_path / "masks", classes=("water",))
    assert one.picture.name == "a.png"


def test_a_mask_without_its_image_is_named(tmp_path, picture, read, drops):
    picture("images/a.png")
    for name in ("a", "gone"):
        save(tmp_path / "masks" / f"{name}.png", water())
    _, examples, tally = read("masks", tmp_path, classes=("water",))
    assert len(examples) == 1
    assert drops(tally) == {("mask", "without an image"): ["masks/gone.png: "]}


def test_connected_pieces_may_be_objects_of_their_own(tmp_path, picture, read):
    picture("a.png")
    save(tmp_path / "a_mask.png", water())
    _, (one,), _ = read("masks", tmp_path, classes=("water",), components=True)
    assert one.objects.boxes_xyxy.tolist() == [[10, 5, 30, 20], [40, 30, 60, 40]]
    assert one.objects.labels == ("water", "water")


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_masks_of_zero_and_one_are_not_black(tmp_path, picture, read, mode):
    picture("a.png")
    image = Image.fromarray((water() > 0).astype(np.uint8))
    if mode == "P":
        image.putpalette([0, 0, 0, 128, 0, 0])
    image = image.point(lambda v: v * 255).convert("1") if mode == "1" else image
    image.save(tmp_path / "a_mask.png")
    _, (one,), _ = read("masks", tmp_path, classes=("water",))
    np.testing.assert_array_equal(shown(one), water() > 0)


def test_values_are_classes_and_255_is_left_open(tmp_path, picture, read):
    picture("a.png")
    values = np.zeros((48, 64), np.uint8)
    values[:10], values[20:30], values[40:] = 2, 1, 255
    save(tmp_path / "a_mask.png", values)
    _, (one,), tally = read("masks", tmp_path, classes=("road", "house"))
    assert one.objects.labels == ("road", "house") and not tally.drops
    np.testing.assert_array_equal(shown(one, 1), values == 2)


def test_an_empty_mask_is_an_image_without_objects(tmp_path, picture, read):
    picture("a.png")
    save(tmp_path / "a_mask.png", np.zeros((48, 64), np.uint8))
    _, (one,), tally = read("masks", tmp_path, classes=("water",))
    assert len(one.objects) == 0 and not tally.drops


def test_what_cannot_be_used_is_named(tmp_path, picture, read, drops):
    for name in "abcdef":
        picture(f"{name}.png")
    save(tmp_path / "a_mask.png", np.full((48, 64), 7, np.uint8))
    save(tmp_path / "b_mask.png", np.zeros((48, 64, 3), np.uint8))
    save(tmp_path / "c_mask.png", np.zeros((24, 32), np.uint8))
    (tmp_path / "d_mask.png").touch()
    (tmp_path / "e_mask.png").write_bytes((tmp_path / "a_mask.png").read_bytes()[:-30])
    _, examples, tally = read("masks", tmp_path, classes=("road", "house"))
    assert examples == []
    dropped = drops(tally)
    unusable = " ".join(dropped[("image", "mask cannot be used")])
    assert "a_mask.png: holds the values [7], but 2 classes are named" in unusable
    assert "b_mask.png: PNG of mode RGB" in unusable and "e_mask.png: " in unusable
    assert dropped.keys() == {
        ("image", "mask cannot be used"),
        ("image", "image of another size than its annotations"),
        ("image", "image file is empty"),
        ("image", "without a mask"),
    }


def test_classes_must_be_named_and_masks_be_there(tmp_path, picture, read):
    picture("images/a.png")
    with pytest.raises(ValueError, match="--classes water"):
        read("masks", tmp_path)
    with pytest.raises(ValueError, match="no masks found"):
        read("masks", tmp_path, classes=("water",))
