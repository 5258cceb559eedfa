"""The same small data set, moved, renamed and written anew, gives the same rows in any format."""

import json

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from paligemma_jax.importers import example, pictures

# image -> (label, box in pixels)
BOXES = {"a": ("cat", [4, 6, 40, 30]), "b": ("dog", [10, 8, 60, 40])}
SIZE = (64, 48)


def write_coco(root, name):
    images = [{"id": stem, "file_name": name(stem)} for stem in BOXES]
    annotations = [
        {
            "id": n,
            "image_id": stem,
            "category_id": n,
            "bbox": [*box[:2], *np.subtract(box[2:], box[:2]).tolist()],
        }
        for n, (stem, (_, box)) in enumerate(BOXES.items())
    ]
    categories = [{"id": n, "name": label} for n, (label, _) in enumerate(BOXES.values())]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return {"annotations.json": json.dumps(content)}


def write_labelme(root, name):
    return {
        f"json/{stem}.json": json.dumps(
            {
                "shapes": [
                    {"label": label, "points": [box[:2], box[2:]], "shape_type": "rectangle"}
                ],
                "imagePath": name(stem),
            }
        )
        for stem, (label, box) in BOXES.items()
    }


def write_cvat(root, name):
    corners = 'xtl="{}" ytl="{}" xbr="{}" ybr="{}"'
    images = [
        f'<image name="{name(stem)}"><box label="{label}" {corners.format(*box)}/></image>'
        for stem, (label, box) in BOXES.items()
    ]
    return {"annotations.xml": f"<annotations>{''.join(images)}</annotations>"}


def write_voc(root, name):
    corner = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    return {
        f"xml/{stem}.xml": f"<annotation><filename>{name(stem)}</filename><object>"
        f"<name>{label}</name><bndbox>"
        f"{corner.format(box[0] + 1, box[1] + 1, *box[2:])}</bndbox></object></annotation>"
        for stem, (label, box) in BOXES.items()
    }


def write_yolo(root, name):
    files = {"classes.txt": "cat\ndog\n"}
    for number, (stem, (_, box)) in enumerate(BOXES.items()):
        (x0, y0, x1, y1), (w, h) = box, SIZE
        shares = [(x0 + x1) / 2 / w, (y0 + y1) / 2 / h, (x1 - x0) / w, (y1 - y0) / h]
        files[f"labels/{stem}.txt"] = f"{number} {' '.join(map(repr, shares))}\n"
    return files


def write_csv(root, name):
    rows = [
        f"{name(stem)},{label},{','.join(map(str, box))}" for stem, (label, box) in BOXES.items()
    ]
    return {"boxes.csv": "\n".join(["image,class,x1,y1,x2,y2", *rows])}


def rows_of(name):
    for stem, (label, (x0, y0, x1, y1)) in BOXES.items():
        objects = {"bbox": [[x0, y0, x1 - x0, y1 - y0]], "category": [label]}
        yield {"image": name(stem), "objects": objects}


def write_jsonl(root, name):
    return {"rows.jsonl": "\n".join(map(json.dumps, rows_of(name)))}


def write_parquet(root, name):
    table = pyarrow.Table.from_pylist(list(rows_of(name)))
    root.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, root / "rows.parquet")
    return {}


FORMATS = {
    "coco": write_coco,
    "labelme": write_labelme,
    "cvat": write_cvat,
    "voc": write_voc,
    "yolo": write_yolo,
    "box_csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}
# What happened to a data set -> (folder of its images, an image as its annotations name it).
MOVES = {
    "as it was": ("images", "images/{}.png"),
    "folder of another name": ("photos", "photos/{}.png"),
    "one folder deeper": ("data/images", "images/{}.png"),
    "named from another folder": ("images", "{}.png"),
    "backslashes": ("images", "images\\{}.png"),
    "absolute, another machine": ("images", "/home/me/set/images/{}.png"),
    "absolute, Windows": ("images", "C:\\set\\images\\{}.png"),
    "from the folder above": ("images", "set/images/{}.png"),
}
ENCODINGS = {
    "plain": lambda text: text.encode(),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
}


def rows(folder, write, read, format_name, move="as it was", encode=ENCODINGS["plain"]):
    """Returns {stem of the image: its objects} of a data set that was moved."""
    place, shown = MOVES[move]
    for number, stem in enumerate(BOXES):
        path = folder / place / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, (number, 0, 0)).save(path)
    for name, text in write(folder, shown.format).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(text))
    _, examples, _ = read(format_name, folder)
    return {
        one.picture.name.rpartition("/")[2]: [
            (label, np.round(box, 2).tolist())
            for label, box in zip(one.objects.labels, one.objects.boxes_xyxy, strict=True)
        ]
        for one in examples
    }


EXPECTED = {f"{stem}.png": [(label, box)] for stem, (label, box) in BOXES.items()}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_data_set_that_was_moved_gives_the_same_rows(tmp_path, read, name, move):
    assert rows(tmp_path / "set", FORMATS[name], read, name, move) == EXPECTED


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_data_set_that_was_saved_anew_gives_the_same_rows(tmp_path, read, name, encoding):
    found = rows(tmp_path / "set", FORMATS[name], read, name, encode=ENCODINGS[encoding])
    assert found == EXPECTED


def locate(folder, *names):
    """Returns (the names found, the reasons of those that were not)."""
    tally, finder = example.Tally(), pictures.open_folder(str(folder))
    found = [pictures.locate(finder, name, "x:1", tally) for name in names]
    return [one.name for one in found if one], [drop.reason for drop in tally.drops]


def test_an_image_of_another_split_is_not_taken_for_the_one_that_is_missing(tmp_path, picture):
    picture("1.png")
    picture("valid/2.png")
    assert locate(tmp_path, "train/1.png") == ([], ["image not found"])
    assert locate(tmp_path / "valid", "/x/valid/2.png") == (["2.png"], [])
    assert locate(tmp_path / "valid", "/x/train/2.png")[0] == []


def test_two_names_do_not_share_one_image(tmp_path, picture):
    picture("1.png")
    names = ["1.png", "/x/a/1.png", "/x/a/1.png"]
    assert locate(tmp_path, *names) == (["1.png"], ["image not found"] * 2)
    assert locate(tmp_path, *names[1:]) == (["1.png", "1.png"], [])


def test_a_path_that_leads_out_of_the_folder_stays_refused(tmp_path, picture):
    picture("in/1.png")
    assert locate(tmp_path / "in", "../1.png", "a/../../1.png")[0] == []
