"""What every importer says of the same faults: each is counted and named, and the rest stays."""

import json
import zlib

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from paligemma_jax.importers import formats

VOC = "<annotation><filename>{}</filename></annotation>"


def write_coco(folder, names):
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    content = {"images": images, "annotations": [], "categories": []}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


def write_yolo(folder, names):
    (folder / "train.txt").write_text("\n".join(names))
    (folder / "data.yaml").write_text("train: train.txt\nnames: [cat]\n")


def write_voc(folder, names):
    for number, name in enumerate(names):
        (folder / f"{number}.xml").write_text(VOC.format(name))


def write_masks(folder, names):
    """Masks are found by their images' names: one outside is reached by a link only."""
    for name in names:
        stem = name.removesuffix(".png").removeprefix("../")
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(folder / f"{stem}_mask.png")
        if name.startswith("../"):
            (folder / f"{stem}.png").symlink_to(folder / name)


def write_jsonl(folder, names):
    rows = [{"image": name, "caption": "a"} for name in names]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))


def write_csv(folder, names):
    (folder / "rows.csv").write_text("image,caption\n" + "".join(f"{n},a\n" for n in names))


def write_parquet(folder, names):
    images = [{"bytes": None, "path": name} for name in names]
    table = pyarrow.table({"image": images, "caption": ["a"] * len(names)})
    parquet.write_table(table, folder / "rows.parquet")


def write_labelme(folder, names):
    for number, name in enumerate(names):
        content = {"shapes": [], "imagePath": name}
        (folder / f"{number}.json").write_text(json.dumps(content))


def write_cvat(folder, names):
    images = "".join(f'<image name="{name}"/>' for name in names)
    (folder / "annotations.xml").write_text(f"<annotations>{images}</annotations>")


def write_box_csv(folder, names):
    rows = [f"{name},,,,," for name in names]
    (folder / "boxes.csv").write_text("\n".join(["image,class,xmin,ymin,xmax,ymax", *rows]))


# format -> (what writes one that names images, what it is read for)
FORMATS = {
    "coco": (write_coco, {}),
    "yolo": (write_yolo, {}),
    "voc": (write_voc, {}),
    "masks": (write_masks, {"classes": ("water",)}),
    "jsonl": (write_jsonl, {"task": "caption"}),
    "csv": (write_csv, {"task": "caption"}),
    "parquet": (write_parquet, {"task": "caption"}),
    "labelme": (write_labelme, {}),
    "cvat": (write_cvat, {}),
    "box_csv": (write_box_csv, {}),
}
REASONS = {
    "gone.png": "image not found",
    "../outside.png": "image outside the folder",
    "empty.png": "image file is empty",
    "huge.png": "image too large",
    "text.png": "not an image",
}
# VOC names files, not paths, and a mask alone is told as such.
OTHERS = {
    ("voc", "../outside.png"): "image not found",
    ("masks", "gone.png"): "without an image",
}


@pytest.fixture
def folder(tmp_path, picture):
    """A good image, and one of each fault: 0 bytes, 30,000 x 30,000 pixels by its header, text."""
    folder = tmp_path / "data"
    for name in ("data/good.png", "data/huge.png", "outside.png"):
        picture(name)
    data = bytearray((folder / "huge.png").read_bytes())
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    (folder / "huge.png").write_bytes(data)
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no picture")
    return folder


def test_every_format_is_among_those_with_bad_rows():
    assert set(FORMATS) == set(formats.FORMATS)


@pytest.mark.parametrize("fault", REASONS)
@pytest.mark.parametrize("name", FORMATS)
def test_an_image_that_cannot_be_used_is_counted_and_named(folder, read, drops, name, fault):
    write, request = FORMATS[name]
    for other in ("huge.png", "empty.png", "text.png"):
        if other != fault:
            (folder / other).unlink()
    write(folder, ["good.png", fault])
    _, examples, tally = read(name, folder, **request)
    assert [one.picture.name for one in examples] == ["good.png"]
    ((what, reason), messages), *rest = drops(tally).items()
    assert not rest and len(messages) == 1 and what in ("image", "mask")
    assert reason == OTHERS.get((name, fault), REASONS[fault])
    stem = fault.removeprefix("../").removesuffix(".png")
    assert stem in messages[0]
    assert sum(tally.read.values()) == 2


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("coco", "_annotations.coco.json", b"", "_annotations.coco.json: the file is empty"),
        ("yolo", "data.yaml", b"", "data.yaml: expected names"),
        ("yolo", "data.yaml", b"names: [caf\xe9]", "data.yaml: cannot be read"),
        ("yolo", "classes.txt", b"caf\xe9\n", "classes.txt: byte 0xe9 is not UTF-8"),
        ("yolo", "list.txt", b"caf\xe9.png\n", "list.txt: byte 0xe9 is not UTF-8"),
        ("voc", "ImageSets/Main/train.txt", b"caf\xe9\n", "train.txt: byte 0xe9 is not UTF-8"),
        ("jsonl", "rows.jsonl", b"", "rows.jsonl: the file is empty"),
        ("csv", "rows.csv", b"", "rows.csv: the file is empty"),
        ("parquet", "rows.parquet", b"", "rows.parquet: pyarrow cannot read it"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(folder, read, name, file, content, message):
    if file == "list.txt":
        (folder / "data.yaml").write_text("train: list.txt\nnames: [cat]\n")
    if name == "voc":
        write_voc(folder, ["good.png"])
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(name, folder, **FORMATS[name][1])


def test_a_jsonl_row_that_is_not_utf8_is_named_and_the_others_stay(folder, read, drops):
    write_jsonl(folder, ["good.png"])
    with (folder / "rows.jsonl").open("ab") as file:
        file.write(b'\n{"image": "good.png", "caption": "caf\xe9"}\n')
    _, examples, tally = read("jsonl", folder, task="caption")
    assert len(examples) == 1 and tally.read["rows"] == 2
    assert drops(tally)[("row", "not UTF-8")][0].startswith("rows.jsonl:2: byte 0xe9")


def test_a_broken_polygon_of_voc_leaves_its_box(folder, read, drops):
    polygon = "<polygon><x1>1</x1><y1>2</y1><x2>9</x2><y2>x</y2><x3>9</x3><y3>9</y3></polygon>"
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    thing = f"<object><name>cat</name>{box}{polygon}</object>"
    (folder / "a.xml").write_text(f"<annotation><filename>good.png</filename>{thing}</annotation>")
    _, (one,), tally = read("voc", folder)
    assert list(drops(tally)) == [("outline", "broken outline")]
    assert one.objects.labels == ("cat",) and one.objects.segmentations == (None,)


def test_a_broken_polygon_of_yolo_has_no_box_to_live_by(folder, read, drops):
    write_yolo(folder, ["good.png"])
    lines = "0 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.5 0.1 nan 0.5\n"
    (folder / "good.txt").write_text(lines)
    _, (one,), tally = read("yolo", folder)
    dropped = drops(tally)
    assert dropped.keys() == {("outline", "broken outline"), ("object", "neither box nor outline")}
    assert all("good.txt:2" in message for (message,) in dropped.values())
    assert len(one.objects) == 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"category": [0, 7]}, ("object", "without a class name")),
        ({"bbox": [[1, 1, 9, 9], [1, 1, 0, 9]]}, ("object", "box without area")),
        ({"bbox": [[1, 1, 9, 9], [1, 1, 9]]}, ("object", "box is not four numbers")),
    ],
)
def test_a_bad_object_of_a_parquet_file_is_named(folder, picture, read, drops, changes, key):
    objects = {"bbox": [[1, 1, 9, 9], [2, 2, 9, 9]], "category": [0, 0], **changes}
    images = [{"bytes": None, "path": "good.png"}]
    table = pyarrow.table({"image": images, "objects": [objects]})
    parquet.write_table(table, folder / "rows.parquet")
    _, (one,), tally = read("parquet", folder, classes=("cat", "dog"))
    assert list(drops(tally)) == [key] and one.objects.labels == ("cat",)


@pytest.mark.parametrize("name", FORMATS)
def test_a_pointer_in_the_place_of_an_image_is_called_one(name, tmp_path, read, drops):
    write, request = FORMATS[name]
    content = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"
    (tmp_path / "a.png").write_text(content)
    write(tmp_path, ["a.png"])
    _, examples, tally = read(name, tmp_path, **request)
    ((place,),) = drops(tally).values()
    assert not examples and "it is a Git LFS pointer: run 'git lfs pull'" in place
