"""YOLO: what supervision and Roboflow write, polygons, and every kind of bad line."""

import numpy as np
import pytest

from paligemma_jax.importers import formats


@pytest.fixture
def folder(tmp_path, picture):
    """Roboflow's layout with one image and no labels yet."""
    picture("train/images/a.png")
    (tmp_path / "train" / "labels").mkdir()
    yaml = "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cat', 'big  dog']\n"
    (tmp_path / "data.yaml").write_text(yaml.replace("val: ../valid/images\n", ""))
    return tmp_path


def label(folder, text):
    (folder / "train" / "labels" / "a.txt").write_text(text)


def test_supervisions_files_equal_its_coco(datasets, read):
    classes, examples, tally = read("yolo", datasets / "yolo")
    truth = read("coco", datasets / "coco")[1]
    assert classes == ("dime", "half dollar") and not tally.drops
    for one, expected in zip(examples, truth, strict=True):
        assert one.objects.labels == expected.objects.labels
        # supervision writes outlines through the last pixels inside: one less at the far sides.
        written = expected.objects.boxes_xyxy - [0, 0, 1, 1]
        np.testing.assert_allclose(one.objects.boxes_xyxy, written, atol=2e-3)


def test_boxes_and_outlines_are_in_pixels(folder, read):
    label(folder, "0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.75 0.25 0.5 1\n")
    classes, (one,), tally = read("yolo", folder)
    assert classes == ("cat", "big dog") and one.split == "train" and not tally.drops
    assert one.objects.labels == ("cat", "big dog")
    assert one.objects.boxes_xyxy.tolist() == [[24, 12, 40, 36], [16, 12, 48, 48]]
    assert one.objects.segmentations[0] is None
    assert one.objects.segmentations[1][0].tolist() == [[16, 12], [48, 12], [32, 48]]


def test_keypoints_leave_the_box(folder, read):
    with open(folder / "data.yaml", "a") as file:
        file.write("kpt_shape: [2, 3]\n")
    label(folder, "0 0.5 0.5 0.25 0.5 0.1 0.2 2 0.3 0.4 2\n")
    _, (one,), _ = read("yolo", folder)
    assert one.objects.boxes_xyxy.tolist() == [[24, 12, 40, 36]]
    assert one.objects.segmentations == (None,)


def test_an_empty_or_missing_label_file_is_an_image_without_objects(folder, picture, read):
    label(folder, "")
    picture("train/images/b.png")
    _, examples, tally = read("yolo", folder)
    assert [len(one.objects) for one in examples] == [0, 0]
    assert tally.changed == {"images without label file taken as without objects": 1}


def test_a_label_file_without_its_image_is_named(folder, read, drops):
    label(folder, "0 0.5 0.5 0.25 0.5")
    for name in ("gone.txt", "classes.txt"):
        (folder / "train" / "labels" / name).write_text("0 0.5 0.5 0.25 0.5\n")
    _, examples, tally = read("yolo", folder)
    assert len(examples) == 1
    assert tally.read == {"images": 1, "objects": 1, "label files without an image": 1}
    dropped = drops(tally)
    assert dropped == {("label file", "without an image"): ["train/labels/gone.txt: "]}


@pytest.mark.parametrize(
    ("line", "reason", "shown"),
    [
        ("7 0.5 0.5 0.25 0.5", "without a class name", "a.txt:2: class 7 of 2 names"),
        ("-1 0.5 0.5 0.25 0.5", "without a class name", "class -1 of 2 names"),
        ("0 0.5 0.5 0.25", "neither box nor outline", "a.txt:2: 4 numbers, expected 5"),
        ("0 0.5 0.5 0.25 0.5 0.9", "neither box nor outline", "6 numbers"),
        ("cat 0.5 0.5 0.25 0.5", "neither box nor outline", "'cat 0.5 0.5 0.25 0.5' is not"),
        ("0 nan 0.5 0.25 0.5", "box is not four numbers", "a.txt:2"),
        ("0 0.5 0.5 0 0.5", "box without area", "a.txt:2"),
    ],
)
def test_a_bad_line_is_named_and_the_others_stay(folder, read, drops, line, reason, shown):
    label(folder, f"1 0.5 0.5 0.25 0.5\n{line}\n")
    _, (one,), tally = read("yolo", folder)
    ((key, (message,)),) = drops(tally).items()
    assert key == ("object", reason) and shown in message
    assert one.objects.labels == ("big dog",)


def test_a_label_file_in_another_encoding_is_named(folder, read, drops):
    (folder / "train" / "labels" / "a.txt").write_bytes(b"0 0.5 \xe9")
    _, examples, tally = read("yolo", folder)
    assert examples == [] and ("image", "label file is not UTF-8") in drops(tally)


def test_a_file_name_in_another_encoding_is_named(folder, read, drops):
    good = folder / "train" / "images" / "a.png"
    (good.parent / b"caf\xe9.png".decode("utf-8", "surrogateescape")).write_bytes(good.read_bytes())
    _, examples, tally = read("yolo", folder)
    ((key, (message,)),) = drops(tally).items()
    assert len(examples) == 1 and key == ("image", "file name is not UTF-8")
    assert "caf\\udce9.png" in message


def test_names_may_be_numbered_and_splits_listed_in_files(tmp_path, picture, read):
    picture("images/all/a.png")
    picture("images/all/b.png")
    (tmp_path / "val.txt").write_text("./images/all/b.png\n")
    (tmp_path / "data.yaml").write_text(
        "path: .\ntrain: images/all\nval: val.txt\nnames: {0: cat, 2: dog}\n"
    )
    classes, examples, _ = read("yolo", tmp_path)
    assert classes == ("cat", "dog")
    assert [(one.picture.name, one.split) for one in examples] == [
        ("images/all/a.png", "train"),
        ("images/all/b.png", "train"),  # train comes first and has it already
    ]


def test_without_yaml_the_names_are_in_classes_txt_or_given(tmp_path, picture, read):
    picture("images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("1 0.5 0.5 0.25 0.5")
    with pytest.raises(ValueError, match="--classes first,second"):
        read("yolo", tmp_path)
    assert read("yolo", tmp_path, classes=("a", "b"))[1][0].objects.labels == ("b",)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert read("yolo", tmp_path)[1][0].objects.labels == ("dog",)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [a]\ntrain: ../../other", "no folder or list inside this folder"),
        ("names: [a]\ntrain: nowhere", "names 'nowhere'"),
        ("train: [", "cannot be read"),
        ("- a", "expected names:"),
        ("names: [a]\ntrain: 5", "data.yaml: train: expected a path or a list, found 5"),
        ("train: " + "[" * 2000, "cannot be read"),
        ("nc: !!int ''", "cannot be read"),
        ("!!python/object/apply:os.getcwd []", "cannot be read"),
    ],
)
def test_a_wrong_data_yaml_is_an_error(folder, read, yaml, message):
    (folder / "data.yaml").write_text(yaml)
    (folder.parent / "other").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match=message):
        read("yolo", folder)


def test_a_listed_image_outside_the_folder_is_named(tmp_path, picture, read, drops):
    picture("a.png")
    (tmp_path.parent / "b.png").touch()
    (tmp_path / "train.txt").write_text("a.png\n../b.png\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: [a]\n")
    _, examples, tally = read("yolo", tmp_path)
    assert len(examples) == 1 and ("image", "image outside the folder") in drops(tally)


def test_labels_in_a_folder_of_another_name_are_found_by_name(tmp_path, picture, read):
    for split in ("train", "val"):
        picture(f"{split}/JPEGImages/1.png")
        (tmp_path / split / "Annotations").mkdir()
    (tmp_path / "train" / "Annotations" / "1.txt").write_text("0 0.5 0.5 0.25 0.5")
    (tmp_path / "val" / "Annotations" / "1.txt").write_text("1 0.5 0.5 0.25 0.5")
    (tmp_path / "classes.txt").write_text("cat\ndog\n\n")
    classes, examples, tally = read("yolo", tmp_path)
    assert classes == ("cat", "dog")
    assert [(one.split, one.objects.labels) for one in examples] == [
        ("train", ("cat",)),
        ("valid", ("dog",)),
    ]
    assert tally.changed == {"label files found by name alone": 2}


def test_the_label_of_another_image_is_not_taken(tmp_path, picture, read):
    picture("train/images/1.png")  # a background image: no label
    picture("valid/images/1.png")
    (tmp_path / "valid" / "labels").mkdir()
    (tmp_path / "valid" / "labels" / "1.txt").write_text("0 0.5 0.5 0.25 0.5")
    (tmp_path / "1.txt").write_text("some notes on image 1, of five words")
    _, examples, _ = read("yolo", tmp_path, classes=("cat",))
    assert [len(one.objects) for one in examples] == [0, 1]


@pytest.mark.parametrize("name", ["labels/classes.txt", "images/classes.txt"])
def test_class_names_beside_labels_or_images_are_found(name, tmp_path, picture, read):
    picture("images/1.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text("1 0.5 0.5 0.25 0.5")
    (tmp_path / name).write_text("cat\ndog\n")
    assert read("yolo", tmp_path)[1][0].objects.labels == ("dog",)


def test_class_lists_that_differ_are_an_error(tmp_path, picture, read):
    for split, names in {"train": "cat\n", "valid": "dog\n"}.items():
        picture(f"{split}/1.png")
        (tmp_path / split / "_darknet.labels").write_text(names)
    with pytest.raises(ValueError, match=r"class names differ between .*train.*; give them"):
        read("yolo", tmp_path)


@pytest.mark.parametrize(
    "train",
    [
        "Fruit-3/train/images",  # from the folder above
        "/content/Fruit-3/train/images",
        "C:\\Users\\me\\Fruit-3\\train\\images",
        "../train/images",
        "train.txt",  # holds a path of another machine
    ],
)
def test_paths_of_another_folder_or_machine_are_found_by_their_end(folder, picture, read, train):
    picture("valid/images/b.png")
    (folder / "train.txt").write_text("/content/Fruit-3/train/images/a.png\n")
    (folder / "data.yaml").write_text(
        f"train: {train}\nval: {train}/../../valid/images\nnames: [a]"
    )
    if train == "train.txt":
        (folder / "data.yaml").write_text("train: train.txt\nval: /data/valid/images\nnames: [a]")
    _, examples, _ = read("yolo", folder)
    assert [(one.split, one.picture.name) for one in examples] == [
        ("train", "train/images/a.png"),
        ("valid", "valid/images/b.png"),
    ]


def test_a_split_that_was_not_exported_is_named_and_the_others_stay(folder, read, drops):
    with open(folder / "data.yaml", "a") as file:
        file.write("test: ../test/images\n")
    _, examples, tally = read("yolo", folder)
    assert [one.split for one in examples] == ["train"]
    assert drops(tally) == {("split", "not there"): ["data.yaml: test: '../test/images'"]}


def test_aliases_that_would_fill_the_memory_are_an_error(folder, read):
    levels = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    lines = ["a0: &a0 [x]", *levels, "names: *a8", "train: images"]
    (folder / "data.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"data\.yaml: cannot be read: more than 20 aliases"):
        read("yolo", folder)


def test_a_few_aliases_are_read(folder, read):
    lines = ["val: &place train/images", "train: *place", "names: [cat]"]
    (folder / "data.yaml").write_text("\n".join(lines))
    assert len(read("yolo", folder)[1]) == 1


@pytest.mark.parametrize("line", ["names: 2020-99-99", "names: !!int ''", f"names: {'[' * 3000}"])
def test_yaml_that_breaks_its_reader_is_an_error_that_names_the_file(folder, read, line):
    (folder / "data.yaml").write_text(f"train: train/images\n{line}\n")
    with pytest.raises(ValueError, match=r"data\.yaml: cannot be read"):
        read("yolo", folder)


def test_classes_that_count_from_1_are_said_and_read(folder, read, capsys):
    (folder / "data.yaml").write_text("train: train/images\nnames: [cat, dog]\n")
    (folder / "train/labels/a.txt").write_text("1 0.5 0.5 0.2 0.2\n2 0.5 0.5 0.4 0.4\n")
    read("yolo", folder)
    assert "no label has class 0, and some have 2" in capsys.readouterr().err
    classes, (one,), tally = read("yolo", folder, first_class=1)
    assert (classes, one.objects.labels) == (("cat", "dog"), ("cat", "dog")) and not tally.drops


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ("['cat', 'dog']", "1.000000e+00"),
        ("{'0': cat, '1': dog}", "1"),
        ("{0: cat, 1: dog}", "1.0"),
    ],
)
def test_a_class_is_its_number_however_it_is_written(tmp_path, picture, read, names, line):
    picture("images/a.png")
    (tmp_path / "pets.yaml").write_text(f"train: images\nnames: {names}\n")
    (tmp_path / "images/a.txt").write_text(f"{line} 0.5 0.5 0.25 0.5\n")
    assert formats.choose(str(tmp_path), "detection") == ("yolo", "pets.yaml")
    _, (one,), _ = read("yolo", tmp_path)
    assert one.objects.labels == ("dog",)


@pytest.mark.parametrize("number", ["1000000000", "-1", "0.5", "x", "9" * 400])
def test_a_class_of_no_such_number_is_an_error_before_a_list_is_made_of_it(
    tmp_path, picture, read, number
):
    picture("images/a.png")
    (tmp_path / "data.yaml").write_text(f"train: images\nnames: {{0: cat, '{number}': dog}}\n")
    with pytest.raises(ValueError, match=r"data.yaml: names: expected numbers from 0 to 65535"):
        read("yolo", tmp_path)


def test_two_descriptions_of_classes_are_not_chosen_from(tmp_path, picture, read):
    picture("images/a.png")
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / name).write_text("train: images\nnames: [cat]\n")
    with pytest.raises(ValueError, match=r"one.yaml, two.yaml each name classes; give one of them"):
        read("yolo", tmp_path)
    assert read("yolo", tmp_path / "two.yaml")[0] == ("cat",)


def test_a_pointer_in_the_place_of_a_label_file_is_called_one(folder, read, drops):
    label(folder, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    _, examples, tally = read("yolo", folder)
    (message,) = drops(tally)["image", "label file cannot be read"]
    assert not examples and "git lfs pull" in message


@pytest.mark.parametrize("name", ["Classes.txt", "coins.names", "class_names.txt"])
def test_lists_of_class_names_have_several_names(tmp_path, picture, read, name):
    picture("Images/a.png")
    (tmp_path / "Labels").mkdir()
    (tmp_path / "Labels/a.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    (tmp_path / name).write_text("coin\n")
    assert formats.choose(str(tmp_path), "detection") == ("yolo", name)
    assert read("yolo", tmp_path)[1][0].objects.labels == ("coin",)


def test_labels_without_names_are_known_and_ask_for_them(tmp_path, picture, read):
    picture("images/a.png")
    (tmp_path / "images/a.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    assert formats.choose(str(tmp_path), "detection")[0] == "yolo"
    with pytest.raises(ValueError, match=r"no class names.*--classes first,second"):
        read("yolo", tmp_path)
