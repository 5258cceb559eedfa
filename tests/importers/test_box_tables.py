"""CSV with a box per row: names of columns, corners and sizes, shares, and what is wrong."""

import pytest

from paligemma_jax.importers import formats


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    "lines",
    [
        ("filename,width,height,class,xmin,ymin,xmax,ymax", "a.png,64,48,cow,6,12,32,24"),
        ("image;label;x;y;w;h", "a.png;cow;6;12;26;12"),
        ("ImageID,Source,LabelName,XMin,XMax,YMin,YMax", "a,x,cow,0.09375,0.5,0.25,0.5"),
        ('"image_id", "category", "x1", "y1", "x2", "y2"', '"photos\\a.png", "cow", 6, 12, 32, 24'),
        ("photos/a.png,6,12,32,24,cow",),
    ],
)
def test_the_same_box_in_every_spelling(tmp_path, picture, read, lines):
    picture("photos/a.png")
    write(tmp_path / "train.csv", *lines)
    assert formats.choose(str(tmp_path), "detection")[0] == "box_csv"
    classes, (one,), tally = read("box_csv", tmp_path)
    assert classes == ("cow",) and one.split == "train" and not tally.drops
    assert one.objects.boxes_xyxy.tolist() == [[6, 12, 32, 24]]


def test_rows_of_one_image_are_its_objects_and_an_empty_one_says_none(tmp_path, picture, read):
    picture("a.png")
    picture("b.png")
    rows = ["b.png,1,2,9,9,cow", "a.png,,,,,", "b.png,3,4,20,20,dog"]
    write(tmp_path / "x.csv", *rows)
    classes, examples, _ = read("box_csv", tmp_path)
    found = {one.picture.name: one.objects.labels for one in examples}
    assert classes == ("cow", "dog") and found == {"b.png": ("cow", "dog"), "a.png": ()}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.png,cow,1,2,one,9", "box is not four numbers"),
        ("a.png,cow,9,2,3,9", "box without area"),
        ("a.png,,1,2,9,9", "without a class name"),
        ("a.png,cow,1,2", "wrong number of columns"),
        ("gone.png,cow,1,2,9,9", "of an image that was dropped"),
    ],
)
def test_a_bad_row_costs_itself(tmp_path, picture, read, row, reason):
    picture("a.png")
    write(tmp_path / "x.csv", "image,class,x1,y1,x2,y2", row, "a.png,dog,1,2,9,9")
    _, (one,), tally = read("box_csv", tmp_path)
    assert one.objects.labels == ("dog",)
    assert reason in {drop.reason for drop in tally.drops}


def test_an_image_of_another_size_is_dropped(tmp_path, picture, read, drops):
    picture("a.png")
    write(
        tmp_path / "x.csv", "file,width,height,class,xmin,ymin,xmax,ymax", "a.png,640,480,a,1,2,3,4"
    )
    _, examples, tally = read("box_csv", tmp_path)
    assert not examples and ("image", "image of another size than its annotations") in drops(tally)


def test_captions_stay_captions(tmp_path, picture):
    picture("a.png")
    write(tmp_path / "x.csv", "image,caption", "a.png,a cow")
    assert formats.choose(str(tmp_path), "caption")[0] == "csv"


def test_numbers_that_stand_for_classes_are_named_by_the_command(tmp_path, picture, read):
    picture("a.png")
    write(tmp_path / "a.csv", "image,class,x1,y1,x2,y2", "a.png,1,6,12,32,24", "a.png,00,1,1,9,9")
    _, (one,), _ = read("box_csv", tmp_path, classes=("cow", "pig"))
    assert one.objects.labels == ("pig", "cow")
    _, (one,), _ = read("box_csv", tmp_path, classes=("cow",), first_class=1)
    assert one.objects.labels == ("cow",)


def test_commas_may_be_points_of_numbers(tmp_path, picture, read):
    picture("a.png")
    write(tmp_path / "a.csv", "image;class;x1;y1;x2;y2", "a.png;cow;6,5;12,25;32;24")
    _, (one,), _ = read("box_csv", tmp_path)
    assert one.objects.boxes_xyxy.tolist() == [[6.5, 12.25, 32, 24]]
