"""Where each site's files come from and are kept: https and gs against a server on this machine."""

import importlib
import io
import pathlib

import fsspec
import fsspec.implementations.memory
import huggingface_hub.constants
import numpy as np
import pytest

from paligemma_jax.hub import addresses, download, sites

pytestmark = pytest.mark.usefixtures("nowhere")

DATA = b"weights"
SECRET = "KGAT_0123456789"  # message_of looks for it
KAGGLE = "kaggle://google/paligemma/jax/paligemma-3b-pt-224/1/paligemma-3b-pt-224.f16.npz"
HUGGING_FACE = "hf://google/paligemma-3b-pt-224-jax/paligemma-3b-pt-224.f16.npz@float16"


def test_a_web_address_is_fetched_once(server, tmp_path):
    url = server.serve("/sub/a.npz", DATA)
    path = addresses.resolve(url, cache_dir=tmp_path)
    assert path.read_bytes() == DATA and path.name == "a.npz"
    assert addresses.resolve(url, cache_dir=tmp_path) == path
    assert len(server.requests) == 1
    assert addresses.resolve(f"{url}?version=2", cache_dir=tmp_path) != path


def test_the_cache_folder_comes_from_the_environment(server, tmp_path, monkeypatch):
    url = server.serve("/a.npz", DATA)
    assert addresses.resolve(url).is_relative_to(tmp_path / "home/.cache/paligemma_jax")
    monkeypatch.setenv("PALIGEMMA_JAX_CACHE", str(tmp_path / "cache"))
    assert addresses.resolve(url).is_relative_to(tmp_path / "cache")


def test_a_web_address_that_needs_a_login_names_the_other_ways(server, message_of):
    message = message_of(server.serve("/a.npz", status=403))
    assert "answers 403" in message and "use kaggle:// and hf:// addresses" in message


@pytest.mark.parametrize("path", ["", "/", "/folder/", "/../../a.npz"])
def test_a_web_address_of_no_file_is_an_error(server, path):
    with pytest.raises(ValueError, match="expected the address of a file"):
        addresses.resolve(server.url + path)


def test_a_public_object_is_fetched_from_google_cloud_storage(
    server, tmp_path, monkeypatch, message_of
):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    server.serve("/big_vision/paligemma_tokenizer.model", DATA)
    path = addresses.resolve("gs://big_vision/paligemma_tokenizer.model", cache_dir=tmp_path)
    assert path == tmp_path / "gs/big_vision/paligemma_tokenizer.model"
    assert path.read_bytes() == DATA
    assert "answers 404" in message_of("gs://big_vision/other.model", cache_dir=tmp_path)


def test_a_private_object_is_fetched_with_the_users_account(server, tmp_path, monkeypatch):
    class Account:
        def get_file(self, name, path):
            assert name == "mine/a.npz"
            pathlib.Path(path).write_bytes(DATA)

    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    server.serve("/mine/a.npz", status=403)
    monkeypatch.setattr(fsspec, "filesystem", lambda _: Account())
    path = addresses.resolve("gs://mine/a.npz", cache_dir=tmp_path)
    assert path.read_bytes() == DATA and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (ImportError("gcsfs"), "is not public: pip install gcsfs"),
        (FileNotFoundError("mine/a.npz"), "is not there, or not for your account"),
        (RuntimeError(f"token {SECRET}"), "set GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_a_private_object_without_access_says_what_to_do(
    server, monkeypatch, error, part, message_of
):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    server.serve("/mine/a.npz", status=403)

    def without_access(_):
        raise error

    monkeypatch.setattr(fsspec, "filesystem", without_access)
    assert part in message_of("gs://mine/a.npz")


# Files that are on the disk already


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
    assert addresses.find(source) is None
    file = put(home / place)
    assert addresses.find(source) == file
    assert addresses.cache_of(source) == home / "own"


def test_a_kaggle_file_is_found_once_it_is_complete(home):
    folder = home / "kaggle" / "models" / "google" / "paligemma" / "jax" / "paligemma-3b-pt-224"
    file = put(folder / "1" / "paligemma-3b-pt-224.f16.npz")
    assert addresses.find(KAGGLE) is None
    put(folder / ".complete" / "1" / f"{file.name}.complete")
    assert addresses.find(KAGGLE) == addresses.find("pt_224.f16") == file
    assert addresses.cache_of(KAGGLE) == home / "kaggle"


def test_a_hugging_face_file_is_found_by_its_revision(home):
    repository = home / "hf" / "models--google--paligemma-3b-pt-224-jax"
    assert addresses.find(HUGGING_FACE) is None
    put(repository / "refs" / "float16").write_text("abc")
    file = put(repository / "snapshots" / "abc" / "paligemma-3b-pt-224.f16.npz")
    assert addresses.find(HUGGING_FACE) == addresses.find("pt_224.f16") == file
    assert addresses.find(HUGGING_FACE.replace("float16", "main")) is None
    assert addresses.cache_of(HUGGING_FACE) == home / "hf"


def test_a_published_name_is_found_in_big_visions_folder(home, monkeypatch):
    monkeypatch.setenv("BV_GEMMA_DIR", str(home / "weights"))
    assert addresses.find("pt_224") is None
    file = put(home / "weights" / "pt_224.npz")
    assert addresses.find("pt_224") == file


def test_a_path_is_found_where_it_is(home):
    assert addresses.find(str(put(home / "a.npz"))) == home / "a.npz"
    assert addresses.find(str(home / "b.npz")) is None


def test_a_file_in_parts_is_found_by_its_first_one_once_all_are_there(home):
    whole = io.BytesIO()
    np.savez(whole, a=np.arange(300.0))
    first, second = (home / "own" / "gs" / "b" / f"a.npz.part{n}" for n in (0, 1))
    put(first).write_bytes(whole.getvalue()[:1000])
    assert addresses.find("gs://b/a.npz") is None
    second.write_bytes(whole.getvalue()[1000:])
    assert addresses.find("gs://b/a.npz") == first


def test_s3_is_fetched_once_with_progress_and_what_is_missing_is_said(tmp_path, monkeypatch):
    class InMemory(fsspec.implementations.memory.MemoryFileSystem):
        protocol = "s3"
        store, pseudo_dirs = {}, [""]

        @classmethod
        def _strip_protocol(cls, path):
            return super()._strip_protocol(str(path).replace("s3://", "memory://"))

    known = importlib.import_module("fsspec.registry")._registry
    monkeypatch.setitem(known, "s3", InMemory)
    InMemory().pipe_file("/bucket/w.npz", b"x" * 9)
    told, fetch = [], sites.SITES["s3"].fetch
    for _ in range(2):
        path = fetch("s3://bucket/w.npz", tmp_path, lambda *now: told.append(now))
    assert path == tmp_path / "s3/bucket/w.npz" and path.read_bytes() == b"x" * 9
    assert told[-1] == (9, 9)
    with pytest.raises(download.DownloadError, match="s3://bucket/no is not there"):
        fetch("s3://bucket/no", tmp_path, None)

    def missing(*_, **__):
        raise ImportError

    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(download.DownloadError, match=r"pip install 'paligemma-jax\[s3\]'"):
        fetch("s3://bucket/other", tmp_path, None)
