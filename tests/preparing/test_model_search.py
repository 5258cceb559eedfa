"""What a run without a config starts from: dimensions and tokenizer are those of the weights."""

import pathlib
import shutil
import sys

import pytest

from paligemma_jax.assembly import assembly
from paligemma_jax.preparing import model_search
from paligemma_jax.settings import load, presets, template

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import tiny_runs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Random weights of a tiny model with factors or without, and a tokenizer."""
    monkeypatch.chdir(tmp_path)
    tiny_runs.write_data(tmp_path)
    (tmp_path / "w").mkdir()
    tiny_runs.write_base(tmp_path / "w/base.npz", tiny_runs.make_config(tmp_path))
    config = tiny_runs.make_config(tmp_path, **{**tiny_runs.LORA, "lora.alpha": 3.0})
    tiny_runs.write_base(tmp_path / "w/lora.npz", config)
    shutil.copy("tokenizer.model", "w/tokenizer.model")
    return tmp_path


def settings_of(start, folder):
    path = folder / f"{len(list(folder.glob('*.py')))}.py"
    template.save(path, template.write(template.Config(title="A.", name="a", start=start), path))
    return load.load(str(path))


def test_weights_say_their_dimensions_and_bring_their_tokenizer(folder):
    settings = settings_of(model_search.find("w/base.npz", "full", None), folder)
    assert settings.model_init == str(folder / "w/base.npz")
    assert settings.tokenizer == str(folder / "w/tokenizer.model")
    assert settings.model.llm.dims["width"] == settings.model.img.dims["width"] == 16
    assert (settings.res, settings.optax_name, settings.lora.targets) == (14, "scale_by_adam", None)
    built = assembly.assemble(settings)
    assembly.lay_out(built, assembly.find_weights(settings, settings.model_init))


def test_factors_are_trained_on_as_they_act(folder):
    settings = settings_of(model_search.find("w/lora.npz", None, 28), folder)
    assert (settings.lora.rank, settings.lora.alpha) == (2, 3.0)
    assert settings.optax_name == "scale_by_adam" and settings.model.img.resample_posemb
    built = assembly.assemble(settings)
    assembly.lay_out(built, assembly.find_weights(settings, settings.model_init))
    with pytest.raises(ValueError, match=r"w/lora.npz has LoRA factors, which train on: leave"):
        model_search.find("w/lora.npz", "attention", None)


@pytest.mark.parametrize(
    ("name", "res", "expected"),
    [
        ("pt_3b_448", None, ("pt_3b_448", 448, False)),
        ("pt_224.bf16", 448, ("pt_224.bf16", 448, True)),
        ("paligemma2-28b", 896, ("pt_28b_896", 896, False)),
    ],
)
def test_names_of_weights_say_their_model(name, res, expected, tmp_path):
    settings = settings_of(model_search.find(name, None, res), tmp_path)
    img = settings.model.img
    assert (settings.model_init, settings.res, img.resample_posemb) == expected


def test_what_is_no_weights_names_the_option(folder):
    (folder / "notes").mkdir()
    with pytest.raises(ValueError, match="expected weights") as caught:
        model_search.find("notes", None, None)
    assert "--model names the file, here 'notes'" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match=r"--model w/bas.npz is not known"):
        model_search.find("w/bas.npz", None, None)


def test_a_tokenizer_beside_weights_is_theirs_unless_the_settings_name_one(folder):
    settings = load.typed(presets.finetune(model="paligemma2-3b"))
    beside = str(folder / "w/tokenizer.model")
    assert assembly.choose_tokenizer(settings, "w/base.npz") == "w/tokenizer.model"
    assert assembly.choose_tokenizer(settings, "w") == "w/tokenizer.model"
    for source in (None, "pt_3b_224", "hf://a/b/c.npz", "w/none.npz"):
        assert assembly.choose_tokenizer(settings, source) == settings.tokenizer
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_config.json").write_text('{"base_model_name_or_path": "w"}')
    assert assembly.choose_tokenizer(settings, "adapter") == "w/tokenizer.model"
    own = load.change(settings, [f"tokenizer={beside}"])
    assert assembly.choose_tokenizer(own, "w/base.npz") == beside
