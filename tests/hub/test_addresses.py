"""Names and hub addresses to local files, against stand-ins for the hubs' clients.

Each error must say what is missing and where to get it, and never show a key.
"""

import io
import pathlib

import huggingface_hub
import kagglehub
import numpy as np
import pytest
import requests
from huggingface_hub import errors as hf_errors

from paligemma_jax.checkpoints import npz
from paligemma_jax.hub import addresses, download, sites

pytestmark = pytest.mark.usefixtures("nowhere")

DATA = b"weights"
SECRET = "KGAT_0123456789"  # message_of looks for it
KAGGLE = "kaggle://google/paligemma/jax/paligemma-3b-pt-224"
HUGGING_FACE = "hf://google/paligemma-3b-pt-224-jax/paligemma-3b-pt-224.npz"


@pytest.fixture
def kaggle(monkeypatch):
    """Puts `answer` (called with handle and file) in kagglehub's place; returns what was asked."""

    def install(answer):
        monkeypatch.setattr(kagglehub, "model_download", answer)

    return install


@pytest.fixture
def hugging_face(monkeypatch):
    def install(answer, files=()):
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", answer)
        monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: list(files))

    return install


def fails(error):
    def raise_it(*args, **kwargs):
        raise error

    return raise_it


def kaggle_error(status):
    response = requests.Response()
    response.status_code = status
    url = f"https://storage.googleapis.com/kaggle?X-Goog-Signature={SECRET}"
    return kagglehub.exceptions.KaggleApiHTTPError(f"{status} for {url}", response=response)


def hf_error(kind, status):
    response = requests.Response()
    response.status_code = status
    error = kind.__new__(kind)
    OSError.__init__(error, f"{status} for https://huggingface.co/x?token={SECRET}")
    error.response = response
    return error


# Paths and names


def test_a_path_is_returned_as_it_is(tmp_path, monkeypatch):
    file = tmp_path / "a.npz"
    file.write_bytes(DATA)
    assert addresses.resolve(file) == addresses.resolve(str(file)) == file
    monkeypatch.setenv("HOME", str(tmp_path))
    assert addresses.resolve("~/a.npz") == file


def test_an_unknown_name_shows_the_near_misses(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither a file nor .* Nearest: pt_224\.f16"):
        addresses.resolve("pt_224_f16")
    (tmp_path / "final.npz").write_bytes(DATA)
    with pytest.raises(FileNotFoundError, match=r"Nearest: final\.npz"):
        addresses.resolve(tmp_path / "finale.npz")
    with pytest.raises(FileNotFoundError, match=r"Names: pt_224, pt_224\.bf16"):
        addresses.resolve("xyz")
    with pytest.raises(FileNotFoundError, match=r"transformers' files.*'pt_3b_448'"):
        addresses.resolve("google/paligemma2-3b-pt-448")
    with pytest.raises(ValueError, match=r"hf://OWNER/REPOSITORY/FILE.*'pt_3b_448'"):
        addresses.resolve("hf://google/paligemma2-3b-pt-448")


@pytest.mark.parametrize("source", ["s4://bucket/a.npz", "ftp://host/a", "htps://host/a"])
def test_an_unknown_scheme_is_an_error(source):
    with pytest.raises(ValueError, match="expected a path or one of kaggle://, hf://"):
        addresses.resolve(source)


def test_a_file_in_bv_gemma_dir_goes_first(tmp_path, monkeypatch):
    (tmp_path / "pt_3b_224.bf16.npz").write_bytes(DATA)
    monkeypatch.setenv("BV_GEMMA_DIR", f"{tmp_path}/")
    assert addresses.resolve("pt_3b_224") == tmp_path / "pt_3b_224.bf16.npz"


def test_a_name_is_fetched_where_there_is_a_key(kaggle, hugging_face, monkeypatch):
    kaggle(lambda handle, file: f"/kaggle/{handle}/{file}")
    hugging_face(lambda repository, file, revision: f"/hf/{repository}/{revision}/{file}")
    at_kaggle = "/kaggle/google/paligemma/jax/paligemma-3b-pt-224/1/paligemma-3b-pt-224.f16.npz"
    at_hf = "/hf/google/paligemma-3b-pt-224-jax/float16/paligemma-3b-pt-224.f16.npz"
    assert addresses.resolve("pt_224.f16") == pathlib.Path(at_kaggle)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: SECRET)
    assert sites.has_credentials() == {"kaggle": False, "hf": True}
    assert addresses.resolve("pt_224.f16") == pathlib.Path(at_hf)
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setenv("KAGGLE_KEY", SECRET)
    assert sites.has_credentials() == {"kaggle": True, "hf": True}
    assert addresses.resolve("pt_224.f16") == pathlib.Path(at_kaggle)


def test_a_name_that_no_hub_gives_lists_every_way_to_get_it(kaggle, hugging_face, message_of):
    kaggle(fails(kaggle_error(403)))
    hugging_face(fails(hf_error(hf_errors.GatedRepoError, 401)))
    message = message_of("pt_3b_448")
    for part in ("KAGGLE_KEY", "HF_TOKEN", "set BV_GEMMA_DIR", "pt_3b_448.bf16.npz"):
        assert part in message


# Kaggle


def test_a_kaggle_address_names_model_version_and_file(kaggle):
    kaggle(lambda handle, file: f"/kaggle/{handle}/{file}")
    for version in ("", "/3"):
        expected = f"/kaggle/{KAGGLE.removeprefix('kaggle://')}{version}/sub/a.npz"
        assert addresses.resolve(f"{KAGGLE}{version}/sub/a.npz") == pathlib.Path(expected)


@pytest.mark.parametrize("address", ["kaggle://google/paligemma", "kaggle://", "kaggle://a//b/c/d"])
def test_a_broken_kaggle_address_is_an_error(address):
    with pytest.raises(ValueError, match="expected kaggle://OWNER/MODEL/FRAMEWORK/VARIATION/FILE"):
        addresses.resolve(address)


def test_a_kaggle_model_without_a_file_lists_its_files():
    with pytest.raises(
        ValueError, match=r"add one\. Files: paligemma-3b-pt-224\.npz, pali"
    ) as error:
        addresses.resolve(KAGGLE)
    assert "paligemma-3b-pt-224.f16.npz" in str(error.value)


@pytest.mark.parametrize("status", [401, 403])
def test_kaggle_without_a_key_says_how_to_get_one(kaggle, status, message_of):
    kaggle(fails(kaggle_error(status)))
    message = message_of(f"{KAGGLE}/a.npz")
    for part in (
        "no key for www.kaggle.com",
        "KAGGLE_USERNAME and KAGGLE_KEY",
        "https://www.kaggle.com/settings",
        "https://www.kaggle.com/models/google/paligemma ",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("status", "part"),
    [
        (401, "does not accept your key: create a token"),
        (403, "open https://www.kaggle.com/models/google/paligemma with your account and accept"),
        (
            404,
            "no such file (or revision), see https://www.kaggle.com/models/google/paligemma. Files",
        ),
        (500, "www.kaggle.com answers 500; try again later"),
    ],
)
def test_kaggle_with_a_key_says_what_is_wrong(kaggle, monkeypatch, status, part, message_of):
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    kaggle(fails(kaggle_error(status)))
    assert part in message_of(f"{KAGGLE}/a.npz")


def test_kaggle_out_of_reach_asks_about_the_network(kaggle, message_of):
    kaggle(fails(requests.exceptions.ConnectionError(f"...X-Goog-Signature={SECRET}")))
    assert "www.kaggle.com cannot be reached" in message_of(f"{KAGGLE}/a.npz")


def test_hugging_face_out_of_reach_is_an_error_without_asking_its_client(
    hugging_face, message_of, monkeypatch
):
    hugging_face(lambda *_, **__: pytest.fail("the client would try for half a minute"))
    monkeypatch.setattr(download, "has_route", lambda url: url != "https://huggingface.co")
    assert "huggingface.co cannot be reached" in message_of(HUGGING_FACE)


def test_a_damaged_file_from_kaggle_is_named(kaggle, message_of):
    kaggle(fails(kagglehub.exceptions.DataCorruptionError("md5")))
    assert "what arrived is damaged" in message_of(f"{KAGGLE}/a.npz")


def test_a_full_disk_is_not_taken_for_a_network(kaggle, hugging_face):
    for install, source in ((kaggle, f"{KAGGLE}/a.npz"), (hugging_face, HUGGING_FACE)):
        install(fails(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            addresses.resolve(source)


# Hugging Face


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("hf://google/m-jax/a.npz", "/hf/google/m-jax/None/a.npz"),
        ("hf://google/m-jax/sub/a.npz@bfloat16", "/hf/google/m-jax/bfloat16/sub/a.npz"),
        ("hf://google/m-jax@bfloat16/sub/a.npz", "/hf/google/m-jax/bfloat16/sub/a.npz"),
    ],
)
def test_a_hugging_face_address_names_repository_file_and_revision(hugging_face, address, expected):
    hugging_face(lambda repository, file, revision: f"/hf/{repository}/{revision}/{file}")
    assert addresses.resolve(address) == pathlib.Path(expected)


@pytest.mark.parametrize("address", ["hf://google", "hf://google/m-jax", "hf://google/m-jax/"])
def test_a_broken_hugging_face_address_is_an_error(address):
    with pytest.raises(ValueError, match="expected hf://OWNER/REPOSITORY/FILE"):
        addresses.resolve(address)


def test_hugging_face_without_a_token_says_how_to_get_one(hugging_face, message_of):
    for error in (hf_errors.GatedRepoError, hf_errors.RepositoryNotFoundError):
        hugging_face(fails(hf_error(error, 401)))
        message = message_of(HUGGING_FACE)
        for part in (
            "no key for huggingface.co",
            "HF_TOKEN",
            "https://huggingface.co/settings/tokens",
            "open https://huggingface.co/google/paligemma-3b-pt-224-jax with your account",
        ):
            assert part in message


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (hf_error(hf_errors.GatedRepoError, 403), "accept the licence"),
        (hf_error(hf_errors.HfHubHTTPError, 401), "does not accept your key"),
        (hf_error(hf_errors.RemoteEntryNotFoundError, 404), "Files: README.md, b.npz"),
        (hf_error(hf_errors.RevisionNotFoundError, 404), "no such file (or revision)"),
        (hf_errors.LocalEntryNotFoundError("offline"), "huggingface.co cannot be reached"),
        (hf_errors.OfflineModeIsEnabled("offline"), "huggingface.co cannot be reached"),
    ],
)
def test_hugging_face_with_a_token_says_what_is_wrong(
    hugging_face, monkeypatch, error, part, message_of
):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: SECRET)
    hugging_face(fails(error), files=["b.npz", "README.md"])
    assert part in message_of(HUGGING_FACE)


# Files that are published in parts


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
