"""One small data set as every format has it: what the tests of all importers write and expect."""

import json
import pathlib
import unicodedata

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet

# image -> (label, box in pixels)
BOXES = {"\u00e4": ("cat", [4, 6, 40, 30]), "b": ("dog", [10, 8, 60, 40])}
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


def write_captions(root, name):
    rows = [f"{name(stem)},{label}" for stem, (label, _) in BOXES.items()]
    return {"captions.csv": "\n".join(["image,caption", *rows])}


def write_masks(root, name):
    """Masks name no images: they are called as these, and hold 1 for the first class, 2 for ..."""
    for number, (stem, (_, (x0, y0, x1, y1))) in enumerate(BOXES.items(), 1):
        pixels = np.zeros(SIZE[::-1], np.uint8)
        pixels[y0:y1, x0:x1] = number
        path = root / "masks" / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return {}


# format -> (what writes it, what it is read for). A writer gets the folder and a function from a
# stem to the image's name in annotations, and returns {file: text}.
FORMATS = {
    "coco": (write_coco, {}),
    "labelme": (write_labelme, {}),
    "cvat": (write_cvat, {}),
    "voc": (write_voc, {}),
    "yolo": (write_yolo, {}),
    "box_csv": (write_csv, {}),
    "jsonl": (write_jsonl, {}),
    "parquet": (write_parquet, {}),
    "masks": (write_masks, {"classes": ("cat", "dog")}),
    "csv": (write_captions, {"task": "caption"}),
}
# Those that name the class of every object.
NAMED = ("coco", "labelme", "cvat", "voc", "box_csv", "jsonl", "parquet")


def write(
    folder, format_name, *, place="images", shown="images/{}.png", as_stored=str, encode=str.encode
):
    """Writes the data set.

    Args:
      folder: of it, made.
      format_name: a key of FORMATS.
      place: folder of the images in it. shown: an image as annotations name it.
      as_stored: from an image's name to that of its file.
      encode: from the text of annotations to their bytes.
    """
    for number, stem in enumerate(BOXES):
        path = folder / place / as_stored(f"{stem}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE, (number, 0, 0)).save(path)
    for name, text in FORMATS[format_name][0](folder, shown.format).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(text))


def contents(examples):
    """Returns {stem of the image: its objects, or its text}."""
    return {stem(one.picture.name): _content(one) for one in examples}


def stem(name):
    """Returns an image's stem as `BOXES` has it, whatever system wrote it."""
    return unicodedata.normalize("NFC", pathlib.PurePosixPath(name).stem).lower()


def _content(one):
    if one.objects is None:
        return one.suffix
    pairs = zip(one.objects.labels, one.objects.boxes_xyxy, strict=True)
    return [(label, np.round(box, 2).tolist()) for label, box in pairs]


def expected(format_name):
    """Returns the `contents` that every format must give."""
    texts = {stem: label for stem, (label, _) in BOXES.items()}
    objects = {stem: [(label, box)] for stem, (label, box) in BOXES.items()}
    return texts if format_name == "csv" else objects
