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


def numbered(tmp_path, picture, values):
    """Writes an image with a mask of four quarters that have these values."""
    picture("images/a.png", size=(4, 4))
    save(tmp_path / "masks/a.png", np.kron(np.uint8(values).reshape(2, 2), np.ones((2, 2), "u1")))


def test_classes_that_count_from_0_have_their_own_names(tmp_path, picture, read):
    numbered(tmp_path, picture, [0, 1, 2, 3])
    names = ("sky", "house", "car", "-")
    classes, (one,), _ = read("masks", tmp_path, classes=names, first_class=0)
    assert classes == ("sky", "house", "car")
    assert one.objects.labels == ("sky", "house", "car")
    assert one.objects.boxes_xyxy.tolist() == [[0, 0, 2, 2], [2, 0, 4, 2], [0, 2, 2, 4]]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, 1, 1, 0], "while no pixel is 2: if classes are counted from 0, --first_class 0"),
        ([0, 1, 2, 2], "0 is nothing, and covers 25% of all masks; if it is the first class"),
    ],
)
def test_what_0_is_taken_for_is_said(tmp_path, picture, read, capsys, values, said):
    numbered(tmp_path, picture, values)
    read("masks", tmp_path, classes=("a", "b"))
    assert said in capsys.readouterr().err
    read("masks", tmp_path, classes=("a", "b"), first_class=1)
    assert not capsys.readouterr().err


def test_a_value_beyond_the_classes_is_named_with_the_remedy(tmp_path, picture, read, drops):
    numbered(tmp_path, picture, [0, 1, 2, 2])
    _, _, tally = read("masks", tmp_path, classes=("a", "b"), first_class=0)
    ((place,),) = drops(tally).values()
    assert "holds the values [2], but 2 classes are named, 0 to 1; a name '-' stands for" in place


def test_masks_are_taken_from_the_folder_that_is_named(tmp_path, picture, read, drops):
    for name in ("photos/x/a.png", "photos/y/a.png", "photos/b.jpg", "photos/c.jpg"):
        picture(name, size=(4, 4))
    corner = np.pad(np.full((2, 2), 255, np.uint8), (0, 2))
    for name in ("x/a", "y/a_mask", "z/b"):
        save(tmp_path / "other" / f"{name}.png", corner)
    masks = str(tmp_path / "other")
    _, examples, tally = read("masks", tmp_path / "photos", classes=("w",), masks=masks)
    assert [one.picture.name for one in examples] == ["b.jpg", "x/a.png", "y/a.png"]
    assert drops(tally) == {("image", "without a mask"): ["c.jpg: "]}


def test_specks_are_left_out_below_an_area_and_said_without_it(tmp_path, picture, read, capsys):
    picture("images/a.png", size=(64, 64))
    dots = np.zeros((64, 64), np.uint8)
    dots[::4, ::4] = 255
    dots[30:40, 30:40] = 255
    save(tmp_path / "masks" / "a.png", dots)
    read("masks", tmp_path, classes=("w",))
    assert "pieces of masks have fewer than 16 pixels" in capsys.readouterr().err
    _, (one,), tally = read("masks", tmp_path, classes=("w",), min_area=16)
    assert one.objects.boxes_xyxy.tolist() == [[30, 30, 41, 41]]  # dots touch its lower corner
    assert tally.changed["pieces of masks below 16 pixels left out"] > 200
    assert not capsys.readouterr().err


def test_a_mask_of_the_whole_image_is_counted(tmp_path, picture, read):
    picture("images/a.png", size=(4, 4))
    save(tmp_path / "masks" / "a.png", np.full((4, 4), 255, np.uint8))
    _, _, tally = read("masks", tmp_path, classes=("w",))
    assert tally.changed == {"masks that cover their whole image: look at the sheet": 1}


def rotated(degrees, *, fill, size=(90, 120)):
    """Returns a mask with a rectangle in its middle, rotated; what was outside is `fill`."""
    mask = np.zeros(size, np.uint8)
    mask[30:60, 40:80] = 255
    return np.asarray(Image.fromarray(mask).rotate(degrees, fillcolor=fill))


def test_triangles_at_the_corners_of_a_rotated_mask_are_said_and_can_be_left_out(
    tmp_path, picture, read, capsys
):
    picture("images/a.png", size=(120, 90))
    save(tmp_path / "masks" / "a.png", rotated(12, fill=255))
    _, (one,), _ = read("masks", tmp_path, classes=("w",))
    assert one.objects.boxes_xyxy.tolist() == [[0, 0, 120, 90]]
    shown = capsys.readouterr().err
    assert "4 triangles at corners of masks" in shown and "--drop_wedges" in shown
    _, (one,), tally = read("masks", tmp_path, classes=("w",), drop_wedges=True)
    save(tmp_path / "masks" / "a.png", rotated(12, fill=0))
    _, (expected,), _ = read("masks", tmp_path, classes=("w",))
    assert one.objects.boxes_xyxy.tolist() == expected.objects.boxes_xyxy.tolist()
    assert tally.changed == {"triangles at corners of masks left out": 4}
    assert not capsys.readouterr().err


def test_other_pieces_in_corners_are_no_triangles(tmp_path, picture, read, capsys):
    picture("images/a.png", size=(120, 90))
    mask = np.zeros((90, 120), np.uint8)
    y, x = np.ogrid[:90, :120]
    mask[y**2 + x**2 < 30**2] = 255  # a quarter of a disc
    mask[:20, 80:] = 255  # a rectangle
    mask[(89 - y) + x < 4] = 255  # a triangle of a few pixels
    mask[70:, 100:] = 255
    save(tmp_path / "masks" / "a.png", mask)
    read("masks", tmp_path, classes=("w",))
    assert "triangle" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/img_7.png", "masks/mask_7.png"),
        ("img_7.png", "mask_7.png"),
        ("photos/7.png", "elsewhere/masks/7.tif"),
        (
            "leftImg8bit/train/ulm/ulm_7_leftImg8bit.png",
            "gtFine/train/ulm/ulm_7_gtFine_labelIds.png",
        ),
    ],
)
def test_pairs_of_other_names_are_found(tmp_path, picture, read, image, mask):
    picture(image)
    save(tmp_path / mask, water())
    save(tmp_path / mask.replace("labelIds", "color"), water())
    _, (one,), tally = read("masks", tmp_path, classes=("water",))
    assert one.objects.labels == ("water",) and not tally.drops


def test_a_mask_of_another_split_is_not_taken(tmp_path, picture, read, drops):
    picture("train/images/7.png")
    picture("valid/images/8.png")
    save(tmp_path / "valid/masks/7.png", water())
    save(tmp_path / "valid/masks/8.png", water())
    _, (one,), tally = read("masks", tmp_path, classes=("water",))
    assert one.picture.name == "valid/images/8.png"
    assert drops(tally).keys() == {("mask", "without an image"), ("image", "without a mask")}


def test_masks_of_a_named_folder_may_have_any_ending(tmp_path, picture, read, drops):
    for name in ("7", "71", "8"):
        picture(f"photos/{name}.png")
    for name in ("7_lab", "71-x", "9_lab"):
        save(tmp_path / f"marks/{name}.png", water())
    _, examples, tally = read("masks", tmp_path, classes=("water",), masks=str(tmp_path / "marks"))
    assert [one.picture.name for one in examples] == ["photos/7.png", "photos/71.png"]
    assert drops(tally) == {
        ("mask", "without an image"): ["marks/9_lab.png: "],
        ("image", "without a mask"): ["photos/8.png: "],
    }


@pytest.mark.parametrize("bright", [1, 255, 65_535])
def test_a_mask_of_16_bits_is_read_as_one_of_8(tmp_path, picture, read, bright):
    picture("images/a.png")
    values = (water() > 0).astype(np.uint16) * bright
    save(tmp_path / "masks/a.png", values)
    _, (one,), _ = read("masks", tmp_path, classes=("water",))
    assert (shown(one) == (water() > 0)).all()
    save(tmp_path / "masks/a.png", (water() > 0).astype(np.uint16) * 2)
    _, (one,), _ = read("masks", tmp_path, classes=("road", "water"))
    assert one.objects.labels == ("water",)
