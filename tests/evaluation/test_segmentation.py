"""Segmentation from rows with outlines to scores, on the codec that is trained on drawn shapes."""

import dataclasses
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from paligemma_jax.assembly import assembly, datasets, weights
from paligemma_jax.data import objects, tokens
from paligemma_jax.decoding import generate
from paligemma_jax.evaluation import evaluator
from paligemma_jax.importers import options
from paligemma_jax.settings import load
from paligemma_jax.tasks import geometry, mask_text

CODEC = str(pathlib.Path(__file__).parents[2] / "experiments" / "mask_codec" / "codec.npz")


def ellipse(cy, cx, ry, rx, *, height=90, width=120):
    y, x = np.mgrid[:height, :width] + 0.5
    return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pictures with one and two outlined objects, written with the codec."""
    folder, rows = tmp_path_factory.mktemp("segmentation"), []
    codec = weights.load_codec(CODEC)
    scenes = [[ellipse(40, 60, 30, 50)], [ellipse(30, 30, 20, 25), ellipse(50, 90, 30, 20)]]
    for number, drawn in enumerate(scenes):
        Image.fromarray(np.uint8(np.any(drawn, axis=0) * 255)).convert("RGB").save(
            folder / f"{number}.png"
        )
        boxes = [geometry.find_box(mask)[[1, 0, 3, 2]] * [120, 90, 120, 90] for mask in drawn]
        runs = [objects.encode_bitmap(mask) for mask in drawn]
        kept = objects.make(120, 90, ["pond"] * len(drawn), boxes, runs)
        suffix = mask_text.format(mask_text.encode(objects.to_regions(kept), codec.encode))
        row = {"image": f"{number}.png", "prefix": "segment pond", "suffix": suffix}
        rows.append(json.dumps({**row, **objects.to_row(kept)}))
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    tokens.train_tokenizer(["segment pond", "pond"], folder / "tokenizer.model", vocab_size=1500)
    return folder


@pytest.fixture
def settings(config, folder):
    config.task, config.mask_codec = "segmentation", CODEC
    config.tokenizer = str(folder / "tokenizer.model")
    config.input.data.fname = config.evals.val.fname = str(folder / "train.jsonl")
    config.input.text_len = 80
    return config


def test_the_true_tokens_score_what_the_codec_loses(settings):
    built = assembly.assemble(load.typed(settings))
    made = evaluator.make(built, "val")

    def answer(params, batch):
        """Writes the true suffix of every row."""
        texts = [made.records[index].suffix for index in np.maximum(batch["index"], 0)]
        ids = [[*built.tokenizer.encode(text), built.tokenizer.eos] for text in texts]
        padded = [row + [0] * (60 - len(row)) for row in ids]
        return generate.Generation(
            tokens=jnp.array(padded),
            logp=jnp.zeros((len(ids), 60)),
            length=jnp.array([len(row) for row in ids]),
            index=batch["index"],
            is_real=batch["_mask"],
        )

    told = dataclasses.replace(made, generate=answer)
    rows, scores = evaluator.run(built, told, assembly.load_weights(built, None))
    assert 0.9 < scores["miou"] < 1 and scores["box_accuracy75"] == 1.0
    assert scores["invalid"] == 0 and scores["num_truths"] == 3 and scores["correct"] == 1.0
    assert scores["perplexity"] == pytest.approx(np.exp(scores["loss"]))
    # Masks are compared at the picture's own size: an ellipse's area in pixels.
    _, union = rows[0]["truths"][0]["pixels"]
    assert union == pytest.approx(np.pi * 30 * 50, rel=0.1)


def test_a_run_keeps_its_codec(settings, tmp_path):
    built = assembly.assemble(load.typed(settings))
    assembly.write_run_files(built, tmp_path)
    opened, _ = assembly.open_run(str(tmp_path), None, [])
    assert opened.mask_codec == str(tmp_path / "mask_codec.npz")
    codes = np.arange(48).reshape(3, 16)
    np.testing.assert_array_equal(
        weights.load_codec(opened.mask_codec).decode(codes), weights.load_codec(CODEC).decode(codes)
    )
    told, _ = assembly.open_run(str(tmp_path), None, ["mask_codec=other.npz"])
    assert told.mask_codec == "other.npz"


def test_a_file_in_the_published_layout_writes_big_visions_tokens(reference_folder):
    codec = weights.load_codec(str(reference_folder / "seg_weights.npz"))
    with np.load(reference_folder / "seg_cases.npz") as cases:
        written = codec.encode(cases["enc/masks"][..., 0])
        np.testing.assert_array_equal(written, cases["enc/indices"])


def test_other_weights_are_no_codec(settings, tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    settings.mask_codec = str(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"other\.npz is no mask codec: 48 arrays"):
        datasets.make_task(load.typed(settings))


def test_scores_are_checked_before_weights_are_loaded(config, data_folder):
    config.task = "vqa"
    config.evals.val.scores = ["vqav2_accuracy"]
    built = assembly.assemble(load.typed(config))
    with pytest.raises(ValueError, match=r"2 of 2 rows cannot .*\n.*:1: score 'vqav2_acc.*answers"):
        evaluator.make(built, "val")
    config.evals.val.scores = ["anls"]
    built = assembly.assemble(load.typed(config))
    assert evaluator.make(built, "val").task.metric == "anls"
    config.evals.val.decode = False
    built = assembly.assemble(load.typed(config))
    with pytest.raises(ValueError, match="scores need answers, and decode is False"):
        evaluator.make(built, "val")


def test_true_answers_are_lower_cased_with_the_suffix(config, tmp_path):
    row = {"image": [], "prefix": "answer", "suffix": "Yes", "answers": ["Yes", "YES"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    config.task, config.input.lowercase = "vqa", True
    records = datasets.read_records(load.typed(config), str(tmp_path / "a.jsonl"), key="fname")
    (learnt,) = datasets.as_learnt(load.typed(config), records)
    assert learnt.suffix == "yes" and learnt.extra["answers"] == ["yes", "yes"]


def test_a_codec_that_is_not_there_names_the_key_and_the_file_that_comes_along(settings, tmp_path):
    settings.mask_codec = str(tmp_path / "gone.npz")
    with pytest.raises(FileNotFoundError) as caught:
        datasets.make_task(load.typed(settings))
    (note,) = caught.value.__notes__
    assert note.startswith("the config key mask_codec names the file")
    assert note.endswith(weights.OWN_CODEC) and CODEC.endswith(weights.OWN_CODEC)
    assert datasets.make_reader(settings).parse("") is not None


def test_an_importer_without_its_codec_is_told_of_another(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        options.load_codec(str(tmp_path / "gone.npz"))
    assert "--mask_codec FILE takes another one" in caught.value.__notes__[0]
