"""Objects of an image: kept in a row and read back, drawn, and every way a row can be wrong."""

import json

import numpy as np
import pytest

from paligemma_jax.data import objects, records
from paligemma_jax.tasks import box_text

TRIANGLE = (np.float32([[5, 5], [90, 5], [40, 80]]),)


def example():
    mask = np.zeros((480, 640), bool)
    mask[20:40, 100:300] = True
    boxes = [[12, 30.5, 200, 310], [5, 5, 90, 80], [100, 20, 300, 40]]
    outlines = [None, TRIANGLE, objects.encode_bitmap(mask)]
    return objects.make(640, 480, ["cat", "dog", "dog"], boxes, outlines)


def row(**changes):
    return {
        "width": 640,
        "height": 480,
        "objects": [{"label": "a", "box": [0, 0, 9, 9]}],
        **changes,
    }


def one(**changes):
    return row(objects=[{"label": "a", "box": [0, 0, 9, 9], **changes}])


def read(folder, **keys):
    """Reads a row through a file."""
    (folder / "a.png").touch()
    path = folder / "a.jsonl"
    path.write_text(json.dumps({"image": "a.png", "prefix": "p", "suffix": "s", **keys}))
    return records.read_jsonl(path)[0]


def test_objects_in_a_row_are_read_back_with_the_record(tmp_path):
    written = objects.to_row(example())
    assert written["objects"][1] == {
        "label": "dog",
        "box": [5, 5, 90, 80],
        "segmentation": [[5, 5, 90, 5, 40, 80]],
    }
    record = read(tmp_path, **written, note="mine")
    assert record.extra == {"note": "mine"}
    assert record.objects is not None
    assert objects.to_row(record.objects) == written
    np.testing.assert_array_equal(record.objects.boxes_xyxy, example().boxes_xyxy)
    assert record.objects.segmentations[2] == example().segmentations[2]


def test_a_row_without_objects_keeps_its_width(tmp_path):
    record = read(tmp_path, width=640)
    assert record.objects is None and record.extra == {"width": 640}


def test_an_image_without_objects_is_not_a_row_without_them(tmp_path):
    found = read(tmp_path, **row(objects=[])).objects
    assert found is not None and len(found) == 0 and found.boxes_xyxy.shape == (0, 4)


def test_numbers_are_kept_to_a_thousandth_of_a_pixel():
    made = objects.make(640, 480, ["a"], [[1.23456, 0, 100.1, 1 / 3]])
    assert objects.to_row(made)["objects"][0]["box"] == [1.235, 0, 100.1, 0.333]


def test_detections_are_yxyx_shares_of_the_image():
    text = box_text.format(objects.to_detections(example()))
    assert text.startswith("<loc0065><loc0019><loc0661><loc0320> cat ; ")


def test_outlines_are_drawn_as_pixels():
    polygon, run_lengths = (
        objects.bitmap(outline, width=640, height=480) for outline in example().segmentations[1:]
    )
    assert polygon.shape == (480, 640) and polygon[10, 40] and not polygon[70, 80]
    assert abs(polygon.sum() - 85 * 75 / 2) < 100
    assert run_lengths.sum() == 20 * 200 and run_lengths[20:40, 100:300].all()


def test_run_lengths_of_another_image_are_an_error():
    with pytest.raises(ValueError, match="not of 64x48 pixels"):
        objects.bitmap(example().segmentations[2], width=64, height=48)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (row(width=None), "needs 'width' and 'height' of the image in pixels"),
        (row(height=48.0), "found 640 and 48.0"),
        (row(objects={"bbox": []}), "expected a list, found a dict; give what is not our objects"),
        (row(objects=[7]), "object 1: expected a JSON object, found a int"),
        (row(objects=[{"label": "a"}]), "object 1: has the keys ['label']; expected label, box"),
        (one(bbox=[]), "has the keys ['bbox', 'box', 'label']"),
        (one(label=" "), "label: expected a class name, found ' '"),
        (one(label=3), "label: expected a class name, found 3"),
        (one(box=[1, 2, 3]), "box: expected [x0, y0, x1, y1], found [1, 2, 3]"),
        (one(box=[1, 2, True, 4]), "box: expected"),
        (one(box=[0, 0, 641, 9]), "not inside the image's 640x480 pixels"),
        (one(box=[9, 0, 9, 9]), "is empty"),
        (one(box=[0, 0, 10**400, 9]), "box: expected [x0, y0, x1, y1], found [0, 0, 1000000"),
        (one(segmentation=[[1, 2, 3, 4, -(10**400), 6]]), "segmentation: expected polygons"),
        (one(box=[9, 0, 0, 9]), "is empty"),
        (one(segmentation=[]), "segmentation: expected polygons"),
        (one(segmentation=[[1, 2, 3, 4]]), "segmentation: expected polygons"),
        (one(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "segmentation: expected polygons"),
        (one(segmentation=[[1, 2, 3, 4, 5, float("nan")]]), "segmentation: expected polygons"),
        (
            one(segmentation=[[1, 2, 3e8, 2, 3e8, 5]]),
            "more than a side outside the image's 640x480",
        ),
        (one(segmentation=[[-1, 40, 1e30, 1, 10, 1e308, 0, 10]]), "reaches to -1 .. 1e+308 pixels"),
        (row(width=10**6, height=10**6), "1000000x1000000 pixels are more than an image has"),
        (one(segmentation={"size": [640, 480], "counts": ""}), "run lengths with size [480, 640]"),
        (one(segmentation={"size": [480, 640], "counts": [1]}), "counts as text"),
        (row(image=[]), "needs one image, found 0"),
    ],
)
def test_bad_objects_are_named_with_file_and_line(tmp_path, keys, message):
    with pytest.raises(ValueError) as error:
        read(tmp_path, **keys)
    assert "a.jsonl:1: " in str(error.value) and message in str(error.value)
    assert "1 bad objects" in str(error.value)


def test_a_polygon_that_sticks_out_is_clipped_to_its_image(tmp_path):
    outside = [[-20, -5, 700, 10, 30, 500]]
    record = read(tmp_path, **one(segmentation=outside))
    assert record.objects.segmentations[0][0].tolist() == [[0, 0], [640, 10], [30, 480]]
