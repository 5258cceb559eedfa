"""Models propose without being waited for, and are trained on what is labelled so far."""

import json
import sys
import time

import numpy as np
import pytest

from paligemma_jax.data import objects
from paligemma_jax.labelling import (
    data_opening,
    label_models,
    label_rounds,
    proposals,
    row_store,
    served_images,
)
from paligemma_jax.tasks import geometry

CAT = {"label": "cat", "box_yxyx": [0.1, 0.2, 0.5, 0.6], "score": 0.9}
DOG = {"label": "dog", "box_yxyx": [0.6, 0.6, 0.9, 0.9], "score": 0.4}


def row(*detections, logp=-1.0, tokens=10):
    return {"prediction": "x", "logp": logp, "tokens": tokens, "detections": list(detections)}


def test_doubt_is_that_of_a_token():
    assert proposals.doubt({"logp": 0.0, "tokens": 3}) == 0
    assert proposals.doubt({"logp": 3 * np.log(0.25), "tokens": 3}) == pytest.approx(0.75)
    assert proposals.doubt({"logp": -1.0, "tokens": 0}) == pytest.approx(1 - np.exp(-1), abs=1e-4)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((), (), 0.0),
        ((CAT,), (), 1.0),
        ((CAT,), (CAT,), 0.0),
        ((CAT,), ({**CAT, "label": "dog"},), 1.0),
        ((CAT, DOG), (DOG,), 1 / 3),
        ((CAT, CAT), (CAT, CAT), 0.0),
        ((CAT,), ({**CAT, "box_yxyx": [0.5, 0.2, 0.9, 0.6]},), 1.0),
    ],
)
def test_disagreement_counts_objects_without_a_partner(one, other, expected):
    assert proposals.disagreement(row(*one), row(*other)) == pytest.approx(expected, abs=1e-4)


def test_words_disagree_where_they_differ():
    texts = [{"prediction": text} for text in ("two cats", "two cats", "two dogs", "rain")]
    numbers = [proposals.disagreement(texts[0], other) for other in texts[1:]]
    assert numbers == [0.0, 0.5, 1.0]


def test_boxes_and_masks_come_in_pixels():
    mask = np.zeros((64, 64), bool)
    mask[:32] = True
    packed = {**CAT, "mask": geometry.pack_mask(mask)}
    flat, outlined, *rest = proposals.to_objects(
        row(CAT, packed, {**CAT, "box_yxyx": [0.5, 0.5, 0.5, 0.9]}), (200, 100)
    )
    assert rest == []  # of no area
    assert flat == {"label": "cat", "box": [40.0, 10.0, 120.0, 50.0], "score": 0.9}
    runs = outlined["segmentation"]
    drawn = objects.bitmap(runs["counts"], width=200, height=100)
    assert drawn[10:30, 40:120].all() and drawn.sum() == 20 * 80
    assert proposals.to_objects({"prediction": "x"}, (200, 100)) is None


MODEL = """
import json, sys
for line in sys.stdin:
    for one in json.loads(line):
        if one["path"].endswith("1.png"):
            print(json.dumps({"key": one["key"], "error": "no image"}), flush=True)
        elif sys.argv[1] == "breaks":
            sys.exit("out of memory")
        else:
            row = {"prediction": one["prompt"], "logp": -1.0, "tokens": 2, "detections": [
                {"label": sys.argv[1], "box_yxyx": [0, 0, 0.5, 0.5], "score": 0.5}]}
            print(json.dumps({"key": one["key"], "row": row}), flush=True)
"""
TRAINING = """
import json, pathlib, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print(json.dumps(words))
run = pathlib.Path(words["--workdir"])
run.mkdir(parents=True)
(run / "metrics.json").write_text(json.dumps({"map50": 0.5, "loss": 1.5}))
if words["--model"] != "bad":
    (run / "final.npz").write_bytes(b"")
"""


@pytest.fixture
def store(make_images):
    with data_opening.open_store(make_images(20)) as opened:
        yield opened


@pytest.fixture
def make(store, tmp_path, monkeypatch):
    """Returns a function that opens models whose processes are the scripts above."""
    for module, text in ((proposals, MODEL), (label_rounds, TRAINING)):
        (tmp_path / f"{module.__name__}.py").write_text(text)
        monkeypatch.setattr(module, "COMMAND", (str(tmp_path / f"{module.__name__}.py"),))
    opened = []

    def make(*runs, **training):
        options = label_rounds.TrainOptions(**training) if training else None
        images = served_images.Images(store.folder)
        opened.append(
            label_models.Models(
                store, images, runs=runs, prompt=lambda _: "detect cat", training=options
            )
        )
        return opened[-1]

    yield make
    for models in opened:
        models.close()


def wait(check, seconds=60):
    end = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


def label(store, count):
    for item in [item for item in store.items() if not item.is_done][:count]:
        about = row_store.make_about("ann", 1, is_done=True)
        made = {"image": item.images[0], "prefix": "detect cat", "suffix": ""}
        store.change([row_store.Edit(item.key, 0, made | {row_store.ABOUT: about})], by="ann")


def test_images_without_a_label_get_proposals_and_a_broken_one_costs_itself(make, store):
    models = make("cat", "dog")
    items = store.items()
    shown = wait(lambda: models.proposal(items[19]))
    assert shown["objects"] == [{"label": "cat", "box": [0.0, 0.0, 100.0, 50.0], "score": 0.5}]
    wait(lambda: models.numbers().get(items[19].key, {}).get("disagreement") == 1.0)
    assert models.proposal(items[1]) is None
    assert "18 proposals" in wait(lambda: models.status()["text"])
    assert [name for name, _ in models.status()["orders"]] == ["doubt", "disagreement"]


def test_a_model_that_ends_says_why(make):
    models = make("breaks")
    told = wait(lambda: "its process ended" in (text := models.status()["text"]) and text)
    assert "out of memory" in told


def test_a_round_is_trained_on_what_is_done_and_proposes_from_then_on(make, store):
    models = make("cat", model="tiny", method="lora", epochs=2.0)
    with pytest.raises(ValueError, match="0 rows are done, and a round needs 5"):
        models.train("detection")
    label(store, 15)
    models.train("detection")
    told = wait(lambda: "mAP" in (text := models.status()["text"]) and text)
    assert "round 1, on 15 rows: mAP 50 0.500, loss 1.500" in told
    folder = store.folder / ".labelling" / "rounds" / "001"
    parts = {
        name: [
            json.loads(line)["image"]
            for line in (folder / f"{name}.jsonl").read_text().splitlines()
        ]
        for name in ("train", "valid")
    }
    assert len(parts["train"]) + len(parts["valid"]) == 15 and parts["valid"]
    assert not set(parts["train"]) & set(parts["valid"])
    assert "labelling" not in (folder / "train.jsonl").read_text()
    words = json.loads((folder / "train.log").read_text())
    assert words["--model"] == "tiny" and words["--method"] == "lora" and words["--epochs"] == "2"
    assert words["--images"] == str(store.folder)
    items = store.items()
    label_of_run = str(folder / "run")
    wait(lambda: (s := models.proposal(items[19])) and s["objects"][0]["label"] == label_of_run)
    assert make("cat", model="tiny").status()["answered"].startswith(label_of_run)


def test_rounds_begin_by_themselves_after_so_many_rows(make, store):
    models = make(model="tiny", every=6)
    label(store, 5)
    models.labelled("detection")
    assert models.rounds.number == 0
    label(store, 1)
    models.labelled("detection")
    assert models.rounds.number == 1
    wait(lambda: not models.status()["is_training"])
    label(store, 5)
    models.labelled("detection")
    assert models.rounds.number == 1


def test_a_round_that_fails_says_where_to_look(make, store):
    models = make(model="bad")
    label(store, 6)
    models.train("detection")
    told = wait(lambda: "failed" in (text := models.status()["text"]) and text)
    assert "round 1 failed: see" in told and "train.log" in told
    assert sys.executable and models.proposal(store.items()[19]) is None
