"""Pascal VOC: what supervision and VOCdevkit have, and every kind of bad file."""

import numpy as np
import pytest

OBJECT = "<object><name>{name}</name><bndbox>{box}</bndbox></object>"


def box(*corners):
    names = ("xmin", "ymin", "xmax", "ymax")
    return "".join(f"<{n}>{v}</{n}>" for n, v in zip(names, corners, strict=True))


def write(folder, *items, name="a.xml", filename="a.png", size=(64, 48)):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    objects = "".join(OBJECT.format(name=label, box=corners) for label, corners in items)
    path.write_text(f"<annotation><filename>{filename}</filename>{sides}{objects}</annotation>")
    return path


def test_supervisions_files_equal_its_coco(datasets, read):
    classes, examples, tally = read("voc", datasets / "voc")
    truth = read("coco", datasets / "coco")[1]
    assert classes == ("dime", "half dollar") and not tally.drops
    for one, expected in zip(examples, truth, strict=True):
        assert one.objects.labels == expected.objects.labels
        np.testing.assert_array_equal(one.objects.boxes_xyxy, expected.objects.boxes_xyxy)
    polygon, expected = (one[1].objects.segmentations[0][0] for one in (examples, truth))
    assert sorted(map(tuple, polygon)) == sorted(map(tuple, expected))


def test_corners_count_from_one_and_lie_inside(tmp_path, picture, read):
    picture("a.png")
    write(tmp_path, ("cat", box(1, 1, 64, 48)), ("dog", box(11, 6, 30, 35)))
    _, (one,), _ = read("voc", tmp_path)
    assert one.objects.boxes_xyxy.tolist() == [[0, 0, 64, 48], [10, 5, 30, 35]]


def test_vocdevkits_folders_and_sets(tmp_path, picture, read, drops):
    root = tmp_path / "VOC2012"
    for name in "abc":
        picture(f"VOC2012/JPEGImages/{name}.jpg")
        picture(f"VOC2012/SegmentationObject/{name}.png")
        write(
            root, ("cat", box(1, 1, 9, 9)), name=f"Annotations/{name}.xml", filename=f"{name}.jpg"
        )
    sets = root / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("a\n")
    (sets / "val.txt").write_text("b\ngone\n")
    (sets / "trainval.txt").write_text("a\nb\n")
    (sets / "cat_train.txt").write_text("c 1\n")
    _, examples, tally = read("voc", tmp_path)
    assert [one.split for one in examples] == ["train", "valid", None]
    assert drops(tally) == {
        ("image", "listed without an annotation file"): ["ImageSets/Main: gone: "]
    }
    assert examples[0].picture.name == "VOC2012/JPEGImages/a.jpg"


def test_roboflows_splits_are_folders(tmp_path, picture, read):
    for split in ("train", "valid"):
        picture(f"{split}/a.png")
        write(tmp_path, ("cat", box(1, 1, 9, 9)), name=f"{split}/a.xml")
    _, examples, _ = read("voc", tmp_path)
    assert [(one.split, one.picture.name) for one in examples] == [
        ("train", "train/a.png"),
        ("valid", "valid/a.png"),
    ]


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"", "the file is empty"),
        (b"<annotation>", "no element found"),
        (b"<opencv_storage/>", "expected <annotation>, found <opencv_storage>"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "declares a document type"),
        (b"<annotation>caf\xe9</annotation>", "not well-formed"),
        (b"<?xml version='1.0' encoding='klingon'?><annotation/>", "unknown encoding: klingon"),
    ],
)
def test_a_broken_file_is_named_and_the_others_stay(tmp_path, picture, read, drops, content, shown):
    picture("a.png")
    write(tmp_path, ("cat", box(1, 1, 9, 9)))
    (tmp_path / "b.xml").write_bytes(content)
    _, examples, tally = read("voc", tmp_path)
    ((key, (message,)),) = drops(tally).items()
    assert key == ("image", "broken XML") and message.startswith("b.xml: ") and shown in message
    assert len(examples) == 1


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ((" ", box(1, 1, 9, 9)), "without a class name"),
        (("cat", box(9, 9, 3, 3)), "box without area"),
        (("cat", box(1, 1, "x", 9)), "neither box nor outline"),
        (("cat", box(1, 1, "nan", 9)), "box is not four numbers"),
        (("cat", box(101, 1, 120, 9)), "box outside its image"),
    ],
)
def test_a_bad_object_is_named_and_the_others_stay(tmp_path, picture, read, drops, item, reason):
    picture("a.png")
    write(tmp_path, ("dog", box(1, 1, 9, 9)), item)
    _, (one,), tally = read("voc", tmp_path)
    assert list(drops(tally)) == [("object", reason)]
    assert one.objects.labels == ("dog",)


def test_bad_images_are_named(tmp_path, picture, read, drops):
    picture("x/same.png")
    picture("y/same.png")
    picture("turned.png", size=(48, 64))
    for name in ("same", "turned", "gone"):
        write(tmp_path, ("cat", box(1, 1, 9, 9)), name=f"{name}.xml", filename=f"{name}.png")
    _, examples, tally = read("voc", tmp_path)
    assert examples == []
    assert {reason for _, reason in drops(tally)} == {
        "several images of this name",
        "image of another size than its annotations",
        "image not found",
    }


def test_sizes_of_thousands_of_digits_say_nothing(tmp_path, picture, read):
    picture("a.png")
    write(tmp_path, ("cat", box(1, 1, 9, 9)), size=("9" * 5000, 48))
    _, (one,), tally = read("voc", tmp_path)
    assert len(one.objects) == 1 and not tally.drops


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_document_type_is_refused_in_any_encoding(tmp_path, picture, read, drops, encoding):
    picture("a.png")
    path = write(tmp_path, ("&e;", box(1, 1, 9, 9)))
    text = f"<?xml version='1.0' encoding='{encoding}'?><!DOCTYPE a [<!ENTITY e 'cat'>]>"
    path.write_bytes((text + path.read_text()).encode(encoding))
    _, examples, tally = read("voc", tmp_path)
    (message,) = drops(tally)["image", "broken XML"]
    assert not examples and "declares a document type" in message
