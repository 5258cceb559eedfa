"""A run without a config file: what is written into its folder, and what the command then does."""

import pathlib

import pytest

from paligemma_jax import __main__, finetune
from paligemma_jax.data import tokens
from paligemma_jax.preparing import starting
from paligemma_jax.runs import whole_run
from paligemma_jax.settings import load


@pytest.fixture
def started(monkeypatch):
    """What was trained: (settings, folder) of each run, none of which is."""
    runs = []

    def note(settings, folder, **_):
        runs.append((settings, folder))

    monkeypatch.setattr(whole_run, "train", note)
    return runs


def test_one_line_writes_a_config_that_trains_a_model_from_nothing(place, write_coco, started):
    write_coco("data/coins", 20)
    finetune.main(["--data=data/coins", "--model=tiny", "--config.lr=0.5", "--batch_size=4"])
    ((settings, folder),) = started
    assert folder == pathlib.Path("runs/coins")
    again = load.load("runs/coins/config.py")
    assert again == settings and (again.lr, again.task) == (0.5, "detection")
    assert (again.input.batch_size, again.res, again.model_init) == (4, 112, None)
    assert again.input.data.fname == str(place / "runs/coins/data/train.jsonl")
    assert again.evals["valid"].fname == str(place / "runs/coins/data/valid.jsonl")
    tokenizer = tokens.load_tokenizer(again.tokenizer)
    assert again.input.text_len % 8 == 0
    assert tokenizer.vocab_size < 2048
    assert again.total_epochs == starting.SCRATCH_EPOCHS
    # What was written is edited, and moved with its data.
    (place / "runs/coins").rename(place / "moved")
    assert load.load("moved/config.py:epochs=2").input.data.fname.startswith(f"{place}/moved/data")


def test_the_same_command_goes_on_and_another_is_refused(place, write_coco, started):
    write_coco("data/coins", 8)
    words = ["--data", "data/coins", "--model", "tiny", "--workdir", "runs/a"]
    finetune.main(words)
    made = (place / "runs/a/data/train.jsonl").stat().st_mtime_ns
    finetune.main([*words, "--resume_anyway"])
    assert len(started) == 2 and started[0][0] == started[1][0]
    assert (place / "runs/a/data/train.jsonl").stat().st_mtime_ns == made
    with pytest.raises(
        ValueError, match=r"(?s)was written for: .*--model tiny.*choose another --work"
    ):
        finetune.main([*words, "--epochs", "3"])


def test_rows_of_ours_are_not_copied(place, write_jsonl, started):
    write_jsonl("data/cats/train.jsonl", 10)
    finetune.main(["--data=data/cats", "--model=small", "--workdir=runs/cats", "--epochs=3"])
    ((settings, _),) = started
    assert settings.input.data.image_dir == str(place / "data/cats")
    assert settings.evals["valid"].image_dir == str(place / "data/cats")
    assert (settings.total_epochs, settings.input.batch_size) == (3.0, 8)
    assert pathlib.Path(settings.tokenizer).parent == place / "runs/cats/data"
    assert not list((place / "runs").rglob("*.png"))


def test_a_released_model_is_trained_as_asked(place, write_jsonl, started, monkeypatch):
    write_jsonl("data/cats/train.jsonl", 6)
    write_jsonl("data/cats/valid.jsonl", 6, first=9)
    tokens.train_tokenizer(["detect cat"], place / "spm.model", vocab_size=1500)
    monkeypatch.setattr(starting.weights, "fetch", lambda _: place / "spm.model")
    words = ["--data=data/cats", "--model=paligemma2-10b", "--method=lora", "--res=448"]
    finetune.main([*words, "--config.lora.rank=4", "--config.evals.valid.beam_size=2"])
    ((settings, _),) = started
    assert (settings.model_init, settings.res, settings.lora.rank) == ("pt_10b_448", 448, 4)
    assert settings.lora.targets == "llm" and settings.evals["valid"].beam_size == 2
    assert (settings.total_epochs, settings.input.batch_size) == (10.0, 6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model=tinny"], "--model tinny is not known. Did you mean 'tiny'"),
        (["--model=tiny", "--config.lrr=1"], "'lrr' is not known|does not exist"),
        (["--model=tiny", "--task=detect"], "--task detect is unknown. Did you mean 'detection'"),
    ],
)
def test_what_is_wrong_leaves_no_config(place, write_coco, started, words, message):
    write_coco("data/coins", 8)
    with pytest.raises((ValueError, SystemExit), match=message):
        finetune.main(["--data=data/coins", *words])
    assert not started and not (place / "runs/coins/config.py").exists()


def test_train_is_called_with_a_config_and_without(monkeypatch):
    for words, door in (
        (["--config", "a.py"], "train"),
        (["--config=a.py"], "train"),
        (["--data", "a"], "finetune"),
        (["--help"], "train"),
        ([], "train"),
    ):
        assert __main__.choose("train", words) == door
    assert __main__.choose("evaluate", ["--data", "a"]) == "evaluate"
