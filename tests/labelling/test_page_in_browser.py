"""The labelling page in a real browser: drawn, edited, taken back, kept, and shared."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from paligemma_jax.labelling import row_store
from tests.labelling.conftest import browser

NAME = "localStorage.setItem('labeller', arguments[0])"
OPEN = "return document.body.dataset.shown"
SAVED = "return document.querySelector('#state').textContent === 'saved'"
# A page that hears nothing of what others do.
DEAF = """
const asked = window.fetch;
const never = new Promise(() => {});
window.fetch = (path, ...more) => String(path).includes('changes') ? never : asked(path, ...more);
"""
WHERE = "return document.querySelector('#where').textContent"


class Page:
    """The page of one labeller."""

    def __init__(self, window, address, store=None, by="ann"):
        self.window, self.address, self.store = window, address, store
        window.go(f"{address}style.css")
        window.run(NAME, by)
        self.load()

    def load(self):
        self.window.go(self.address)
        self.window.wait(OPEN)
        self.window.wait("return document.querySelector('.sheet .picture')?.naturalWidth > 0")

    def at(self, x, y):
        """Returns where a pixel of the image is on the page."""
        script = "const r = document.querySelector('.sheet').getBoundingClientRect();"
        left, top, width, height = self.window.run(
            f"{script} return [r.left, r.top, r.width, r.height]"
        )
        size = self.window.run("const i = document.querySelector('.sheet .picture');"
                               "return [i.naturalWidth, i.naturalHeight]")  # fmt: skip
        return left + x / size[0] * width, top + y / size[1] * height

    def drag(self, *points, **options):
        self.window.drag([self.at(*point) for point in points], **options)

    def saved(self):
        self.window.wait(SAVED)
        self.store.flush()

    def row(self, number=0):
        self.saved()
        return self.store.items()[number].row

    def boxes(self, number=0):
        row = self.row(number) or {}
        return [(one["label"], [round(side) for side in one["box"]]) for one in row["objects"]]


@pytest.fixture
def page(make_images, serve, window):
    address, store = serve(make_images(3), classes="cat,dog")
    made = Page(window, address, store)
    yield made
    assert window.logged() == []


def near(boxes, expected):
    assert [label for label, _ in boxes] == [label for label, _ in expected]
    for (_, box), (_, other) in zip(boxes, expected, strict=True):
        assert box == pytest.approx(other, abs=1)


def test_boxes_are_drawn_edited_removed_and_taken_back(page, window):
    page.drag((20, 10), (80, 60))
    near(page.boxes(), [("cat", [20, 10, 80, 60])])
    window.press("2")  # the class of what is selected
    near(page.boxes(), [("dog", [20, 10, 80, 60])])
    page.drag((80, 60), (100, 90))  # its corner
    near(page.boxes(), [("dog", [20, 10, 100, 90])])
    page.drag((50, 30), (60, 35))  # all of it
    near(page.boxes(), [("dog", [30, 15, 110, 95])])
    page.drag((150, 20), (190, 40))
    near(page.boxes()[1:], [("dog", [150, 20, 190, 40])])
    assert page.row()["labelling"]["done"] is False
    window.press("Delete")
    near(page.boxes(), [("dog", [30, 15, 110, 95])])
    for expected in ([150, 20, 190, 40], None):
        window.press("ctrl+z")
        window.wait("return document.querySelectorAll('#objects button').length === arguments[0]",
                    2 if expected else 1)  # fmt: skip
    window.press("ctrl+y")
    window.wait("return document.querySelectorAll('#objects button').length === 2")
    window.press("Enter")
    window.wait(f"{WHERE}.startsWith('2 of 3')")
    row = page.row()
    assert row["prefix"] == "detect cat ; dog" and row["suffix"].count("<loc") == 8
    assert row["labelling"]["by"] == "ann" and row["labelling"]["done"] is True
    window.press("0")
    assert page.row(1)["suffix"] == "" and page.row(1)["labelling"]["done"] is True
    told = window.run("return document.querySelector('#progress span').textContent")
    assert told == "2 of 3 done"


def test_events_are_answered_by_two_keys_and_read_as_a_model_reads_them(
    make_images, serve, window, tmp_path
):
    templates = tmp_path / "events.json"
    events = {"events": ["fall", "cry"], "phases": ["start", "end"], "questions": ["which events?"]}
    templates.write_text(json.dumps(events))
    address, store = serve(make_images(2), task="vqa", templates=templates)
    page = Page(window, address, store)
    window.press("a", "1", "b", "2")
    page.saved()
    assert page.row()["suffix"] == "fall: start; cry: end"
    assert page.row()["prefix"] == "answer en which events?"
    window.press("b", "2")  # the same once more takes it away
    assert page.row()["suffix"] == "fall: start"
    window.wait("return document.querySelector('#reads p').textContent.includes('ends with eos')")
    pieces = "return [...document.querySelectorAll('.pieces .learnt')].map(p => p.textContent)"
    assert "fall" in "".join(window.run(pieces))
    window.press("Enter")
    window.wait(f"{WHERE}.startsWith('2 of 2')")
    assert page.row()["labelling"]["done"] is True
    window.press("i")
    window.type("#answer", "<img src=x onerror=alert(1)>")
    window.press("Enter")
    assert page.row(1)["suffix"] == "<img src=x onerror=alert(1)>"
    page.load()
    assert window.run("return document.querySelectorAll('img:not(.picture)').length") == 0


@pytest.mark.slow
def test_polygons_and_masks_are_drawn(make_images, serve, window):
    codec = "tiny_base/mask_codec.npz"
    folder = make_images(2)
    address, store = serve(folder, task="segmentation", classes="cat", mask_codec=codec)
    page = Page(window, address, store)
    window.press("p")
    for point in ((20, 10), (80, 10), (80, 60), (20, 10)):
        page.drag(point)
    outline = page.row()["objects"][0]["segmentation"]
    assert outline[0] == pytest.approx([20, 10, 80, 10, 80, 60], abs=1)
    window.press("Escape", "m")
    page.drag((120, 50), (160, 50))
    mask = page.row()["objects"][1]
    assert mask["segmentation"]["size"] == [100, 200]
    assert mask["box"] == pytest.approx([108, 38, 172, 62], abs=2)
    window.press("e")
    page.drag((170, 20), (170, 80))
    assert page.row()["objects"][1]["box"][2] == pytest.approx(158, abs=2)
    assert page.row()["suffix"].count("<seg") == 32
    window.press("Escape", "e", "b")
    page.drag((10, 70), (60, 95))  # a box in a task of masks is its own outline
    assert len(page.row()["objects"][2]["segmentation"][0]) == 8
    window.press("c")


@pytest.mark.slow
def test_two_labellers_see_each_other_and_a_conflict_loses_nothing(page, window):
    with browser.opened() as second:
        second.resize(1200, 800)
        bob = Page(second, page.address, page.store, by="bob")
        page.drag((20, 10), (80, 60))
        page.saved()
        second.wait("return document.querySelectorAll('#objects button').length === 1")
        second.run(DEAF)
        time.sleep(0.2)  # of an answer that is under way
        page.drag((100, 20), (150, 60))
        page.saved()
        bob.drag((20, 70), (60, 95))
        second.wait("return document.querySelector('#conflict').open")
        told = second.run("return document.querySelector('#conflict').textContent")
        assert "0.png: changed by ann meanwhile" in told
        second.click("#keep-mine")
        bob.saved()
        assert len(page.boxes()) == 2 and page.row()["labelling"]["by"] == "bob"
        assert second.run("return document.querySelector('#conflict').open") is False
    journal = (page.store.folder / ".labelling" / "journal.jsonl").read_text()
    assert '"refused"' in journal and journal.count("100") >= 1


@pytest.mark.slow
def test_many_images_get_one_answer_and_lose_it_at_once(make_images, serve, window):
    address, store = serve(make_images(5), task="vqa")
    Page(window, address, store)
    window.press("g")
    window.click("#tiles button:nth-child(2)")
    window.click("#tiles button:nth-child(4)")
    window.type("#many-answer", "two of them")
    window.click("#apply")
    window.wait("return document.querySelectorAll('#tiles .done').length === 2")
    texts = [(item.row or {}).get("suffix") for item in store.items()]
    assert texts == [None, "two of them", None, "two of them", None]
    window.press("ctrl+z")
    window.wait("return document.querySelectorAll('#tiles .done').length === 0")
    window.press("ctrl+a")
    assert window.run("return document.querySelector('#chosen').textContent") == "5 chosen"
    assert not any(item.is_labelled for item in store.items())


@pytest.mark.slow
def test_fingers_draw_and_two_of_them_zoom(page, window):
    window.resize(420, 900)
    page.load()
    page.drag((20, 10), (80, 60), kind="touch")
    near(page.boxes(), [("cat", [20, 10, 80, 60])])
    width = "return document.querySelector('.sheet').getBoundingClientRect().width"
    before = window.run(width)
    (x, y) = page.at(100, 50)
    window.drag([(x - 30, y), (x - 90, y)], [(x + 30, y), (x + 90, y)], kind="touch")
    assert window.run(width) > 2 * before
    assert len(page.boxes()) == 1
    assert window.run("return document.documentElement.scrollWidth") <= 420
    window.click("#nothing")
    window.wait(f"{WHERE}.startsWith('2 of 3')")
    assert page.boxes() == []


@pytest.mark.slow
def test_a_page_whose_server_was_killed_shows_all_when_it_is_started_again(make_images, window):
    folder = make_images(2)
    words = [sys.executable, "-m", "paligemma_jax.label", str(folder), "--classes", "cat"]

    def start():
        process = subprocess.Popen([*words, "--port", "0"], stderr=subprocess.PIPE, text=True)
        for line in process.stderr:
            if address := re.search(r"http://[\d.:]+/", line):
                return process, address[0]
        raise AssertionError("it did not start")

    process, address = start()
    page = Page(window, address)
    page.drag((20, 10), (80, 60))
    page.drag((100, 10), (150, 60))
    window.wait("return document.querySelectorAll('#reads .learnt').length > 10")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    window.wait("return document.querySelector('#state').textContent.includes('does not answer')")
    process, address = start()
    try:
        again = Page(window, address)
        count = "return document.querySelectorAll('#objects button').length"
        assert window.wait(count) == 2
        again.drag((20, 70), (60, 95))
        window.wait("return document.querySelectorAll('#objects button').length === 3")
        window.wait(SAVED)
    finally:
        process.terminate()
        said = process.stderr.read()
        assert process.wait() == 0
        process.stderr.close()
    assert "holds all changes" in said
    (row,) = map(json.loads, (folder / "labels.jsonl").read_text().splitlines())
    assert len(row["objects"]) == 3
    window.logged()  # that the server did not answer


@pytest.mark.slow
def test_ten_thousand_images_open_at_once_and_the_next_is_there(tmp_path, serve, window):
    folder = tmp_path / "many"
    folder.mkdir()
    Image.effect_noise((640, 480), 60).convert("RGB").save(folder / "first.jpg")
    data = (folder / "first.jpg").read_bytes()
    rows = []
    for number in range(10_000):
        name = f"{number:05d}.jpg"
        (folder / name).write_bytes(data)
        answer = "<loc0100><loc0200><loc0500><loc0600> cat" if number % 2 else ""
        rows.append(json.dumps({"image": name, "prefix": "detect cat", "suffix": answer}))
    (folder / "first.jpg").unlink()
    (folder / "train.jsonl").write_text("\n".join(rows[:9_000]) + "\n")
    address, store = serve(folder)
    page = Page(window, address, store)
    assert window.run("return document.querySelector('#progress span').textContent").startswith(
        "9,000 of 10,000 done"
    )
    times = []
    for _ in range(12):
        before = window.run(OPEN)
        window.press("Right")
        window.wait(f"{OPEN} !== arguments[0]", before)
        times.append(float(window.run("return document.body.dataset.shownMs")))
    assert sorted(times)[6] < 100, times
    window.press("0")
    page.saved()
    window.type("#words", "00041")
    window.wait("return document.querySelector('#shown').textContent === '1 shown'")
    assert store.get(store.items()[9012].key).is_done
    assert isinstance(store, row_store.Store) and pathlib.Path(folder, "labels.jsonl").exists()
