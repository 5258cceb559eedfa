"""Through the doors: the checkpoints of a run are weights like its final ones."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import paligemma_jax
from paligemma_jax import convert, evaluate
from paligemma_jax.checkpoints import checksums, npz, train_checkpoint
from paligemma_jax.params import names
from paligemma_jax.runs import whole_run
from paligemma_jax.settings import load
from tests import tiny_runs

STEPS = tiny_runs.STEPS


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A data set of texts, a tokenizer, a base, and runs on it."""
    return tiny_runs.shared(tmp_path_factory)


@pytest.fixture(scope="module")
def random(runs, tmp_path_factory):
    """A run of one checkpoint that began with random weights and has no keep_best."""
    run, kept = tmp_path_factory.mktemp("random"), "checkpoints/000002"
    shutil.copytree(runs / "part" / kept, run / kept)
    config = tiny_runs.make_config(runs, model_init=None, keep_best=None)
    (run / "config.json").write_text(load.to_json(load.typed(config)))
    (run / "final.npz").touch()
    path = run / kept / train_checkpoint.METADATA / train_checkpoint.METADATA
    content = json.loads(path.read_text())["content"] | {"base": {"seed": 0}, "value": None}
    path.write_text(json.dumps({"sha256": train_checkpoint.sha256(content), "content": content}))
    return run


@pytest.fixture
def score(runs, tmp_path, capsys):
    """Returns the validation loss that the evaluate door finds: (run, more words)."""

    def score(run: pathlib.Path, *words: str) -> float:
        return tiny_runs.score(runs, tmp_path / "out", capsys, f"--run={run}", *words)

    return score


@pytest.mark.parametrize(("run", "chosen"), [("part", "best"), ("lora", "2")])
def test_a_checkpoint_scores_as_training_found_at_its_step(runs, run, chosen, score):
    expected = tiny_runs.losses(runs / run)
    number = min(expected, key=expected.__getitem__) if chosen == "best" else int(chosen)
    assert number != STEPS
    found = score(runs / run, f"--checkpoint={chosen}")
    assert found == pytest.approx(expected[number], rel=1e-5)


@pytest.mark.parametrize("words", [("--checkpoint=2",), ("--weights={run}/checkpoints/000002",)])
def test_the_base_of_a_checkpoint_is_said_unless_it_is_given(runs, words, tmp_path, capsys):
    run, out = runs / "part", tmp_path / "out"
    given = [f"--run={run}", *(word.format(run=run) for word in words)]
    line = f"{run}/checkpoints/000002: what was not trained comes from its base {runs}/base.npz"
    given += [f"--data={runs}/train.jsonl", "--eval.decode=False", f"--out={out}"]
    evaluate.main(given)
    assert line in capsys.readouterr().err.splitlines()
    evaluate.main([*given, f"--base={runs}/base.npz"])
    assert line not in capsys.readouterr().err
    convert.main([str(run), str(tmp_path / "whole.npz"), "--checkpoint", "2"])
    assert line in capsys.readouterr().err.splitlines()


def test_a_checkpoint_is_named_by_its_step_or_its_folder(runs, score):
    run = runs / "part"
    expected = pytest.approx(tiny_runs.losses(run)[2], rel=1e-5)
    assert score(run, "--checkpoint=2") == expected
    assert score(run, f"--weights={run}/checkpoints/000002") == expected


@pytest.mark.parametrize("run", ["part", "lora"])
def test_the_last_checkpoint_is_the_final_file_bit_for_bit(runs, run, tmp_path):
    converted, final = tmp_path / "last.npz", tmp_path / "final.npz"
    convert.main([str(runs / run), str(converted), "--checkpoint", "last"])
    convert.main([str(runs / run), str(final)])
    assert checksums.of_file(converted) == checksums.of_file(final)
    assert npz.read_header(converted).metadata == npz.read_header(final).metadata


def test_a_checkpoint_has_the_position_embeddings_that_its_run_resampled(runs, tmp_path):
    base, run, converted = tmp_path / "base.npz", tmp_path / "run", tmp_path / "last.npz"
    tiny_runs.write_base(base, tiny_runs.make_config(runs, res=42))
    changes = dict(tiny_runs.NOTHING_ON_THE_WAY, total_steps=1, ckpt_steps=1, model_init=str(base))
    config = tiny_runs.make_config(runs, res=28, **changes)
    config.model.img.resample_posemb = True
    whole_run.train(load.typed(config), run)
    convert.main([str(run), str(converted), "--checkpoint", "last"])
    assert npz.read_header(converted).arrays["img/pos_embedding"].shape == (1, 4, 16)
    assert checksums.of_file(converted) == checksums.of_file(run / "final.npz")


def test_factors_of_a_checkpoint_become_an_adapter_and_are_merged(runs, tmp_path, capsys):
    run, merged = str(runs / "lora"), tmp_path / "merged.npz"
    convert.main([run, str(tmp_path / "peft"), "--checkpoint", "2"])
    num_factors = len(npz.read_header(runs / "lora" / "final.npz").arrays)
    assert json.loads(capsys.readouterr().out)["arrays"] == num_factors
    convert.main([run, str(merged), "--checkpoint", "2", "--merge"])
    assert not any(map(names.is_factor, npz.read_header(merged).arrays))


def test_a_checkpoint_answers_in_a_notebook_as_in_a_run_that_did_not_end(runs, tmp_path):
    run, stopped = runs / "part", tmp_path / "stopped"
    shutil.copytree(run, stopped)
    (stopped / "final.npz").unlink()
    image, decoding = np.zeros((14, 14, 3), np.uint8), {"max_new_tokens": 2}
    answers = [
        paligemma_jax.load(str(run), decoding=decoding, **chosen).predict(image, "cat")
        for run, chosen in ((run, {}), (stopped, {"checkpoint": "last"}))
    ]
    assert answers[0] == answers[1]
    with pytest.raises(ValueError, match=r"run did not end.* checkpoint=last"):
        paligemma_jax.load(str(stopped))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint=7"], r"no such one. .*holds 1 \(val/loss .*\), 2 .*, 3 .*, 4 \("),
        (["--checkpoint=newest"], "expected 'best', 'last' or a number of steps"),
        (["--checkpoint=2", "--weights=none"], "--checkpoint is of a run: .*no --weights"),
        (["--checkpoint=2", "--base={0}/part/final.npz"], "is another file: give the ri"),
    ],
)
def test_what_is_not_there_or_does_not_belong_is_said(runs, words, message, score):
    with pytest.raises(ValueError, match=message):
        score(runs / "part", *(word.format(runs) for word in words))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("best", "the run had no keep_best. .*holds 2"),
        ("2", "frozen weights are random ones of seed 0, .* in no file"),
    ],
)
def test_what_a_run_from_random_weights_has_not_is_said(random, chosen, message, score):
    with pytest.raises(ValueError, match=message):
        score(random, f"--checkpoint={chosen}")


def test_damage_is_found_where_it_is_read(runs, tmp_path, score):
    damaged = tmp_path / "damaged"
    shutil.copytree(runs / "part", damaged)
    checkpoint = damaged / "checkpoints" / "000003"
    largest = max((p for p in checkpoint.glob("trainable/**/d/*")), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(ValueError, match=r"000003 is damaged: trainable"):
        score(damaged, "--checkpoint=3")
    largest.unlink()
    with pytest.raises(ValueError, match=r"000003 is damaged: .* has 0 bytes"):
        score(damaged, "--checkpoint=3")


def test_training_begins_with_a_file_and_not_with_a_checkpoint(runs, tmp_path):
    config = tiny_runs.make_config(runs, model_init=f"{runs}/part/checkpoints/000002")
    with pytest.raises(
        ValueError, match=r"a run begins with a file; convert RUN FILE.npz --checkp"
    ):
        whole_run.train(load.typed(config), tmp_path / "not_made")


def test_a_base_without_factors_does_not_pass_for_a_run_with_lora(runs, score):
    run, base = runs / "lora", f"--weights={runs}/base.npz"
    with pytest.raises(ValueError, match=r"none of the LoRA factors .*--config.lora.targets=None"):
        score(run, base)
    plain = score(run, base, "--config.lora.targets=None")
    assert np.isfinite(plain) and plain != score(run)
    with pytest.raises(ValueError, match=r"lora.rank=4 has no effect without lora.targets"):
        score(run, base, "--config.lora.targets=None", "--config.lora.rank=4")
