"""A source with labels never becomes images without objects, whatever its format."""

import json

import pytest

from paligemma_jax import import_data
from paligemma_jax.importers import example, formats, label_check, splits

IMAGES = ("a.png", "b.png")


def coco(folder, *, image_ids=(1, 2), category_id=1):
    """Annotations of images 1 and 2, or of others."""
    content = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(IMAGES, 1)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category_id, "bbox": [1, 2, 30, 20]}
            for n, image in enumerate(image_ids)
        ],
    }
    (folder / "coco.json").write_text(json.dumps(content))


def yolo_of_other_names(folder):
    (folder / "data.yaml").write_text("names: [cat]\ntrain: .\n")
    for name in IMAGES:
        (folder / f"{name}_boxes.txt").write_text("0 0.5 0.5 0.2 0.2\n")


def yolo_of_other_classes(folder):
    (folder / "data.yaml").write_text("names: [cat]\ntrain: .\n")
    (folder / "a.txt").write_text("7 0.5 0.5 0.2 0.2\n")
    (folder / "b.txt").write_text("8 0.5 0.5 0.2 0.2\n")


def voc(folder):
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    objects = f"<objects><object><name>cat</name>{box}</object></objects>"
    for stem in "ab":
        text = f"<annotation><filename>{stem}.png</filename>{objects}</annotation>"
        (folder / f"{stem}.xml").write_text(text)


def gray_masks(folder, picture):
    for stem in "ab":
        picture(f"{folder.name}/{stem}_mask.png", color=100)


def jsonl(folder):
    row = {"prefix": "detect cat", "suffix": "", "boxes": [[1, 2, 30, 20]]}
    lines = [json.dumps({"image": name, **row}) for name in IMAGES]
    (folder / "rows.jsonl").write_text("\n".join(lines))


def csv(folder):
    lines = ["image,suffix,xmin,ymin,xmax,ymax", *(f"{name},,1,2,30,20" for name in IMAGES)]
    (folder / "rows.csv").write_text("\n".join(lines))


def box_csv(folder):
    lines = ["image,class,xmin,ymin,xmax,ymax", *(f"{name},cat,1;2,,30,20" for name in IMAGES)]
    (folder / "boxes.csv").write_text("\n".join(lines))


def parquet(folder):
    arrow = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [{"image": name, "objects": [], "boxes": [[1, 2, 30, 20]]} for name in IMAGES]
    pq.write_table(arrow.Table.from_pylist(rows), folder / "rows.parquet")


def labelme(folder):
    for stem in "ab":
        shape = {"label": "cat", "points": [[1, 2]], "shape_type": "point"}
        content = {"shapes": [shape], "imagePath": f"{stem}.png"}
        (folder / f"{stem}.json").write_text(json.dumps(content))


def cvat(folder):
    shape = '<ellipse label="cat" cx="9" cy="9" rx="3" ry="3"/>'
    images = "".join(f'<image name="{name}">{shape}</image>' for name in IMAGES)
    (folder / "annotations.xml").write_text(f"<annotations>{images}</annotations>")


# (format, what writes its annotations, options, what the error holds)
SOURCES = [
    ("coco", lambda f: coco(f, image_ids=(7, 8)), [], "no row has an object (of 2 that the source"),
    ("coco", lambda f: coco(f, category_id=9), [], "category_id 9 is in no category"),
    ("yolo", yolo_of_other_names, [], "2 label files, without an image: a.png_boxes.txt; b.png"),
    ("yolo", yolo_of_other_classes, [], "class 7 of 1 name"),
    ("voc", voc, [], "right below <annotation>, of 2 XML files"),
    ("labelme", labelme, [], "2 objects, point is no outline"),
    ("cvat", cvat, [], "2 objects, ellipse is no box or outline"),
    ("masks", gray_masks, ["--classes=cat"], "pixels brighter than half"),
    ("jsonl", jsonl, [], "column 'suffix' of rows.jsonl"),
    ("box_csv", box_csv, [], "2 objects, box is not four numbers"),
    ("csv", csv, [], "column 'suffix' of rows.csv"),
    ("parquet", parquet, [], "column 'objects' of 1 file"),
]


def test_every_format_is_among_the_sources():
    assert {name for name, *_ in SOURCES} == set(formats.FORMATS)


@pytest.mark.parametrize("task", ["detection", "counting"])
@pytest.mark.parametrize(("name", "write", "options", "shown"), SOURCES)
def test_labels_that_do_not_arrive_are_an_error_that_names_where_they_were_looked_for(
    name, write, options, shown, task, tmp_path, picture
):
    folder = tmp_path / "source"
    for image in IMAGES:
        picture(f"source/{image}")
    write(*((folder, picture) if write is gray_masks else (folder,)))
    words = [str(folder), str(tmp_path / "out"), f"--task={task}", f"--format={name}", *options]
    with pytest.raises(ValueError, match="searched objects: ") as error:
        import_data.main(words)
    assert shown in str(error.value)
    assert not (tmp_path / "out").exists()


def test_captions_of_images_that_are_not_listed_are_an_error(tmp_path, picture):
    for image in IMAGES:
        picture(f"source/{image}")
    coco(tmp_path / "source", image_ids=(7, 8))
    with pytest.raises(ValueError, match="2 captions, of an image that is not listed"):
        import_data.main([str(tmp_path / "source"), str(tmp_path / "out"), "--task=caption"])


def make_rows(*counts):
    """Rows with as many objects each."""
    return [
        splits.Row({"suffix": "", "objects": [{}] * count}, "a.png", "a.png", None)
        for count in counts
    ]


def make_tally(**counts):
    """A tally with as many drops of each kind."""
    tally = example.Tally()
    for what, count in counts.items():
        for _ in range(count):
            tally.drop(what.replace("_", " "), "of an image that is not listed", "a.json")
    return tally


@pytest.mark.parametrize("what", ["object", "mask", "label_file"])
def test_less_than_one_object_in_a_hundred_is_an_error(what):
    tally = make_tally(**{what: 100})
    with pytest.raises(ValueError, match="only 1 of 101 objects arrived"):
        label_check.check(make_rows(1, 0), tally, source="a", task="detection", searched="b")
    tally = make_tally(**{what: 99})
    label_check.check(make_rows(1, 0), tally, source="a", task="detection", searched="b")


def test_less_than_one_row_in_a_hundred_is_an_error():
    tally = example.Tally()
    tally.read["rows"] = 101
    row = splits.Row({"suffix": "two"}, "a.png", "a.png", None)
    with pytest.raises(ValueError, match="only 1 of 101 rows can be used"):
        label_check.check([row], tally, source="a", task="vqa", searched="b")
    tally.read["rows"] = 100
    label_check.check([row], tally, source="a", task="vqa", searched="b")


def test_a_split_without_objects_beside_others_is_a_warning(capsys):
    parts = {"train": make_rows(2), "valid": make_rows(0, 0)}
    label_check.warn_of_empty_splits(parts, task="detection")
    assert "no object in any image of valid (2 images)" in capsys.readouterr().err
    label_check.warn_of_empty_splits({"train": make_rows(2, 0)}, task="detection")
    assert capsys.readouterr().err == ""


def test_a_class_that_every_prompt_asks_for_and_no_row_has_is_said(tmp_path, picture, capsys):
    picture("source/a.png")
    (tmp_path / "source/data.yaml").write_text("names: [cat, dog, emu]\ntrain: .\n")
    (tmp_path / "source/a.txt").write_text("1 0.5 0.5 0.2 0.2\n")
    import_data.main([str(tmp_path / "source"), str(tmp_path / "out"), "--task=detection"])
    said = "2 classes of 3 in every prompt and in no row: cat, emu."
    assert said in capsys.readouterr().err
    words = [str(tmp_path / "source"), str(tmp_path / "o2"), "--task=detection"]
    import_data.main([*words, "--prompt=detect dog"])
    assert "in no row" not in capsys.readouterr().err


def test_a_class_that_no_suffix_can_hold_costs_its_objects_alone(tmp_path, picture, capsys):
    for image in ("a.png", "b.png", "c.png"):
        picture(f"source/{image}")
    boxes = {"a": ["cat", "stop; go"], "b": ["stop; go"], "c": []}
    for stem, labels in boxes.items():
        shapes = [
            {"label": label, "points": [[1, 2], [30, 20]], "shape_type": "rectangle"}
            for label in labels
        ]
        content = {"shapes": shapes, "imagePath": f"{stem}.png"}
        (tmp_path / f"source/{stem}.json").write_text(json.dumps(content))
    words = [str(tmp_path / "source"), str(tmp_path / "out"), "--task=detection"]
    import_data.main(words)
    rows = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    assert [(row["image"], len(row["objects"])) for row in rows] == [
        ("images/a.png", 1),
        ("images/c.png", 0),
    ]
    said = capsys.readouterr().err
    assert "dropped  1 name, cannot be written in a suffix" in said and "'stop; go'" in said
    assert "dropped  2 objects, of a class that no suffix can hold" in said
    (tmp_path / "source/a.json").unlink()
    with pytest.raises(ValueError, match=r"source: no class is left\n.*'stop; go'.*Rename it"):
        import_data.main([*words, "--overwrite"])
