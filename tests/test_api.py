"""The commands as functions: the same files and numbers, and objects of one line."""

import json
import textwrap

import numpy as np
import pytest
from PIL import Image

import paligemma_jax
from paligemma_jax import api, evaluate
from paligemma_jax.data import tokens
from paligemma_jax.results import outcomes

pytestmark = pytest.mark.slow

BOX = "<loc0100><loc0200><loc0500><loc0600>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images, a COCO file, a data set of JSONL, a tokenizer and a config of two steps."""
    folder = tmp_path_factory.mktemp("api")
    rng = np.random.default_rng(0)
    rows = []
    (folder / "coco").mkdir()
    for number in range(4):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        for place in (folder, folder / "coco"):
            Image.fromarray(pixels).save(place / f"{number}.png")
        rows.append({"image": f"{number}.png", "prefix": "detect cat", "suffix": f"{BOX} cat"})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in range(4)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [4, 4, 20, 9]} for n in range(4)]
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "coco" / "annotations.json").write_text(json.dumps(coco))
    tokens.train_tokenizer(["detect cat", "cat"], folder / "tokenizer.model", vocab_size=1500)
    (folder / "config.py").write_text(
        textwrap.dedent(f"""
        from paligemma_jax.settings import presets

        def get_config(arg=""):
            c = presets.from_scratch(
                res=14,
                text_len=24,
                img=dict(width=16, depth=2, mlp_dim=16, num_heads=2),
                llm=dict(width=16, depth=2, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8),
            )
            c.input.data.fname = "{folder}/train.jsonl"
            c.input.batch_size = 4
            c.tokenizer = "{folder}/tokenizer.model"
            c.total_steps = 9
            c.ckpt_steps = 0
            c.evals.val = dict(fname="{folder}/train.jsonl", max_new_tokens=2)
            return c
        """)
    )
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """A run of two steps, as the settings do not say."""
    return api.train(folder / "config.py", folder / "run", changes={"total_steps": 2, "lr": 1e-3})


def test_a_run_is_trained_with_the_changes_and_knows_its_scores(run, folder):
    config = json.loads((folder / "run" / "config.json").read_text())
    assert (config["total_steps"], config["lr"]) == (2, 1e-3)
    assert run.is_finished and run.rows[-1]["step"] == 2
    assert {"val/loss", "val/map50"} <= run.scores.keys()
    assert "epoch" in run.to_dataframe().columns
    closing = (folder / "run" / "train.log").read_text().splitlines()[-3:]
    commands = [line.split("paligemma-jax ")[1].split()[0] for line in closing]
    assert commands == ["evaluate", "predict", "convert"]


def test_an_evaluation_is_that_of_the_command(run, folder, capsys):
    evaluation = api.evaluate(run, folder / "train.jsonl", decoding={"max_new_tokens": 2})
    capsys.readouterr()
    words = [f"--run={folder}/run", f"--data={folder}/train.jsonl", "--eval.max_new_tokens=2"]
    evaluate.main([*words, f"--out={folder}/again"])
    printed = json.loads(capsys.readouterr().out)
    assert {name: evaluation.scores[name] for name in printed} == printed
    assert evaluation.folder == folder / "run" / "evaluation-train"
    assert len(evaluation.predictions) == 4 and "<img" in evaluation._repr_html_()


def test_a_loaded_run_takes_globs_folders_and_pixels_and_tells_what_it_is(run, folder):
    model = paligemma_jax.load(run, decoding={"max_new_tokens": 2})
    by_glob = model.predict(f"{folder}/?.png")
    assert [one["images"] for one in by_glob] == [[f"{folder}/{n}.png"] for n in range(4)]
    by_folder = model.predict(folder / "coco", "detect cat")
    assert [one["logp"] for one in by_folder] == pytest.approx([one["logp"] for one in by_glob])
    mixed = model.predict([folder / "1.png", np.asarray(Image.open(folder / "2.png"))])
    assert [one["logp"] for one in mixed] == pytest.approx([one["logp"] for one in by_glob[1:3]])
    for shown in (model, run, by_glob, mixed[1]):
        assert len(repr(shown)) < 200 and "\n" not in repr(shown)
    assert by_glob._repr_html_().count("<img") == mixed._repr_html_().count("<img") + 2 == 4
    with pytest.raises(ValueError, match="no such file") as caught:
        model.predict("none/*.png")
    assert caught.value._render_traceback_() == [f"ValueError: {caught.value}"]


def test_a_check_a_data_set_and_weights_are_objects_too(run, folder):
    data = api.import_data(
        folder / "coco", folder / "mine", task="detection", split={"train": 0.5, "valid": 0.5}
    )
    assert data.splits["train"].exists() and sum(data.summary["rows"].values()) == 4
    weights = api.convert(run, folder / "hf", overwrite=True)
    assert (weights.path / "model.safetensors").exists()
    checked = api.check(folder / "config.py")
    assert checked.is_ready
    for shown in (data, weights, checked):
        assert isinstance(shown, (outcomes.DataSet, outcomes.Weights, outcomes.Check))
        assert len(repr(shown)) < 200 and "\n" not in repr(shown)
    assert "data:image/png" in data._repr_html_() and "READY" in checked._repr_html_()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: api.train(f / "config.py", f / "x", changes={"lrr": 1}), "lrr"),
        (lambda f: api.train(f / "none.py", f / "x"), "no file .*none.py"),
        (lambda f: api.import_data(f, f / "x", task="detecton"), "invalid choice: 'detecton'"),
        (lambda f: api.import_data(f, f / "x", task="vqa", splits={}), "Did you mean 'split'"),
        (lambda f: api.convert(f / "a.npz", f / "b.npz", merg=True), "Did you mean 'merge'"),
        (lambda f: api.evaluate(f / "no_run"), "no_run"),
        (lambda f: api.finetune(f, "tiny", f / "x", clases=["a"]), "Did you mean 'classes'"),
        (lambda _: api.check(example=3), "belong to a config="),
        (lambda f: paligemma_jax.load(f / "run").predict(f / "none.png"), "none.png"),
    ],
)
def test_what_is_wrong_is_one_error_in_words(call, message, folder, capsys):
    with pytest.raises(ValueError, match=message) as caught:
        call(folder)
    (shown,) = caught.value._render_traceback_()
    assert shown == f"ValueError: {caught.value}"
    assert "error:" not in capsys.readouterr().err, "it is raised, and not said besides"


def test_a_run_from_data_and_a_model_alone_is_that_of_the_one_line(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(api.starting, "train", lambda start: asked.append(start) or folder)
    run = api.finetune(
        folder / "coco", "tiny", epochs=2, classes=["cat", "dog"], changes={"lr": 0.1}
    )
    (start,) = asked
    assert run.folder == folder and start.overrides == ["lr=0.1"] and start.epochs == 2
    assert start.wanted.words == ["--classes=cat,dog"] and start.wanted.task is None
    assert "--epochs=2" in start.command and "--config.lr=0.1" in start.command
