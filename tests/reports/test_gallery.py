import base64
import html.parser
import re

import numpy as np
import pytest
from PIL import Image

from paligemma_jax.reports import diagnosis, gallery
from paligemma_jax.reports import page as page_lib

EVIL = "<script>alert('x')</script> \"&"


class Page(html.parser.HTMLParser):
    """Every start tag with its attributes, and the text; unbalanced tags fail."""

    void = frozenset({"meta", "img", "input", "br", "link"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def named(self, tag, **attrs):
        return [a for t, a in self.tags if t == tag and attrs.items() <= a.items()]

    @property
    def cards(self):
        return self.named("article")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.full((20, 40, 3), 90, np.uint8)).save(path)
    return str(path)


def box_row(index, picture, *, score=1.0, dropped=None, detections=1, **changes):
    box = {"box_yxyx": [0.1, 0.2, 0.5, 0.8], "label": "cat"}
    return {
        **{"index": index, "source": f"val.jsonl:{index + 1}", "images": [picture], "logp": -1.0},
        **{"prefix": "detect cat", "suffix": "truth text", "prediction": "predicted text"},
        **{"score": score, "correct": score == 1, "matched": int(score), "dropped": dropped or {}},
        **{"truths": [box], "detections": [{**box, "score": 0.75}] * detections, "mean_iou": None},
        **changes,
    }


def text_row(index, **changes):
    return {
        **{"index": index, "source": f"val.jsonl:{index + 1}", "images": [], "prefix": "why?"},
        **{"suffix": "so", "prediction": "so", "score": 1.0, "correct": True},
        **changes,
    }


def write(path, rows, **arguments):
    arguments = {"lead": gallery.Lead("a run"), **arguments}
    gallery.write(path / "report.html", rows, **arguments)
    return Page((path / "report.html").read_text(encoding="utf-8"))


def test_truth_and_prediction_are_drawn_in_percent_of_the_picture(tmp_path, picture):
    page = write(tmp_path, [box_row(0, picture)])
    assert len(page.named("rect", x="20.000%", y="10.000%", width="60.000%", height="40.000%")) == 2
    assert len(page.named("g", **{"class": "truth"})) == 1
    assert "cat 0.75" in page.text and "truth text" in page.text and "detect cat" in page.text


def test_a_card_names_its_line_and_keeps_the_folder_for_a_pointer(tmp_path):
    page = write(tmp_path, [text_row(0, source="/data/of mine/val.jsonl:7")])
    assert "val.jsonl:7" in page.text and "/data/of mine" not in page.text
    assert page.named("span", title="/data/of mine/val.jsonl:7")


def test_an_empty_plot_says_why_it_is_empty(tmp_path, picture):
    row, said = box_row(0, picture, score=0.0, detections=0), "no prediction is right yet"
    page = write(tmp_path, [row], scores={"pr_curves": {"cat": [0.0, 0.0, 0.0]}})
    assert said in page.text
    page = write(tmp_path, [row], scores={"pr_curves": {"cat": [1.0, 0.5, 0.0]}})
    assert said not in page.text


def test_masks_are_stretched_to_their_boxes(tmp_path, picture):
    mask = base64.b64encode(np.packbits(np.eye(64, dtype=bool)).tobytes()).decode()
    box = {"box_yxyx": [0.1, 0.2, 0.5, 0.8], "label": "cat", "mask": mask}
    page = write(tmp_path, [box_row(0, picture, truths=[box])])
    (image,) = page.named("image", x="20.000%", y="10.000%", width="60.000%", height="40.000%")
    assert image["href"].startswith("data:image/png;base64,")


def test_the_page_needs_nothing_but_itself(tmp_path, picture):
    history = gallery.History([{"step": step, "loss": 1 / step} for step in (1, 2, 3)])
    lead = gallery.Lead("a run", links=(("sweep", "../sweep.html"),))
    page = write(tmp_path, [box_row(0, picture)], lead=lead, history=history, scores={"map50": 0.5})
    sources = [a["src"] for tag, a in page.tags if "src" in a]
    assert len(sources) == 1 and all(source.startswith("data:image/") for source in sources)
    assert [a["href"] for _, a in page.tags if "href" in a] == ["../sweep.html"]
    assert not page.named("link")
    assert "http" not in re.sub(r"base64,[^\"]*", "", (tmp_path / "report.html").read_text())


def test_leading_scores_are_tiles_and_all_of_them_have_words_and_a_meaning(tmp_path):
    words = page_lib.Words(("map50",), {"map50": "mAP 50"}, {"map50": "AP & so on"})
    page = write(tmp_path, [text_row(0)], scores={"some_count": 1, "map50": 0.5}, words=words)
    (tile,) = [attrs for attrs in page.named("div") if "title" in attrs]
    assert tile["title"] == "AP & so on"
    assert "mAP 50" in page.text and "some count" in page.text and "map50" not in page.text


def test_without_words_the_first_five_scores_lead(tmp_path):
    page = write(tmp_path, [text_row(0)], scores={f"score_{n}": n / 10 for n in range(8)})
    tiles = [attrs["title"] for attrs in page.named("div") if "title" in attrs]
    assert tiles == [f"score {n}" for n in range(5)]
    assert "score 7" in page.text


def test_the_verdict_and_the_facts_stand_before_the_examples(tmp_path):
    verdict = diagnosis.Diagnosis("overfitted", "bad", "Overfitted: <b>")
    page = write(
        tmp_path, [text_row(0)], lead=gallery.Lead("a run", verdict, (("weights", "w.npz"),))
    )
    assert page.named("p", **{"class": "diagnosis bad"})
    places = [
        page.text.index(text) for text in ("Overfitted: <b>", "w.npz", "The one example", "why?")
    ]
    assert places == sorted(places)


def test_the_worst_come_first_and_the_count_is_told(tmp_path, picture):
    scores = [0.5, None, 1.0, 0.0]
    rows = [box_row(i, picture, score=s or 0, correct=None) for i, s in enumerate(scores)]
    rows = [{**row, "score": score} for row, score in zip(rows, scores, strict=True)]
    page = write(tmp_path, rows)
    assert [card["data-index"] for card in page.cards] == ["3", "0", "2", "1"]
    assert "All 4 examples" in page.text
    page = write(tmp_path, rows, limit=2)
    assert [card["data-index"] for card in page.cards] == ["3", "0"]
    assert "The 2 worst of 4 examples" in page.text


def test_filters_know_wrong_invalid_and_empty(tmp_path, picture):
    rows = [
        box_row(0, picture),
        box_row(1, picture, score=0.0),
        box_row(2, picture, dropped={"loc_count": 2}),
        box_row(3, picture, score=0.0, detections=0),
        text_row(4),
        text_row(5, prediction=" ", score=0.0, correct=False),
        text_row(6, suffix=None, score=None, correct=None),
    ]
    page = write(tmp_path, rows)
    flags = {card["data-index"]: card["data-flags"] for card in page.cards}
    assert flags == {
        **{"0": "", "1": "wrong", "2": "invalid", "3": "wrong empty"},
        **{"4": "", "5": "wrong empty", "6": ""},
    }
    assert "all (7)" in page.text and "wrong (3)" in page.text and "loc_count × 2" in page.text


def test_whatever_a_model_writes_stays_text(tmp_path, picture):
    row = box_row(0, picture, prefix=EVIL, suffix=EVIL, prediction=EVIL, source=EVIL)
    row["detections"][0]["label"] = row["truths"][0]["label"] = EVIL
    row["dropped"] = {EVIL: 1}
    scores = {
        "map": float("nan"),
        "per_class": {EVIL: {EVIL: 1.0}},
        "unknown_labels": {EVIL: 3},
        "confusion": {"labels": [EVIL], "counts": [[1]]},
    }
    lead = gallery.Lead(EVIL, diagnosis.Diagnosis("x", "bad", EVIL), ((EVIL, EVIL),), ((EVIL, ""),))
    page = write(
        tmp_path,
        [row, text_row(1, images=[EVIL])],
        lead=lead,
        scores=scores,
        cells=[[(0, 0)], []],
        classes=[EVIL],
        history=gallery.History([{"step": 1, "loss": 2.0, EVIL: 1.0}], {"": EVIL}, EVIL),
    )
    text = (tmp_path / "report.html").read_text()
    assert len(page.named("script")) == 1 and "<script>alert" not in text
    assert page.text.count(EVIL) > 18


def test_a_picture_that_cannot_be_read_does_not_cost_the_report(tmp_path, picture):
    page = write(tmp_path, [box_row(0, str(tmp_path / "gone.png")), box_row(1, picture)])
    assert len(page.cards) == 2 and len(page.named("img")) == 1
    assert "gone.png cannot be read: FileNotFoundError" in page.text


def test_every_picture_of_an_example_is_shown_boxes_on_the_first(tmp_path, picture):
    page = write(tmp_path, [box_row(0, picture, images=[picture, picture])])
    assert len(page.named("img")) == 2 and len(page.named("rect")) == 2


def test_scores_are_tables_and_the_confusion_matrix_is_one(tmp_path):
    scores = {
        **{"map50": 0.51239, "num_images": 1200, "map75": float("nan")},
        "per_class": {"cat": {"map50": 0.25, "num_truths": 7}},
        "confusion": {"labels": ["cat", "(nothing)"], "counts": [[6, 1], [0, 0]]},
    }
    page = write(tmp_path, [text_row(0)], scores=scores)
    for text in ("0.512", "1,200", "–", "0.250", "(nothing)", "truth at the left"):
        assert text in page.text
    assert len(page.named("table")) == 3  # all scores, too


def test_cells_of_the_confusion_matrix_share_one_scale(tmp_path):
    scores = {"confusion": {"labels": ["cat", "dog"], "counts": [[100, 0], [4, 1]]}}
    page = write(tmp_path, [text_row(0)], scores=scores, cells=[[(0, 0)]])
    shades = {a["style"]: a["class"] for a in page.named("td") if "style" in a}
    assert shades == {"--shade:75%": "right", "--shade:15%": "mixed", "--shade:8%": "right"}
    assert [a["data-cell"] for a in page.named("button") if "data-cell" in a] == [
        "0:0",
        "1:0",
        "1:1",
    ]


def test_without_cells_a_matrix_has_no_buttons(tmp_path):
    scores = {"confusion": {"labels": ["cat"], "counts": [[3]]}}
    page = write(tmp_path, [text_row(0)], scores=scores)
    assert not [a for a in page.named("button") if "data-cell" in a] and page.named("table")


def test_examples_can_be_chosen_by_the_classes_that_there_are(tmp_path, picture):
    labels = ["cat", "dog", "(nothing)"]
    scores = {"confusion": {"labels": labels, "counts": [[0, 1, 1], [0, 0, 0], [0, 0, 0]]}}
    page = write(tmp_path, [box_row(0, picture)], scores=scores, cells=[[(0, 1), (0, 2), (0, 1)]])
    assert page.cards[0]["data-cells"] == "0:1 0:2"
    assert "truth: cat" in page.text and "prediction: dog" in page.text
    assert "truth: dog" not in page.text and "prediction: cat" not in page.text


def test_precision_recall_curves_are_drawn_and_are_no_table(tmp_path):
    curves = {"cat": [1.0, 0.5, 0.0], "$dog_$": [1.0, 1.0, 1.0], "gone": []}
    scores = {"map50": 0.5, "pr_curves": curves}
    page = write(tmp_path, [text_row(0)], scores=scores, history=gallery.History(of="test.jsonl"))
    (drawn,) = page.named("svg", role="img")
    assert drawn["aria-label"] == "curves of precision over recall of test.jsonl, IoU 0.5"
    assert len(page.named("table")) == 1 and "$dog_$" in page.text and "gone" not in page.text


def test_curves_say_which_data_they_are_of(tmp_path):
    rows = [{"step": step, "loss": 1.0, "valid/loss": 2.0, "valid/map": 0.5} for step in (1, 2)]
    sources = {"": "train.jsonl", "valid": "v.jsonl"}
    page = write(tmp_path, [text_row(0)], history=gallery.History(rows, sources, "v.jsonl"))
    assert page.text.count("training (train.jsonl)") == 1
    assert page.text.count("valid (v.jsonl)") == 2
    assert "none of them" not in page.text
    page = write(tmp_path, [text_row(0)], history=gallery.History(rows, sources, "test.jsonl"))
    assert "Curves over steps are of the training run; none of them is of test.jsonl." in page.text


def test_a_class_has_one_colour_whichever_rows_show_it(tmp_path, picture):
    classes = ["cat", "dog", "eel"]
    pages = [
        write(tmp_path, [box_row(0, picture), *more], classes=classes)
        for more in ([], [box_row(1, picture, truths=[], detections=0)])
    ]
    strokes = [{a["stroke"] for a in page.named("rect")} for page in pages]
    assert strokes[0] == strokes[1] and len(strokes[0]) == 2
    expected = gallery.drawing.choose_colors(classes)["cat"]
    assert expected in strokes[0]


def test_letters_that_steer_a_text_are_shown_as_their_code(tmp_path, picture):
    row = box_row(0, picture, prediction="a\u202eb\x1b\x00")
    row["detections"][0]["label"] = "cat\u2066"
    page = write(tmp_path, [row])
    assert "a\\u202eb\\u001b\\u0000" in page.text and "cat\\u2066 0.75" in page.text
    text = (tmp_path / "report.html").read_text()
    assert not set(text) & {"\u202e", "\x1b", "\x00", "\u2066"}


def test_a_page_of_many_pictures_stays_light(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(gallery, "MAX_PICTURE_BYTES", 1)
    page = write(tmp_path, [box_row(0, picture), box_row(1, picture)])
    assert len(page.named("img")) == 1 and len(page.cards) == 2
    assert "picture.png: the pictures above fill the 0 MB of a page" in page.text


def test_answers_that_were_cut_off_can_be_found(tmp_path):
    page = write(tmp_path, [text_row(0, stopped=False), text_row(1, stopped=True)])
    assert [card["data-flags"] for card in page.cards] == ["cut-off", ""]
    assert "cut off (1)" in page.text
    assert "cut off" not in write(tmp_path, [text_row(1, stopped=True)]).text


def test_what_the_script_uses_is_on_the_page_and_has_a_name(tmp_path, picture):
    page = write(tmp_path, [box_row(0, picture)])
    script = (page_lib.TEMPLATES / "gallery.js").read_text()
    assert script.strip() in (tmp_path / "report.html").read_text()
    used = set(re.findall(r"one\('#(\w+)'\)", script))
    assert {"search", "count", "sort", "confidence", "zoom"} < used
    for name in used:
        assert [attrs for _, attrs in page.tags if attrs.get("id") == name]
    for tag in ("input", "select"):
        named = [a for a in page.named(tag) if a.get("type") != "checkbox"]
        assert named and all(attrs.get("aria-label") for attrs in named)


def test_no_rows_make_a_page_too(tmp_path):
    assert "All 0 examples" in write(tmp_path, []).text
