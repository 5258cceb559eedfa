"""The page of a report in a real browser: every control does what it says, at every width."""

import importlib.util
import pathlib

import pytest
from PIL import Image

from paligemma_jax.reports import diagnosis, gallery

# Tests are no package: what they share is loaded by its path.
_spec = importlib.util.spec_from_file_location(
    "browser", pathlib.Path(__file__).parents[1] / "browser.py"
)
assert _spec is not None and _spec.loader is not None
browser = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser)

CAT, DOG, NOTHING = 0, 1, 2
LABELS = ["cat", "dog", "(nothing)"]
BOX = [0.1, 0.2, 0.6, 0.8]
# Of each row: true label, predicted label with confidence, further values.
ROWS = [
    ("cat", ("cat", 0.9), {"score": 0.9, "correct": True}),
    ("cat", ("dog", 0.4), {"score": 0.0, "correct": False}),
    ("dog", None, {"score": 0.1, "correct": False, "prediction": " "}),
    ("dog", ("dog", 0.7), {"score": 0.8, "correct": True, "dropped": {"loc_count": 1}}),
]
CELLS = [[(CAT, CAT)], [(CAT, DOG)], [(DOG, NOTHING)], [(DOG, DOG)]]
COUNTS = [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
SHOWN = "return [...document.querySelectorAll('.card:not([hidden])')].map(c => c.dataset.index)"


def make_row(index, image, truth, predicted, values):
    sure = [dict(zip(("label", "score"), predicted, strict=True))] if predicted else []
    return {
        **{"index": index, "source": f"v.jsonl:{index}", "images": [image], "logp": -float(index)},
        **{"prefix": "detect unicorn", "suffix": f"a {truth} is there", "dropped": {}},
        **{"prediction": f"answer {index}", "truths": [{"box_yxyx": BOX, "label": truth}]},
        **{"detections": [{"box_yxyx": BOX, **one} for one in sure], "matched": 0},
        **values,
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    Image.new("RGB", (300, 200), "skyblue").save(folder / "a.png")
    rows = [make_row(n, str(folder / "a.png"), *row) for n, row in enumerate(ROWS)]
    history = [{"step": n, "loss": 2 / n, "v/loss": 3 / n, "v/map50": 0.5} for n in (1, 2, 3, 4)]
    history = [{**row, **{f"v/score_{n}": 1.0 for n in range(9)}} for row in history]
    gallery.write(
        folder / "report.html",
        rows,
        lead=gallery.Lead(
            "a run with a name that is as long as those of a sweep: lr=0.001,input.batch_size=8",
            diagnosis.Diagnosis("fair", "bad", "Classes mixed up: “cat” and “dog”."),
            (("data", "data/a/long/path/to/_annotations.valid.jsonl, 4 examples"),),
            (("sweep", "../sweep.html"),),
        ),
        scores={
            **{"map50": 0.5, "loss": 0.75, "a": 1, "b": 2, "c": 3, "d": 4},
            **{"confusion": {"labels": LABELS, "counts": COUNTS}},
            **{"per_class": {"cat": {"map50": 0.5}}, "dropped": {"loc_count": 1}},
            "pr_curves": {"cat": [1.0, 0.5, 0.0], "dog": [1.0, 1.0, 0.0]},
        },
        cells=CELLS,
        history=gallery.History(history, {"": "train.jsonl", "v": "v.jsonl"}, "v.jsonl"),
    )
    return folder / "report.html"


@pytest.fixture(scope="module")
def opened():
    with browser.opened() as made:
        yield made


@pytest.fixture
def window(opened, page):
    opened.resize(1400)
    opened.prefer("light")
    opened.open(page)
    yield opened
    assert opened.logged() == []


def shown(window):
    return window.run(SHOWN)


def change(window, selector, value, event="change"):
    """Sets a control as a person's choice does."""
    window.run(
        "const c = document.querySelector(arguments[0]); c.value = arguments[1];"
        "c.dispatchEvent(new Event(arguments[2]));",
        *(selector, value, event),
    )


def test_buttons_choose_examples_and_say_how_many(window):
    assert shown(window) == ["1", "2", "3", "0"]
    for name, expected in (("wrong", ["1", "2"]), ("invalid", ["3"]), ("empty", ["2"])):
        window.click(f"button[data-filter={name}]")
        assert shown(window) == expected
        assert window.run("return document.querySelector('#count').textContent") == (
            f"{len(expected)} shown"
        )
        pressed = "return document.querySelectorAll('[data-filter][aria-pressed=true]').length"
        assert window.run(pressed) == 1
    window.click("button[data-filter=all]")
    assert len(shown(window)) == 4


def test_a_cell_of_the_confusion_matrix_shows_its_examples_and_shows_all_when_clicked_again(window):
    for cell, expected in (("0:1", ["1"]), ("1:2", ["2"]), ("0:0", ["0"])):
        window.click(f"button[data-cell='{cell}']")
        assert shown(window) == expected
        top = window.run("return document.querySelector('#examples').getBoundingClientRect().top")
        assert top < 900
    window.click("button[data-cell='0:0']")
    assert len(shown(window)) == 4


def test_classes_of_truth_and_prediction_choose_and_one_button_shows_all(window):
    assert not window.run("return document.querySelector('#reset').checkVisibility()")
    change(window, "select[data-side=truth]", str(DOG))
    assert shown(window) == ["2", "3"]
    change(window, "select[data-side=prediction]", str(DOG))
    assert shown(window) == ["3"]
    change(window, "select[data-side=truth]", "")
    assert shown(window) == ["1", "3"]
    window.click("#reset")
    assert len(shown(window)) == 4
    assert not window.run("return document.querySelector('#reset').checkVisibility()")


def test_words_are_looked_for_in_answers_and_not_in_prompts(window):
    window.type("#search", "DOG is")
    assert shown(window) == ["2", "3"]
    window.click("#reset")
    window.type("#search", "answer 1")
    assert shown(window) == ["1"]
    window.click("#reset")
    window.type("#search", "unicorn")
    assert shown(window) == []
    assert window.run("return document.querySelector('#nothing').checkVisibility()")


def test_examples_are_ordered_as_chosen(window):
    for order, expected in (
        *(("score:-1", ["0", "3", "2", "1"]), ("logp:1", ["3", "2", "1", "0"])),
        *(("index:1", ["0", "1", "2", "3"]), ("score:1", ["1", "2", "3", "0"])),
    ):
        change(window, "#sort", order)
        assert shown(window) == expected


def test_layers_are_switched_off_and_on(window):
    visible = (
        "const box = document.querySelector('.card .' + arguments[0] + ' rect');"
        "return box.getBoundingClientRect().width > 0"
    )
    for layer in ("truth", "prediction"):
        assert window.run(visible, layer)
        window.click(f"input[data-hides=no-{layer}]")
        assert not window.run(visible, layer)
        window.click(f"input[data-hides=no-{layer}]")
        assert window.run(visible, layer)


def test_the_slider_hides_boxes_that_are_less_sure(window):
    count = (
        "return [...document.querySelectorAll('.prediction rect')]"
        ".filter(box => box.getBoundingClientRect().width > 0).length"
    )
    assert window.run(count) == 3
    for least, expected in (("0.5", 2), ("0.8", 1), ("1", 0), ("0", 3)):
        change(window, "#confidence", least, "input")
        assert window.run(count) == expected
    assert window.run("return document.querySelector('#least').textContent") == "0.00"


def test_a_picture_opens_grows_and_makes_way_for_the_next(window):
    width = "return document.querySelector('#zoom .picture').getBoundingClientRect().width"
    caption = "return document.querySelectorAll('#zoom rect').length"
    window.click(".card:first-child .picture")
    fitting = window.run(width)
    assert fitting > 900 and window.run(caption) == 2
    window.click("#zoom [data-scale='1.25']")
    assert window.run(width) == pytest.approx(1.25 * fitting, abs=2)
    middle = (
        "const s = document.querySelector('#zoom .stage');"
        "return [s.scrollLeft + s.clientWidth / 2 - s.scrollWidth / 2, s.scrollLeft]"
    )
    aside, scrolled = window.run(middle)
    assert abs(aside) < 2 and scrolled > 50
    window.click("#zoom [data-scale='0.8']")
    assert window.run(width) == pytest.approx(fitting, abs=2)
    window.click("#zoom [data-step='1']")
    assert window.run(caption) == 1  # nothing was predicted there
    window.click("#zoom [data-step='-1']")
    assert window.run(caption) == 2
    window.click("#close")
    assert not window.run("return document.querySelector('#zoom').open")


def test_folded_parts_unfold(window):
    folded = "return document.querySelectorAll('details').length"
    assert window.run(folded) == 3  # scores, a second table, more curves
    for number in range(3):
        one = f"const d = document.querySelectorAll('details')[{number}];"
        assert not window.run(f"{one} return d.lastElementChild.checkVisibility()")
        window.run(f"{one} d.querySelector('summary').click()")
        assert window.run(f"{one} return d.lastElementChild.checkVisibility()")


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_no_width_needs_scrolling_to_the_side(window, width):
    window.resize(width)
    window.run("for (const d of document.querySelectorAll('details')) d.open = true")
    assert window.run("return document.documentElement.scrollWidth") <= width
    assert window.run("return document.querySelector('.picture').clientWidth") >= 250


def test_curves_have_the_colours_that_the_reader_prefers(window):
    ink = (
        "const svg = document.querySelectorAll('.plot')[1];"
        "return [getComputedStyle(svg.querySelector('path')).stroke,"
        "getComputedStyle(svg.querySelector('text')).fill,"
        "getComputedStyle(document.body).backgroundColor]"
    )
    light = window.run(ink)
    window.prefer("dark")
    dark = window.run(ink)
    assert all(one != other for one, other in zip(light, dark, strict=True))
