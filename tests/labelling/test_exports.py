"""What is exported is read back, by our own importers, as it was labelled."""

import io
import json
import zipfile

import numpy as np
import pytest

from paligemma_jax.data import objects
from paligemma_jax.importers import coco, example, yolo
from paligemma_jax.labelling import exports, labelling, row_store

POLYGON = [[10, 20, 60, 20, 60, 80]]
BOXES = [
    {"label": "cat", "box": [10, 20, 60, 80]},
    {"label": "dog", "box": [0, 0, 200, 100]},
]


@pytest.fixture
def label(make_images, serve):
    """Returns a function that labels the first of two images: (objects) -> (folder, calls)."""

    def label(drawn):
        folder = make_images(2)
        _, store = serve(folder, classes="cat,dog")
        calls = labelling.open_calls(store, labelling.LabelOptions(data=folder))
        key = store.items()[0].key
        calls.save({"key": key, "revision": 0, "by": "ann", "done": True, "objects": drawn})
        return folder, calls

    return label


def read(module, path, folder):
    request = example.Request(str(path), "detection", images=str(folder))
    data = module.read(request, example.Tally(), lambda *_: None)
    return [one for one in data.examples if one.objects is not None and len(one.objects)]


def test_coco_holds_boxes_polygons_and_masks(label, tmp_path):
    mask = np.zeros((100, 200), bool)
    mask[5:9, 7:30] = True
    runs = {"size": [100, 200], "counts": objects.encode_bitmap(mask)}
    drawn = [
        {**BOXES[0], "segmentation": POLYGON},
        BOXES[1],
        {"label": "cat", "box": [7, 5, 30, 9], "segmentation": runs},
    ]
    folder, calls = label(drawn)
    name, _, content = exports.make(calls, "coco")
    (tmp_path / name).write_bytes(content)
    (one,) = read(coco, tmp_path / name, folder)
    assert objects.to_row(one.objects)["objects"] == drawn
    assert json.loads(content)["categories"] == [
        {"id": 1, "name": "cat"},
        {"id": 2, "name": "dog"},
    ]


@pytest.mark.parametrize("has_polygons", [False, True])
def test_yolo_is_read_back(label, tmp_path, has_polygons):
    drawn = [{**BOXES[0], "segmentation": POLYGON}] if has_polygons else BOXES
    folder, calls = label(drawn)
    _, _, content = exports.make(calls, "yolo")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(tmp_path / "yolo")
    (tmp_path / "yolo" / "images").mkdir()
    (folder / "0.png").rename(tmp_path / "yolo" / "images" / "0.png")
    (one,) = read(yolo, tmp_path / "yolo", tmp_path / "yolo" / "images")
    assert one.objects.labels == tuple(box["label"] for box in drawn)
    np.testing.assert_allclose(one.objects.boxes_xyxy, [box["box"] for box in drawn], atol=0.01)


def test_what_is_begun_is_left_out_and_nothing_is_an_error(label):
    _, calls = label(BOXES)
    store = calls.store
    item = store.items()[0]
    row = {**item.row, row_store.ABOUT: row_store.make_about("ann", 2, is_done=False)}
    store.change([row_store.Edit(item.key, 1, row)], by="ann")
    with pytest.raises(ValueError, match="nothing to export"):
        exports.make(calls, "coco")
    with pytest.raises(ValueError, match="expected one of"):
        exports.make(calls, "voc")
