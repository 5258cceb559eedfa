"""Answers in a notebook: boxes in pixels, pictures, tables; text is never HTML."""

import builtins
import json

import numpy as np
import pytest
from PIL import Image

from paligemma_jax.results import answers
from paligemma_jax.tasks import geometry

EVIL = "<script>alert('cat')</script>\u202e"


def box(label="cat", yxyx=(0.25, 0.1, 0.5, 1.0), score=0.5, **more):
    return {"box_yxyx": list(yxyx), "label": label, "score": score, **more}


def make(*boxes, size=(100, 300), **more):
    row = {"images": ["a.png"], "prefix": "detect cat", "prediction": "<loc0001> cat", **more}
    picture = Image.new("RGB", (size[1], size[0]), "white")
    return answers.Answer({**row, "detections": list(boxes)}, lambda: [picture])


def test_an_answer_is_the_row_that_it_was_made_of():
    row = {"prediction": "two", "logp": -0.5}
    assert answers.Answer(row) == row and json.dumps(answers.Answer(row)) == json.dumps(row)
    assert answers.Answer(row).text == "two" and answers.Answer(row).xyxy.shape == (0, 4)


def test_boxes_and_masks_are_in_pixels_of_the_image():
    upper = np.zeros((64, 64), bool)
    upper[:32] = True
    one = make(box(mask=geometry.pack_mask(upper)), box("dog", mask=geometry.pack_mask(~upper)))
    np.testing.assert_allclose(one.xyxy, [[30, 25, 300, 50]] * 2)
    assert one.labels == ["cat", "dog"] and one.masks.shape == (2, 100, 300)
    assert one.masks[0, 26:36, 40:290].all() and not one.masks[0, 39:].any()
    assert not one.masks[0, :25].any() and one.masks[1, 40:50, 40:290].all()
    known = make(box(xyxy=[1, 2, 3, 4]))
    np.testing.assert_array_equal(known.xyxy, [[1, 2, 3, 4]])
    assert known.masks is None


def test_the_picture_has_the_boxes_and_words_stand_below_theirs():
    drawn = np.asarray(make(box()).picture())
    assert drawn.shape == (100, 300, 3) and (drawn[25, 200] != 255).any()
    words = answers.Answer({"prediction": "two cats"}, lambda: [np.zeros((40, 60, 3), np.uint8)])
    assert words.picture().height > 40
    with pytest.raises(ValueError, match="about no image"):
        answers.Answer({"prediction": "two cats"}).picture()


@pytest.mark.parametrize("count", [1, 14])
def test_a_notebook_shows_pictures_and_no_text_as_html(count):
    shown = answers.Answers([make(box(EVIL), prediction=EVIL, prefix=EVIL)] * count)
    page = shown._repr_html_()
    assert page.count('src="data:image/jpeg') == min(count, 12)
    assert "<script>" not in page and "&lt;script&gt;" in page and "\u202e" not in page
    assert ("and 2 more answers" in page) == (count == 14)


def test_an_image_that_is_gone_or_was_not_read_costs_its_picture_alone():
    def gone():
        raise FileNotFoundError("a.png")

    moved = answers.Answer({"prediction": "yes", "prefix": "is it?"}, gone)
    failed = answers.Answer({"error": "cannot read image a.png"}, gone)
    page = answers.Answers([moved, failed])._repr_html_()
    assert "yes" in page and 'class="failed">cannot read image' in page and "<img" not in page
    assert repr(failed) == "Answer(: cannot read image a.png)"


def test_a_table_has_a_row_for_each_object_and_for_each_answer_in_words():
    words = answers.Answer({"images": ["b.png"], "prediction": "two", "logp": -1.0})
    table = answers.Answers([make(box(), box("dog")), words]).to_dataframe()
    assert table["label"].tolist()[:2] == ["cat", "dog"]
    assert table["left"].tolist()[:2] == pytest.approx([30, 30])
    assert table["images"].tolist() == ["a.png", "a.png", "b.png"]
    assert table["prediction"].tolist()[2] == "two"
    assert make().to_dataframe().empty


@pytest.mark.filterwarnings("ignore::UserWarning")  # supervision, of what it does without
def test_supervision_gets_pixels_and_one_number_a_label_over_all_answers():
    first, second = answers.Answers([make(box("dog")), make(box(), box("dog"))]).to_supervision()
    np.testing.assert_allclose(second.xyxy, [[30, 25, 300, 50]] * 2)
    assert first.class_id.tolist() == [1] and second.class_id.tolist() == [0, 1]
    assert second.data["class_name"].tolist() == ["cat", "dog"]
    assert second.confidence.tolist() == [0.5, 0.5]
    assert len(make().to_supervision()) == 0


def test_matplotlib_draws_each_picture(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    figure = answers.Answers([make(box())] * 5).plot()
    assert sum(bool(place.images) for place in figure.axes) == 5
    assert figure.axes[0].get_title() == "detect cat"
    with pytest.raises(ValueError, match="no answer"):
        answers.Answers().plot()


@pytest.mark.parametrize(
    ("package", "method"),
    [("pandas", "to_dataframe"), ("supervision", "to_supervision"), ("matplotlib", "plot")],
)
def test_a_library_that_is_missing_is_asked_for_by_name(package, method, monkeypatch):
    inner = builtins.__import__

    def refuse(name, *arguments, **options):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(name)
        return inner(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=f"needs {package}.*paligemma-jax.notebook"):
        getattr(make(box()), method)()


def test_objects_are_one_short_line():
    long = make(*[box(f"class {n} {EVIL}" * 9) for n in range(40)], images=["x" * 4000])
    for one in (long, answers.Answers([long] * 500), answers.Answer({"prediction": "a\n" * 900})):
        assert len(repr(one)) < 200 and "\n" not in repr(one)
    assert repr(make(box(), box(), box("dog"))) == "Answer(a.png: 2 cat, 1 dog)"
    assert repr(answers.Answers([make(), make(box())])) == "Answers(2 answers, 1 cat)"
