"""labelme's files: rectangles, polygons, groups, and images wherever the path leads."""

import base64
import json

import pytest

from paligemma_jax.importers import formats


def write(path, *shapes, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": "5.0.1", "flags": {}, "shapes": list(shapes), "imagePath": "a.png"}
    path.write_text(json.dumps({**content, "imageData": None, **more}))


def shape(label, points, kind="polygon", group=None):
    return {"label": label, "points": points, "shape_type": kind, "group_id": group}


TRIANGLE = [[2, 2], [20, 2], [11, 30]]


def test_rectangles_are_boxes_whichever_corner_comes_first(tmp_path, picture, read):
    picture("a.png")
    write(tmp_path / "a.json", shape("van", [[30, 20], [5, 8]], "rectangle"))
    classes, (one,), tally = read("labelme", tmp_path)
    assert classes == ("van",) and not tally.drops
    assert one.objects.boxes_xyxy.tolist() == [[5, 8, 30, 20]]


def test_polygons_of_one_group_are_one_object(tmp_path, picture, read):
    picture("a.png")
    other = [[40, 2], [60, 2], [50, 30]]
    shapes = [shape("tree", TRIANGLE, group=1), shape("tree", other, group=1)]
    write(tmp_path / "a.json", *shapes, shape("tree", TRIANGLE))
    _, (one,), _ = read("labelme", tmp_path)
    assert one.objects.boxes_xyxy.tolist() == [[2, 2, 60, 30], [2, 2, 20, 30]]
    assert [len(outline) for outline in one.objects.segmentations] == [2, 1]


def test_a_circle_is_its_outline(tmp_path, picture, read):
    picture("a.png")
    write(tmp_path / "a.json", shape("coin", [[30, 20], [30, 30]], "circle"))
    _, (one,), _ = read("labelme", tmp_path)
    assert one.objects.boxes_xyxy[0].tolist() == pytest.approx([20, 10, 40, 30], abs=0.1)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (shape("a", [[1, 1]], "point"), "point is no outline"),
        (shape("a", [[1, 1], [2, "x"], [3, 3]]), "neither box nor outline"),
        (shape("a", [[1, 1]], "rectangle"), "box is not four numbers"),
        (shape(None, TRIANGLE), "without a class name"),
    ],
)
def test_a_bad_shape_costs_itself(tmp_path, picture, read, bad, reason):
    picture("a.png")
    write(tmp_path / "a.json", bad, shape("tree", TRIANGLE))
    _, (one,), tally = read("labelme", tmp_path)
    assert one.objects.labels == ("tree",)
    assert ("object", reason) in {(drop.what, drop.reason) for drop in tally.drops}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("labels/a.json", "..\\a.png"),
        ("labels/a.json", "C:\\photos\\a.png"),
        ("a.json", "gone.png"),
    ],
)
def test_an_image_is_found_by_path_by_name_or_by_stem(tmp_path, picture, read, name, path):
    picture("a.png")
    write(tmp_path / name, shape("tree", TRIANGLE), imagePath=path)
    _, (one,), _ = read("labelme", tmp_path)
    assert one.picture.name == "a.png"


def test_an_image_that_a_file_holds_is_used_where_there_is_no_other(tmp_path, picture, read):
    data = picture("a.png").read_bytes()
    (tmp_path / "a.png").unlink()
    held = base64.b64encode(data).decode()
    write(tmp_path / "a.json", shape("tree", TRIANGLE), imageData=held)
    _, (one,), _ = read("labelme", tmp_path)
    assert one.picture.data == data


def test_files_that_are_broken_or_of_another_size_are_named(tmp_path, picture, read, drops):
    picture("a.png")
    write(tmp_path / "a.json", shape("tree", TRIANGLE), imageWidth=640, imageHeight=480)
    (tmp_path / "b.json").write_text('{"shapes": [')
    _, examples, tally = read("labelme", tmp_path)
    reasons = {reason for _, reason in drops(tally)}
    assert not examples
    assert reasons == {"image of another size than its annotations", "broken labelme file"}


def test_its_files_are_not_taken_for_coco(tmp_path, picture):
    picture("a.png")
    write(tmp_path / "annotations" / "a.json", shape("tree", TRIANGLE))
    assert formats.choose(str(tmp_path), "detection")[0] == "labelme"
    assert formats.choose(str(tmp_path / "annotations" / "a.json"), "detection")[0] == "labelme"
