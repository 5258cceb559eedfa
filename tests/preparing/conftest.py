"""Small data sets: JSONL of ours with different pictures, and a COCO export."""

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write_jsonl(place):
    """Returns a writer of rows and their pictures: file, number of rows, what is in the rows."""

    def write(name, count, first=0, **row):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = []
        for number in range(first, first + count):
            image = f"{number}.png"
            pixels = np.full((8, 8, 3), number, np.uint8)
            Image.fromarray(pixels).save(path.parent / image)
            suffix = f"<loc0100><loc0{200 + number}><loc0500><loc0600> cat"
            rows.append({"image": image, "prefix": "detect cat", "suffix": suffix} | row)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def write_coco(place):
    """Returns a writer of a COCO export with two classes: folder, number of images."""

    def write(name, count):
        folder = place / name
        folder.mkdir(parents=True)
        images = [
            {"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in range(count)
        ]
        for image in images:
            pixels = np.full((30, 40, 3), image["id"], np.uint8)
            Image.fromarray(pixels).save(folder / image["file_name"])
        boxes = [
            {"id": n, "image_id": n, "category_id": n % 2, "bbox": [5, 5, 20, 10 + n % 9]}
            for n in range(count)
        ]
        categories = [{"id": 0, "name": "coin"}, {"id": 1, "name": "note"}]
        content = {"images": images, "annotations": boxes, "categories": categories}
        (folder / "annotations.json").write_text(json.dumps(content))
        return folder

    return write
