"""Weights in folders: a run's file, and what is converted from transformers and PEFT, once."""

import contextlib
import json
import os
import shutil

import numpy as np
import pytest

from paligemma_jax import convert
from paligemma_jax.assembly import weights
from paligemma_jax.checkpoints import npz
from paligemma_jax.hub import addresses


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALIGEMMA_JAX_CACHE", f"{tmp_path}/cache")
    npz.write(tmp_path / "base.npz", {"a": np.zeros(3, np.float32)}, metadata={})
    return tmp_path


@pytest.fixture
def converted(monkeypatch):
    """What was converted: (folder, base) each; the npz files hold the number of the conversion."""
    asked = []

    def write(folder, path, base):
        asked.append((folder.name, base and base.name))
        npz.write(path, {"n": np.full(1, len(asked), np.float32)}, metadata={})

    monkeypatch.setattr(addresses, "_convert", write)
    return asked


def make(folder, *, base=None):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"tensors")
    name, content = (
        ("adapter_config", {"base_model_name_or_path": base}) if base else ("config", {})
    )
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def find(folder, base=None):
    named = []

    def fetch(name):
        named.append(name)
        return folder.parent / "base.npz"

    path, below = addresses.npz_of_folder(
        folder, base, fetch=fetch, working=lambda _: contextlib.nullcontext()
    )
    return path, below, named


def test_a_folder_is_converted_once_until_it_changes(place, converted):
    folder = make(place / "hf")
    path, base, _ = find(folder)
    assert base is None and path.is_relative_to(place / "cache/converted")
    assert find(folder)[0] == path and converted == [("hf", None)]
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert find(folder)[0] != path and len(converted) == 2


def test_a_file_that_is_cut_off_is_converted_again(place, converted):
    path, *_ = find(make(place / "hf"))
    path.write_bytes(path.read_bytes()[:40])
    assert find(place / "hf")[0] == path and len(converted) == 2
    assert npz.read(path)["n"] == 2


@pytest.mark.parametrize(
    ("named", "asked"), [("google/paligemma2-3b-pt-448", "pt_3b_448"), ("hf", "hf")]
)
def test_the_base_of_an_adapter_is_the_one_that_it_names(place, converted, named, asked):
    make(place / "hf")
    folder = make(place / "adapter", base=named)
    path, base, fetched = find(folder)
    assert (base.name, fetched, converted) == ("base.npz", [asked], [("adapter", "base.npz")])
    assert find(folder, place / "base.npz")[::2] == (path, [])
    npz.write(place / "other.npz", {"a": np.ones(3, np.float32)}, metadata={})
    assert find(folder, place / "other.npz")[0] != path


def test_an_adapter_whose_base_is_not_known_asks_for_it(place):
    folder = make(place / "adapter", base="me/my-model")
    with pytest.raises(ValueError, match=r"on 'me/my-model', which .*: give its base, as --base"):
        find(folder)


def test_a_run_is_its_final_file_and_one_that_did_not_end_says_so(place):
    run = place / "run"
    run.mkdir()
    for name in ("config.json", "metrics.jsonl"):
        (run / name).touch()
    with pytest.raises(ValueError, match=r"run that did not end, .* or name one of its checkpoint"):
        find(run)
    shutil.copy("base.npz", run / "final.npz")
    assert find(run)[0] == run / "final.npz"
    assert list(weights.find("run").arrays) == ["a"]


def test_a_folder_of_something_else_says_what_it_holds(place):
    (place / "notes").mkdir()
    (place / "notes/a.txt").touch()
    with pytest.raises(ValueError, match=r"expected weights: a run \(final.npz\).* holds a.txt"):
        weights.find("notes")


@pytest.mark.slow
def test_folders_are_found_as_convert_writes_them(place, reference_folder):
    hf, adapter = reference_folder / "hf_pg2", reference_folder / "lora_pg2" / "trained"
    convert.main([str(hf), "hf.npz"])
    convert.main([str(adapter), "lora.npz", "--base", "hf.npz"])
    whole, factors = weights.find(str(hf)), weights.find(str(adapter), str(hf))
    for written, read in ((npz.read(place / "hf.npz"), whole), (npz.read("lora.npz"), factors)):
        arrays = read.read(written)
        assert all(np.array_equal(arrays[name], written[name]) for name in written)
    assert factors.metadata["lora"]["rank"] == 2 and factors.base.path == whole.path
    broken = place / "broken"
    shutil.copytree(hf, broken)
    (broken / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"broken cannot be converted: .*config.json: model_type"):
        weights.find(str(broken))
