"""Files that are published in parts, from stand-ins for each of the hubs, and from this machine."""

import io

import huggingface_hub
import kagglehub
import numpy as np
import pytest
import requests
from huggingface_hub import errors as hf_errors

from paligemma_jax.checkpoints import npz
from paligemma_jax.hub import addresses

pytestmark = pytest.mark.usefixtures("nowhere")

PARAMS = {"a": np.arange(300.0), "b": np.ones(3, "float16")}


@pytest.fixture(scope="module")
def pieces():
    """The bytes of an npz file in three parts."""
    whole = io.BytesIO()
    np.savez(whole, **PARAMS)
    data = whole.getvalue()
    return [data[:1000], data[1000:2000], data[2000:]]


def assert_read(path, first="a.npz.part0"):
    assert path.name == first
    params = npz.read(path)
    assert all(np.array_equal(params[name], PARAMS[name]) for name in PARAMS)


@pytest.mark.parametrize("scheme", ["https", "gs"])
def test_parts_are_fetched_once_and_then_found(server, tmp_path, monkeypatch, pieces, scheme):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    for number, piece in enumerate(pieces):
        server.serve(f"/b/a.npz.part{number}", piece)
    source = "gs://b/a.npz" if scheme == "gs" else f"{server.url}/b/a.npz"
    for asked in (source, f"{source}.part0", f"{source}.part2"):
        assert_read(addresses.resolve(asked, cache_dir=tmp_path))
    names = [path.rpartition("/")[2] for path, _ in server.requests]
    assert names == ["a.npz", "a.npz.part0", "a.npz.part1", "a.npz.part2"]


def test_parts_of_an_address_with_a_query_keep_it(server, tmp_path, pieces):
    for number, piece in enumerate(pieces):
        server.serve(f"/a.npz.part0{number}", piece)
    assert_read(addresses.resolve(f"{server.url}/a.npz?v=2", cache_dir=tmp_path), "a.npz.part00")
    assert server.requests[-1][0] == "/a.npz.part02?v=2"


def test_a_part_that_was_not_published_is_named(server, tmp_path, pieces, message_of):
    for number in (0, 1):
        server.serve(f"/a.npz.part{number}", pieces[number])
    message = message_of(f"{server.url}/a.npz", cache_dir=tmp_path)
    assert "/a.npz.part2 is not there, and the parts before it are no whole file" in message


def test_what_is_there_neither_whole_nor_in_parts_is_named_itself(server, tmp_path, message_of):
    message = message_of(f"{server.url}/a.npz", cache_dir=tmp_path)
    assert "/a.npz: the server answers 404" in message


def not_found(kind):
    response = requests.Response()
    response.status_code = 404
    if kind is kagglehub.exceptions.KaggleApiHTTPError:
        return kind("404", response=response)
    error = kind.__new__(kind)
    OSError.__init__(error, "404")
    error.response = response
    return error


def test_kaggle_is_asked_for_one_part_after_the_other(tmp_path, monkeypatch, pieces):
    def download(handle, file):
        assert handle == "google/paligemma-2/jax/paligemma2-28b-pt-224/1"
        number = file.removeprefix("a.npz.part")
        if number not in ("0", "1", "2"):
            raise not_found(kagglehub.exceptions.KaggleApiHTTPError)
        (tmp_path / file).write_bytes(pieces[int(number)])
        return tmp_path / file

    monkeypatch.setattr(kagglehub, "model_download", download)
    assert_read(addresses.resolve("kaggle://google/paligemma-2/jax/paligemma2-28b-pt-224/1/a.npz"))


def test_hugging_face_is_asked_for_one_part_after_the_other(tmp_path, monkeypatch, pieces):
    names = ["a.npz.partaa", "a.npz.partab", "a.npz.partac"]

    def download(repository, file, revision):
        assert (repository, revision) == ("google/m-jax", "bfloat16")
        if file not in names:
            raise not_found(hf_errors.RemoteEntryNotFoundError)
        (tmp_path / file).write_bytes(pieces[names.index(file)])
        return tmp_path / file

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: names)
    assert_read(addresses.resolve("hf://google/m-jax/a.npz@bfloat16"), "a.npz.partaa")


def test_parts_on_this_machine_are_found_by_the_files_name(tmp_path, monkeypatch, pieces):
    for number, piece in enumerate(pieces):
        (tmp_path / f"pt_28b_224.bf16.npz.part{number}").write_bytes(piece)
    first = "pt_28b_224.bf16.npz.part0"
    assert_read(addresses.resolve(tmp_path / "pt_28b_224.bf16.npz"), first)
    assert_read(addresses.resolve(tmp_path / first), first)
    monkeypatch.setenv("BV_GEMMA_DIR", str(tmp_path))
    assert_read(addresses.resolve("pt_28b_224"), first)
