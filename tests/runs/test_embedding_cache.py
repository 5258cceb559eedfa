"""Cached image embeddings: when they are refused, and that a run with them is the run without."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from paligemma_jax.assembly import assembly, datasets
from paligemma_jax.checkpoints import npz
from paligemma_jax.checks import planned_run
from paligemma_jax.data import pipeline
from paligemma_jax.reports import run_log
from paligemma_jax.runs import embedding_cache, memory_plan, training_run, whole_run
from paligemma_jax.settings import load
from paligemma_jax.training import step

TIMINGS = {"seconds", "examples_per_s", "input_wait", "programs_compiled"}


@pytest.fixture
def cached(config, data_folder, tmp_path, monkeypatch):
    """Settings of three steps on three images, with a frozen vision tower and a cache of its own.

    Two slots, both used in the third row; an evaluation of loss and answers after the last step.
    """
    monkeypatch.setenv("PALIGEMMA_JAX_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    rows = [json.loads(line) for line in (data_folder / "two.jsonl").read_text().splitlines()]
    rows.append(rows[0] | {"image": "2.png"})
    for number, row in enumerate(rows):
        row["image"] = [f"{number}.png"] if number else ["0.png", "2.png"]
    for number in range(3):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.input.data.fname = f"{tmp_path}/train.jsonl"
    config.input.max_images = 2
    config.trainable = "llm/.*"
    config.model.llm.dropout = 0.1
    config.total_steps, config.lr, config.log_training_steps = 3, 1e-2, 1
    config.evals.val = dict(fname=f"{tmp_path}/train.jsonl", max_new_tokens=2)
    config.input.embedding_cache = "float32"
    return config


def run(config, workdir) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Returns (rows of metrics without times, final weights) of a run."""
    whole_run.train(load.typed(config), workdir)
    rows = run_log.read_rows(workdir / "metrics.jsonl")
    rows = [{key: row[key] for key in row if key not in TIMINGS} for row in rows]
    return rows, npz.read(workdir / "final.npz")


@pytest.mark.slow
def test_a_run_with_float32_embeddings_equals_the_run_without_bit_by_bit(cached, tmp_path, capsys):
    rows, weights = run(cached, tmp_path / "with")
    said = capsys.readouterr().err
    assert "image embeddings: 3 in" in said and "3 of them new" in said
    (entry, *_) = sorted((tmp_path / "cache").glob("embeddings/*/*/*.bin"))
    entry.write_bytes(entry.read_bytes()[:-1])
    again, _ = run(cached, tmp_path / "again")
    said = capsys.readouterr().err
    assert f"{entry}: damaged, made again" in said and "1 of them new" in said
    cached.input.embedding_cache = None
    plain_rows, plain_weights = run(cached, tmp_path / "without")
    assert rows == again == plain_rows
    assert {"val/loss", "loss"} <= rows[-1].keys()
    for name, array in weights.items():
        assert array.tobytes() == plain_weights[name].tobytes(), name


def test_losses_with_embeddings_are_those_without(cached):
    """To the bit with float32, within a thousandth with bfloat16."""
    losses = {}
    for dtype in (None, "float32", "bfloat16"):
        cached.input.embedding_cache = dtype
        built = assembly.assemble(load.typed(cached))
        params = assembly.load_weights(built, None)
        examples = datasets.read_records(
            load.typed(cached), cached.input.data.fname, key="input.data.fname"
        )
        spec = datasets.spec(load.typed(cached))
        batches = pipeline.validation_batches(
            examples,
            built.tokenizer,
            spec,
            read_images=embedding_cache.prepare(built, examples, params, spec, stored=dtype),
        )
        placed = list(datasets.on_mesh(batches, built.mesh))
        assert ("image" in placed[0]) == (dtype is None)
        assert dtype is None or placed[0]["image_tokens"].dtype == dtype
        loss = jax.jit(step.make_eval_loss(built.functions.apply, built.functions.logits))
        losses[dtype] = [float(loss(params, batch)[0]) for batch in placed]
    assert losses["float32"] == losses[None]
    assert losses["bfloat16"] != losses[None]
    np.testing.assert_allclose(losses["bfloat16"], losses[None], rtol=1e-3)


def test_a_planned_batch_holds_embeddings_in_place_of_pixels(cached):
    sizes = {}
    for dtype in ("bfloat16", None):
        cached.input.embedding_cache = dtype
        built = assembly.assemble(load.typed(cached))
        sizes[dtype] = memory_plan.at_least(built, training_run.plan(built)).batch
    pixels, embedding = 2 * 2 * 14 * 14 * 3, 2 * 2 * 8 * 2  # rows, slots, and bytes of an image
    assert sizes[None] - sizes["bfloat16"] == pixels - embedding


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["trainable=.*"], r"\d+ arrays of the vision tower are trained, as img/Transformer"),
        (["trainable=None"], "arrays of the vision tower are trained"),
        (
            ["lora.targets=hf_compat"],
            "arrays of the vision tower are trained, as img/.*kernel_lora_a",
        ),
        (["model.img.dropout=0.1"], "dropout draws at random"),
        (["input.augment.brightness=0.2"], r"images are augmented \(brightness 0.2\)"),
        (["input.embedding_cache_gb=0.00000001"], "embeddings of 3 images take 0.00 GB in float32"),
    ],
)
def test_embeddings_that_would_change_are_refused_before_weights_load(cached, changes, message):
    load.override(cached, changes)
    with pytest.raises(ValueError, match=message):
        training_run.plan(assembly.assemble(load.typed(cached)))
    built = assembly.assemble(load.typed(cached))
    planned_records = datasets.read_records(
        load.typed(cached), cached.input.data.fname, key="input.data.fname"
    )
    _, found, _ = planned_run.look(load.typed(cached), built.tokenizer, examples=planned_records)
    assert any("embedding" in one.what for one in found)


def test_shuffled_answers_leave_images_as_they_are(cached):
    cached.input.augment.shuffle_objects = True
    training_run.plan(assembly.assemble(load.typed(cached)))


def test_other_weights_another_resolution_and_other_types_have_a_folder_of_their_own(
    cached, tmp_path
):
    def folders():
        return {path.name for path in (tmp_path / "cache" / "embeddings").iterdir()}

    def prepare(built, records, params, stored="float32"):
        spec = datasets.spec(built.settings)
        embedding_cache.prepare(built, records, params, spec, stored=stored)

    built = assembly.assemble(load.typed(cached))
    records = datasets.read_records(
        load.typed(cached), cached.input.data.fname, key="input.data.fname"
    )
    params = assembly.load_weights(built, None)
    prepare(built, records, params)
    assert len(folders()) == 1
    prepare(built, records, {**params, "llm/x": np.ones(3)})  # no tower's
    assert len(folders()) == 1
    name = "img/head/bias"
    prepare(built, records, {**params, name: params[name] + 1})
    assert len(folders()) == 2
    prepare(built, records, params, stored="bfloat16")
    assert len(folders()) == 3
    cached.compute_dtype = "bfloat16"
    prepare(assembly.assemble(load.typed(cached)), records, params)
    assert len(folders()) == 4
    cached.res = 28
    larger = assembly.assemble(load.typed(cached))
    prepare(larger, records, assembly.load_weights(larger, None))
    assert len(folders()) == 5
