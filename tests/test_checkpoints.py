"""Through the doors: the checkpoints of a run are weights like its final ones."""

import json
import shutil

import numpy as np
import pytest

import paligemma_jax
from paligemma_jax import convert, evaluate
from paligemma_jax.assembly import model_functions
from paligemma_jax.checkpoints import checksums, npz, train_checkpoint
from paligemma_jax.data import tokens
from paligemma_jax.params import names
from paligemma_jax.reports import run_log
from paligemma_jax.runs import whole_run
from paligemma_jax.settings import load, presets

DIMS = dict(width=8, depth=1, mlp_dim=8, num_heads=1)
STEPS = 4


def make_config(folder, **changes):
    """Returns settings of four steps on attention alone, a checkpoint and an evaluation at each."""
    config = presets.from_scratch(
        res=14, text_len=24, img=DIMS, llm={**DIMS, "num_kv_heads": 1, "head_dim": 8}
    )
    config.input.data.fname = f"{folder}/train.jsonl"
    config.input.batch_size = 2
    config.tokenizer = f"{folder}/tokenizer.model"
    config.total_steps, config.ckpt_steps, config.keep_last = STEPS, 1, 9
    config.lr = 3.0  # so large that the last step is not the best one
    config.trainable = "llm/layers/attn/.*"
    config.model_init = f"{folder}/base.npz"
    config.frozen_dtype = "bfloat16"
    config.keep_best = "val/loss"
    config.evals.val = dict(fname=f"{folder}/train.jsonl", log_steps=1, decode=False)
    config.update_from_flattened_dict(changes)
    return config


RUNS = {
    "part": {"save": "all"},
    "lora": {"trainable": None, "lora.targets": "llm", "lora.rank": 2, "ema_decay": 0.5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of texts, a tokenizer, a base, and two runs."""
    folder = tmp_path_factory.mktemp("checkpoints")
    rows = [
        {"image": [], "prefix": "detect cat", "suffix": "<loc0000>" * 2 + f"<loc0{n}>" * 2 + " cat"}
        for n in (100, 200)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens.train_tokenizer(["detect cat", "cat"], folder / "tokenizer.model", vocab_size=1500)
    config = make_config(folder)
    vocab_size = tokens.load_tokenizer(config.tokenizer).vocab_size
    shapes = model_functions.describe(load.typed(config), vocab_size=vocab_size).shapes()
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=x.shape, scale=0.3) for name, x in shapes.items()}
    npz.write(folder / "base.npz", {name: x.astype("float16") for name, x in arrays.items()})
    for name, changes in RUNS.items():
        whole_run.train(load.typed(make_config(folder, **changes)), folder / name)
    return folder


@pytest.fixture(scope="module")
def random(folder):
    """A run of one checkpoint that began with random weights and has no keep_best."""
    run = folder / "random"
    kept = "checkpoints/000002"
    shutil.copytree(folder / "part" / kept, run / kept)
    config = make_config(folder, model_init=None, keep_best=None)
    (run / "config.json").write_text(load.to_json(load.typed(config)))
    (run / "final.npz").touch()
    path = run / kept / train_checkpoint.METADATA / train_checkpoint.METADATA
    content = json.loads(path.read_text())["content"] | {"base": {"seed": 0}, "value": None}
    path.write_text(json.dumps({"sha256": train_checkpoint.sha256(content), "content": content}))


def losses(run) -> dict[int, float]:
    """Returns step -> validation loss, as training found it."""
    return {row["step"]: row["val/loss"] for row in run_log.read_rows(run / "metrics.jsonl")}


def score(folder, run, capsys, *words) -> float:
    out = "--eval.decode=False", f"--out={folder}/out"
    evaluate.main([f"--run={folder / run}", f"--data={folder}/train.jsonl", *out, *words])
    return json.loads(capsys.readouterr().out)["loss"]


@pytest.mark.parametrize("run", ["part", "lora"])
def test_a_checkpoint_scores_as_training_found_at_its_step(folder, run, capsys):
    expected = losses(folder / run)
    assert min(expected, key=expected.__getitem__) != STEPS
    best = score(folder, run, capsys, "--checkpoint=best")
    assert best == pytest.approx(min(expected.values()), rel=1e-5)


@pytest.mark.parametrize("words", [("--checkpoint=2",), ("--weights={run}/checkpoints/000002",)])
def test_the_base_of_a_checkpoint_is_said_unless_it_is_given(folder, words, tmp_path, capsys):
    run = folder / "part"
    given = [word.format(run=run) for word in words]
    line = f"{run}/checkpoints/000002: what was not trained comes from its base {folder}/base.npz"
    out = "--eval.decode=False", f"--out={folder}/out"
    evaluate.main([f"--run={run}", f"--data={folder}/train.jsonl", *out, *given])
    assert line in capsys.readouterr().err.splitlines()
    base = f"--base={folder}/base.npz"
    evaluate.main([f"--run={run}", f"--data={folder}/train.jsonl", *out, *given, base])
    assert line not in capsys.readouterr().err
    convert.main([str(run), str(tmp_path / "whole.npz"), "--checkpoint", "2"])
    assert line in capsys.readouterr().err.splitlines()


def test_a_checkpoint_is_named_by_its_step_or_its_folder(folder, capsys):
    expected = pytest.approx(losses(folder / "part")[2], rel=1e-5)
    assert score(folder, "part", capsys, "--checkpoint=2") == expected
    path = folder / "part" / "checkpoints" / "000002"
    assert score(folder, "part", capsys, f"--weights={path}") == expected


@pytest.mark.parametrize("run", ["part", "lora"])
def test_the_last_checkpoint_is_the_final_file_bit_for_bit(folder, run):
    converted, final = folder / f"{run}-last.npz", folder / f"{run}-final.npz"
    convert.main([str(folder / run), str(converted), "--checkpoint", "last"])
    convert.main([str(folder / run), str(final)])
    assert checksums.of_file(converted) == checksums.of_file(final)
    assert npz.read_header(converted).metadata == npz.read_header(final).metadata


def test_factors_of_a_checkpoint_become_an_adapter_and_are_merged(folder, capsys):
    run = str(folder / "lora")
    convert.main([run, str(folder / "peft"), "--checkpoint", "2"])
    num_factors = len(npz.read_header(folder / "lora" / "final.npz").arrays)
    assert json.loads(capsys.readouterr().out)["arrays"] == num_factors
    convert.main([run, str(folder / "merged.npz"), "--checkpoint", "2", "--merge"])
    assert not any(map(names.is_factor, npz.read_header(folder / "merged.npz").arrays))


def test_a_checkpoint_answers_in_a_notebook_as_in_a_run_that_did_not_end(folder):
    shutil.copytree(folder / "part", folder / "stopped")
    (folder / "stopped" / "final.npz").unlink()
    image, decoding = np.zeros((14, 14, 3), np.uint8), {"max_new_tokens": 2}
    answers = [
        paligemma_jax.load(str(folder / run), decoding=decoding, **chosen).predict(image, "cat")
        for run, chosen in (("part", {}), ("stopped", {"checkpoint": "last"}))
    ]
    assert answers[0] == answers[1]
    with pytest.raises(ValueError, match=r"run did not end.*--checkpoint last"):
        paligemma_jax.load(str(folder / "stopped"))


@pytest.mark.parametrize(
    ("run", "words", "message"),
    [
        ("part", ["--checkpoint=7"], r"no such one. .*holds 1 \(val/loss .*\), 2 .*, 3 .*, 4 \("),
        ("part", ["--checkpoint=newest"], "expected 'best', 'last' or a number of steps"),
        ("random", ["--checkpoint=best"], "the run had no keep_best. .*holds 2"),
        ("random", ["--checkpoint=2"], "frozen weights are random ones of seed 0, .* in no file"),
        ("part", ["--checkpoint=2", "--weights=none"], "--checkpoint is of a run: .*no --weights"),
        ("part", ["--checkpoint=2", "--base={0}/part/final.npz"], "is another file: give the ri"),
    ],
)
def test_what_is_not_there_or_does_not_belong_is_said(folder, random, run, words, message, capsys):
    with pytest.raises(ValueError, match=message):
        score(folder, run, capsys, *(word.format(folder) for word in words))


def test_damage_is_found_where_it_is_read(folder, capsys):
    shutil.copytree(folder / "part", folder / "damaged")
    checkpoint = folder / "damaged" / "checkpoints" / "000003"
    largest = max((p for p in checkpoint.glob("trainable/**/d/*")), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(ValueError, match=r"000003 is damaged: trainable"):
        score(folder, "damaged", capsys, "--checkpoint=3")
    largest.unlink()
    with pytest.raises(ValueError, match=r"000003 is damaged: .* has 0 bytes"):
        score(folder, "damaged", capsys, "--checkpoint=3")


def test_training_begins_with_a_file_and_not_with_a_checkpoint(folder):
    path = folder / "part" / "checkpoints" / "000002"
    with pytest.raises(
        ValueError, match=r"a run begins with a file; convert RUN FILE.npz --checkp"
    ):
        whole_run.train(load.typed(make_config(folder, model_init=str(path))), folder / "not_made")


def test_a_base_without_factors_does_not_pass_for_a_run_with_lora(folder, capsys):
    base = f"--weights={folder}/base.npz"
    with pytest.raises(ValueError, match=r"none of the LoRA factors .*--config.lora.targets=None"):
        score(folder, "lora", capsys, base)
    plain = score(folder, "lora", capsys, base, "--config.lora.targets=None")
    assert np.isfinite(plain) and plain != score(folder, "lora", capsys)
    with pytest.raises(ValueError, match=r"lora.rank=4 has no effect without lora.targets"):
        score(folder, "lora", capsys, base, "--config.lora.targets=None", "--config.lora.rank=4")
