"""Config files that are written load, and take nothing that they do not know."""

import re

import pytest

from paligemma_jax import configs, new
from paligemma_jax.settings import load, template


@pytest.mark.parametrize("model", ["paligemma2-3b", "paligemma1-3b", *template.SIZES])
def test_a_written_config_is_what_was_asked_for(model, tmp_path):
    method = None if model in template.SIZES else "lora"
    given = {"lr": 0.5, "lr_mults": [("llm/.*", 2.0)], "evals.valid.batch_size": 3, "optax": {}}
    config = template.Config(
        title="Mine.",
        name="mine",
        start=template.start_from(model, method),
        task="caption",
        data="my 'data'",
        valid=None if method else "val.jsonl",
        keys={**given, "input.augment.scale": (0.5, 2.0)},
    )
    template.save(tmp_path / "mine.py", template.write(config, tmp_path / "mine.py"))
    settings = load.load(f"{tmp_path}/mine.py:epochs=2.5")
    assert settings.input.data.fname == "my 'data'/train.jsonl"
    assert (settings.task, settings.lr, settings.total_epochs) == ("caption", 0.5, 2.5)
    assert settings.lr_mults == (("llm/.*", 2.0),) and settings.evals["valid"].batch_size == 3
    assert settings.evals["valid"].fname == ("input" if method else "my 'data'/val.jsonl")
    assert settings.input.augment.scale == (0.5, 2.0)
    assert (settings.model_init is None) == (method is None)
    assert (settings.lora.targets is None) == (method is None)
    assert load.load(f"{tmp_path}/mine.py:overfit").stop_at
    with pytest.raises(ValueError, match=r"'ovrfit' is not known. Did you mean 'overfit'"):
        load.load(f"{tmp_path}/mine.py:ovrfit")
    assert all(len(line) <= 100 for line in (tmp_path / "mine.py").read_text().splitlines()[10:])


@pytest.mark.parametrize(
    ("model", "method", "res", "message"),
    [
        ("paligemma-3b", None, None, "Did you mean 'paligemma2-3b'"),
        ("paligemma2-3b", "lore", None, "Did you mean 'lora'"),
        ("paligemma2-3b", None, 300, "has weights for 224, 448, 896 pixels"),
        ("tiny", "lora", None, "'tiny' starts from nothing, and all of it trains"),
    ],
)
def test_what_no_run_can_start_from_is_named(model, method, res, message):
    with pytest.raises(ValueError, match=message):
        template.start_from(model, method, res)


def test_new_writes_a_file_and_replaces_none(tmp_path):
    path = str(tmp_path / "a" / "mine.py")
    new.main([path, "--task=segmentation", "--model=paligemma2-10b", "--res=448"])
    settings = load.load(path)
    assert (settings.task, settings.model_init, settings.res) == ("segmentation", "pt_10b_448", 448)
    for name, message in ((path, "is there already"), (str(tmp_path / "mine"), r"write .*mine.py")):
        with pytest.raises(ValueError, match=message):
            new.main([name])


def test_the_shipped_configs_are_listed_and_copied(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs.main([])
    names = re.findall(r"^([\w/]+) +\S", capsys.readouterr().out, re.MULTILINE)
    assert names == list(load.SHIPPED)
    configs.main(["digits"])
    assert load.load("digits.py:steps=7").total_steps == 7
    configs.main(["vqa_448", "sub/mine.py"])
    assert (tmp_path / "sub/mine.py").exists()
    with pytest.raises(ValueError, match="is there already: choose another name"):
        configs.main(["digits"])
