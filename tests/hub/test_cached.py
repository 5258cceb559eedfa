"""What is on the disk already is found without a network."""

import io

import huggingface_hub.constants
import numpy as np
import pytest

from paligemma_jax.hub import cached

KAGGLE = "kaggle://google/paligemma/jax/paligemma-3b-pt-224/1/paligemma-3b-pt-224.f16.npz"
HUGGING_FACE = "hf://google/paligemma-3b-pt-224-jax/paligemma-3b-pt-224.f16.npz@float16"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder that every cache is below."""
    monkeypatch.setenv("PALIGEMMA_JAX_CACHE", f"{tmp_path}/own")
    monkeypatch.setenv("KAGGLEHUB_CACHE", f"{tmp_path}/kaggle")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", f"{tmp_path}/hf")
    monkeypatch.delenv("BV_GEMMA_DIR", raising=False)
    return tmp_path


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("gs://bucket/folder/a.model", "own/gs/bucket/folder/a.model"),
        ("https://host/a.npz", "own/https/host/a.npz"),
    ],
)
def test_what_was_fetched_is_found(home, source, place):
    assert cached.find(source) is None
    file = put(home / place)
    assert cached.find(source) == file
    assert cached.cache_of(source) == home / "own"


def test_a_kaggle_file_is_found_once_it_is_complete(home):
    folder = home / "kaggle" / "models" / "google" / "paligemma" / "jax" / "paligemma-3b-pt-224"
    file = put(folder / "1" / "paligemma-3b-pt-224.f16.npz")
    assert cached.find(KAGGLE) is None
    put(folder / ".complete" / "1" / f"{file.name}.complete")
    assert cached.find(KAGGLE) == cached.find("pt_224.f16") == file
    assert cached.cache_of(KAGGLE) == home / "kaggle"


def test_a_hugging_face_file_is_found_by_its_revision(home):
    repository = home / "hf" / "models--google--paligemma-3b-pt-224-jax"
    assert cached.find(HUGGING_FACE) is None
    put(repository / "refs" / "float16").write_text("abc")
    file = put(repository / "snapshots" / "abc" / "paligemma-3b-pt-224.f16.npz")
    assert cached.find(HUGGING_FACE) == cached.find("pt_224.f16") == file
    assert cached.find(HUGGING_FACE.replace("float16", "main")) is None
    assert cached.cache_of(HUGGING_FACE) == home / "hf"


def test_a_published_name_is_found_in_big_visions_folder(home, monkeypatch):
    monkeypatch.setenv("BV_GEMMA_DIR", str(home / "weights"))
    assert cached.find("pt_224") is None
    file = put(home / "weights" / "pt_224.npz")
    assert cached.find("pt_224") == file


def test_a_path_is_found_where_it_is(home):
    assert cached.find(str(put(home / "a.npz"))) == home / "a.npz"
    assert cached.find(str(home / "b.npz")) is None


def test_a_file_in_parts_is_found_by_its_first_one_once_all_are_there(home):
    whole = io.BytesIO()
    np.savez(whole, a=np.arange(300.0))
    first, second = (home / "own" / "gs" / "b" / f"a.npz.part{n}" for n in (0, 1))
    put(first).write_bytes(whole.getvalue()[:1000])
    assert cached.find("gs://b/a.npz") is None
    second.write_bytes(whole.getvalue()[1000:])
    assert cached.find("gs://b/a.npz") == first
