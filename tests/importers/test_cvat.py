"""CVAT's XML: boxes, turned boxes, polygons and masks of many images in one file."""

import pytest

from paligemma_jax.data import objects
from paligemma_jax.importers import formats

IMAGE = '<image id="3" name="{name}" width="64" height="48" {more}>{shapes}</image>'
BOX = '<box label="ship" xtl="4" ytl="6" xbr="24" ybr="16" {more}/>'


def write(folder, shapes, name="a.png", more=""):
    image = IMAGE.format(name=name, shapes=shapes, more=more)
    (folder / "annotations.xml").write_text(
        f'<?xml version="1.0"?>\n<annotations><version>1.1</version>{image}</annotations>'
    )


def test_boxes_and_polygons(tmp_path, picture, read):
    picture("images/a.png")
    polygon = '<polygon label="pier" points="1,2;30.5,2;10,40" />'
    write(tmp_path, BOX.format(more="") + polygon, more='subset="Validation"')
    classes, (one,), tally = read("cvat", tmp_path)
    assert classes == ("pier", "ship") and not tally.drops and one.split == "valid"
    assert one.objects.boxes_xyxy.tolist() == [[4, 6, 24, 16], [1, 2, 30.5, 40]]


def test_a_turned_box_is_its_outline(tmp_path, picture, read):
    picture("a.png")
    write(tmp_path, BOX.format(more='rotation="90"'))
    _, (one,), _ = read("cvat", tmp_path)
    assert one.objects.boxes_xyxy.tolist() == [[9, 1, 19, 21]]
    assert one.objects.segmentations[0] is not None


def test_a_mask_is_read_row_by_row_inside_its_box(tmp_path, picture, read):
    picture("a.png")
    write(tmp_path, '<mask label="oil" rle="1, 2, 3" left="10" top="5" width="3" height="2"/>')
    _, (one,), _ = read("cvat", tmp_path)
    drawn = objects.bitmap(one.objects.segmentations[0], width=64, height=48)
    assert drawn.sum() == 2 and drawn[5, 11] and drawn[5, 12]


@pytest.mark.parametrize(
    "bad",
    [
        '<mask label="a" rle="1,2" left="1" top="1" width="3" height="2"/>',
        '<mask label="a" rle="6" left="63" top="1" width="3" height="2"/>',
        '<polygon label="a" points="1,2;3"/>',
        '<box label="a" xtl="1" ytl="x" xbr="3" ybr="4"/>',
        '<points label="a" points="1,2"/>',
    ],
)
def test_a_bad_shape_costs_itself(tmp_path, picture, read, bad):
    picture("a.png")
    write(tmp_path, bad + BOX.format(more=""))
    _, (one,), tally = read("cvat", tmp_path)
    assert one.objects.labels == ("ship",)
    (drop,) = [drop for drop in tally.drops if drop.what == "object"]
    assert drop.source.startswith("annotations.xml: image 3: ")


def test_a_video_is_an_error_that_says_what_to_export(tmp_path, picture, read):
    picture("a.png")
    (tmp_path / "annotations.xml").write_text('<annotations><track id="0"/></annotations>')
    with pytest.raises(ValueError, match=r"XML of a video.*export the task as 'COCO"):
        read("cvat", tmp_path)


def test_it_is_not_taken_for_voc(tmp_path, picture):
    picture("a.png")
    write(tmp_path, BOX.format(more=""))
    assert formats.choose(str(tmp_path), "detection")[0] == "cvat"


def test_a_rotation_that_is_no_angle_drops_its_box(tmp_path, picture, read, drops):
    picture("a.png")
    box = '<box label="cat" xtl="1" ytl="2" xbr="30" ybr="20" rotation="{}"/>'
    boxes = "".join(map(box.format, ("1e308", "nan", "-90")))
    (tmp_path / "annotations.xml").write_text(
        f'<annotations><image name="a.png">{boxes}</image></annotations>'
    )
    _, (one,), tally = read("cvat", tmp_path)
    assert len(one.objects) == 1 and len(drops(tally)["object", "box is not four numbers"]) == 2
