"""https and gs addresses, against a server on this machine."""

import pathlib

import fsspec
import pytest

from paligemma_jax.hub import addresses

pytestmark = pytest.mark.usefixtures("nowhere")

DATA = b"weights"
SECRET = "KGAT_0123456789"  # message_of looks for it


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
