"""The page's modules: what they compute, in node, and how they are written."""

import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from paligemma_jax.data import objects
from paligemma_jax.labelling import label_server, page_settings
from paligemma_jax.tasks import text_metrics

PAGE = label_server.PAGE
MODULES = sorted(PAGE.glob("*.js"))
PURE = ("geometry.js", "answers.js")  # those that need no browser


@pytest.fixture
def evaluate(tmp_path):
    """Returns a function that gives what JavaScript of the pure modules gives."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    for name in PURE:
        shutil.copy(PAGE / name, tmp_path / name)
    (tmp_path / "package.json").write_text('{"type": "module"}')

    def evaluate(body: str, **values):
        lines = [f"import * as {pathlib.Path(name).stem} from './{name}';" for name in PURE]
        lines += [f"const {name} = {json.dumps(value)};" for name, value in values.items()]
        lines += [f"const result = (() => {{ {body} }})();", "console.log(JSON.stringify(result));"]
        (tmp_path / "run.js").write_text("\n".join(lines))
        done = subprocess.run(
            [node, "run.js"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return evaluate


def test_masks_are_written_and_read_as_pycocotools_does(evaluate):
    rng = np.random.default_rng(0)
    masks = [rng.random((7, 11)) < share for share in (0.0, 0.2, 0.5, 1.0)]
    ring = np.hypot(*np.mgrid[-40:40, -60:60]) < 37
    masks += [ring, ring & ~(np.hypot(*np.mgrid[-40:40, -60:60]) < 20)]
    given = [{"shape": mask.shape, "pixels": mask.astype(int).ravel().tolist()} for mask in masks]
    written = evaluate(
        "return given.map(({shape: [h, w], pixels}) => {"
        "  const made = geometry.encodeMask(Uint8Array.from(pixels), w, h);"
        "  return {...made, again: [...geometry.decodeMask(made)], box: geometry.maskBox("
        "    Uint8Array.from(pixels), w, h)}; });",
        given=given,
    )
    for mask, made in zip(masks, written, strict=True):
        assert made["counts"] == objects.encode_bitmap(mask)
        assert made["again"] == mask.astype(int).ravel().tolist()
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if mask.any() else None
        assert made["box"] == box


def test_boxes_stay_inside_the_image(evaluate):
    assert evaluate("return geometry.boxOf(50, 60, -10, 20, 100, 40);") == [0, 20, 50, 40]
    moved = evaluate("return geometry.moveBox([10, 10, 30, 20], -50, 5, 100, 22);")
    assert moved == [0, 12, 20, 22]
    turned = evaluate("return geometry.resizeBox([10, 10, 30, 20], 'e', 5, 0, 100, 100);")
    assert turned == [5, 10, 10, 20]
    resized = evaluate("return geometry.resizeBox([10, 10, 30, 20], 'nw', 2, 3, 100, 100);")
    assert resized == [2, 3, 30, 20]


def test_what_a_point_hits(evaluate):
    boxes = [{"box": [0, 0, 100, 100]}, {"box": [40, 40, 60, 60]}]
    hits = evaluate(
        "return [[50, 50], [5, 5], [150, 5]].map(([x, y]) => geometry.objectAt(boxes, x, y));",
        boxes=boxes,
    )
    assert hits == [1, 0, -1]
    handles = evaluate(
        "return [[101, 99], [50, -2], [50, 50]].map(([x, y]) =>"
        " geometry.handleAt([0, 0, 100, 100], x, y, 5));"
    )
    assert handles == ["se", "n", None]


def test_vertices_are_moved_added_and_removed(evaluate):
    square = [[0, 0, 10, 0, 10, 10, 0, 10]]
    assert evaluate("return geometry.insertVertex(p, 5, 1, 2);", p=square) == [
        [0, 0, 5, 1, 10, 0, 10, 10, 0, 10]
    ]
    assert evaluate("return geometry.insertVertex(p, 5, 5, 2);", p=square) is None
    assert evaluate("return geometry.removeVertex(p, [0, 1]);", p=square) == [[0, 0, 10, 10, 0, 10]]
    assert evaluate("return geometry.removeVertex([[0, 0, 1, 0, 1, 1]], [0, 1]);") is None
    moved = evaluate("return geometry.moveVertex(p, [0, 2], 99, 9, 50, 50);", p=square)
    assert moved == [[0, 0, 10, 0, 50, 9, 0, 10]]
    assert evaluate("return geometry.vertexAt(p, 9, 1, 2);", p=square) == [0, 1]


def test_a_mask_moves_with_its_box(evaluate):
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:4] = True
    runs = {"size": [6, 8], "counts": objects.encode_bitmap(mask)}
    moved = evaluate(
        "return geometry.moveObject(o, 2, 1, 8, 6);",
        o={"label": "a", "box": [2, 1, 4, 3], "segmentation": runs},
    )
    assert moved["box"] == [4, 2, 6, 4]
    drawn = objects.bitmap(moved["segmentation"]["counts"], width=8, height=6)
    assert (drawn == np.roll(mask, (1, 2), (0, 1))).all()


def test_a_stroke_is_as_wide_as_the_brush(evaluate):
    rows = evaluate(
        "const mask = new Uint8Array(40 * 20);"
        "geometry.paintStroke(mask, 40, 20, [10, 10], [30, 10], 4, 1);"
        "return geometry.maskBox(mask, 40, 20);"
    )
    assert rows == [6, 6, 34, 14]


PAIRS = [["fall", "start"], ["cry", "end"], ["fall", "2"]]


@pytest.mark.parametrize("name", page_settings.FORMATS)
def test_events_are_read_back_by_their_score(evaluate, name):
    texts = evaluate(
        "return [all, all.slice(0, 1), []].map(pairs => answers.eventsText(pairs, name));",
        all=PAIRS,
        name=name,
    )
    score = text_metrics.event_f1 if name == "words" else text_metrics.event_phase_f1
    whole = "fall: start; cry: end; fall: 2"
    assert score(texts[0].replace(", ", "\n") if name == "words" else texts[0], [whole]) == 1
    assert score(texts[1], ["fall: start"]) == 1
    assert texts[2] and score(texts[2], ["fall: start"]) == 0


def test_a_pair_that_is_there_is_taken_away(evaluate):
    pairs = evaluate("return answers.togglePair(p, 'fall', '2');", p=PAIRS)
    assert pairs == PAIRS[:2]
    assert evaluate("return answers.togglePair(p, 'cry', '2');", p=PAIRS) == [*PAIRS, ["cry", "2"]]


def test_counts_are_worded_as_an_import_does(evaluate):
    text = evaluate("return answers.countsText({dog: 1, cat: 2, bird: 0}, ['cat', 'dog', 'bird']);")
    assert text == json.dumps({"cat": 2, "dog": 1}, indent=2)
    read = evaluate(
        "return ['{\"cat\": 2}', 'two', '[1]', '{\"a\": 1.5}'].map(answers.readCounts);"
    )
    assert read == [{"cat": 2}, {}, {}, {}]


def item(key, status=0, by="", labels=(), text="", name=None):
    return [key, name or key, status, by, 1, list(labels), text]


ITEMS = [
    item("a", 2, "ann", ["cat"], name="10.png"),
    item("b", 0, name="9.png"),
    item("c", 1, "bob", text="Two dogs"),
    item("d", 2, "bob"),
]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"status": "any", "by": "", "words": ""}, "abcd"),
        ({"status": "2", "by": "", "words": ""}, "ad"),
        ({"status": "any", "by": "bob", "words": ""}, "cd"),
        ({"status": "any", "by": "", "words": "DOGS two"}, "c"),
        ({"status": "any", "by": "", "words": "cat 10"}, "a"),
    ],
)
def test_images_are_chosen(evaluate, asked, expected):
    shown = evaluate("return answers.choose(items, asked);", items=ITEMS, asked=asked)
    assert "".join(one[0] for one in shown) == expected


def test_images_are_ordered_and_the_doubtful_come_first(evaluate):
    numbers = {"b": {"doubt": 0.2}, "d": {"doubt": 0.9}}
    orders = evaluate(
        "return ['data', 'name', 'doubt'].map(how => answers.order(items, how, numbers)"
        ".map(one => one[0]).join(''));",
        items=ITEMS,
        numbers=numbers,
    )
    assert orders == ["abcd", "bacd", "dbac"]


def test_the_next_without_a_label_is_around_the_corner(evaluate):
    places = evaluate(
        "return [answers.nextUnlabelled(items, 0), answers.nextUnlabelled(items, 1),"
        "answers.nextUnlabelled(items, 3), answers.nextUnlabelled(items, 3, new Set(['b'])),"
        "answers.nextUnlabelled([items[0]], 0)];",
        items=ITEMS,
    )
    assert places == [1, 2, 1, 2, -1]
    told = evaluate("return answers.progress(items);", items=ITEMS)
    assert told == {"done": 2, "begun": 1, "total": 4, "people": [["ann", 1], ["bob", 1]]}


# How the modules are written: what a linter would say that needs no package.

FORBIDDEN = {
    r"\b(?:inner|outer)HTML\b|insertAdjacentHTML|document\.write": "text would become HTML",
    r"\beval\(|new Function\(|setTimeout\(['\"]": "text would become code",
    r"https?://(?!www\.w3\.org/2000/svg)": "asks another server",
    r"\bvar\b": "write const or let",
    r"[^=!]==[^=]|!=[^=]": "write === or !==",
    r"\bconsole\.|\bdebugger\b|\balert\(": "left from debugging",
}


def without_texts(source):
    """Returns source without comments and what is in quotes, line by line."""
    source = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), source, flags=re.DOTALL)
    source = re.sub(r"[ \t]*(?<![:'\"])//.*", "", source)
    return re.sub(r"'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"", "''", source)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_modules_hold_nothing_that_is_forbidden(module):
    source = module.read_text()
    problems = [
        f"{module.name}:{number}: {why}"
        for number, line in enumerate(without_texts(source).splitlines(), 1)
        for pattern, why in FORBIDDEN.items()
        if re.search(pattern, line)
    ]
    assert problems == []
    assert re.findall(r"(?m)^.*(?:[ \t]$|\t).*$", source) == []  # blanks at the end, tabs


@pytest.mark.parametrize(
    "line",
    ["a.innerHTML = b;", "if (a == b) c();", "var a = 1;", "eval(a);", "console.log(a);", "a != b"],
)
def test_what_is_forbidden_is_noticed(line):
    assert any(re.search(pattern, line) for pattern in FORBIDDEN)


IMPORT = re.compile(r"^import (?:\* as (\w+)|\{([^}]*)\}) from '\./([\w.]+)';", re.MULTILINE)
EXPORT = re.compile(
    r"^export (?:async )?(?:const|class|function) (?:\[([^\]]*)\]|(\w+))", re.MULTILINE
)


def exported(module):
    groups = EXPORT.findall(module.read_text())
    return {name.strip() for many, single in groups for name in (many or single).split(",")}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_what_a_module_imports_is_there_and_used(module):
    source = module.read_text()
    body = IMPORT.sub("", source)
    assert len(IMPORT.findall(source)) == source.count("\nimport ") + source.startswith("import ")
    for whole, names, other in IMPORT.findall(source):
        there = exported(PAGE / other)
        for name in [whole] if whole else [name.strip() for name in names.split(",")]:
            assert whole or name in there, f"{other} exports no {name}"
            assert re.search(rf"\b{name}\b", body), f"{module.name}: {name} is not used"


def test_what_scripts_look_for_is_on_the_page():
    page = (PAGE / "page.html").read_text()
    ids = set(re.findall(r' id="([\w-]+)"', page))
    asked = {
        name
        for module in MODULES
        for name in re.findall(r"one\('#([\w-]+)[' ]", module.read_text())
    }
    assert asked - ids == set() and len(asked) > 40


@pytest.mark.parametrize("name", ["page.html", "login.html"])
def test_pages_hold_no_script_and_no_style_of_their_own(name):
    page = (PAGE / name).read_text()
    assert not re.search(r"\son\w+=|style=|<style|<script(?! type=\"module\" src=)", page)
    assert not re.search(r"https?://", page)
