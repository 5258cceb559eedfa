"""`paligemma-jax fetch`: weights, tokenizer and codec are here before they are needed."""

import io
import pathlib

import numpy as np
import pytest

from paligemma_jax import fetch
from paligemma_jax.hub import addresses, download
from paligemma_jax.params import released_models

pytestmark = pytest.mark.usefixtures("nowhere")
TOKENIZER = "gs://big_vision/paligemma_tokenizer.model"


@pytest.fixture
def site(server, monkeypatch):
    """A server in place of Google's storage, with the published tokenizer and codec."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    server.serve("/big_vision/paligemma_tokenizer.model", b"pieces")
    codec = io.BytesIO()
    np.savez(codec, a=np.zeros(1))
    server.serve("/big_vision/paligemma/vae-oid.npz", codec.getvalue())
    return server


def fetched(capsys, *words):
    """Returns what the door says of each name, {name: file}."""
    fetch.main(list(words))
    lines = (line.split("\t") for line in capsys.readouterr().out.splitlines() if line)
    return {name: pathlib.Path(path) for name, path in lines}


def test_tokenizer_and_codec_are_found_without_a_network_afterwards(site, capsys):
    files = fetched(capsys, "tokenizer", "mask_codec", site.serve("/a.npz", b"weights"))
    assert list(files)[:2] == ["tokenizer", "mask_codec"] and len(files) == 3
    assert files["tokenizer"].read_bytes() == b"pieces"
    assert addresses.find(TOKENIZER) == files["tokenizer"]
    asked = len(site.requests)
    assert fetched(capsys, "tokenizer", "mask_codec")["tokenizer"] == files["tokenizer"]
    assert len(site.requests) == asked


def test_weights_bring_the_tokenizer(site, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("BV_GEMMA_DIR", str(tmp_path))
    for name in ("pt_3b_224.bf16.npz", "pt_10b_448.bf16.npz"):
        (tmp_path / name).touch()
    files = fetched(capsys, "pt_3b_224")
    assert files["pt_3b_224"] == tmp_path / "pt_3b_224.bf16.npz" and "tokenizer" in files
    files = fetched(capsys, "paligemma2-10b", "--res", "448")
    assert list(files) == ["pt_10b_448", "tokenizer"]


def test_all_that_a_config_names_is_fetched(site, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("BV_GEMMA_DIR", str(tmp_path))
    (tmp_path / "pt_224.f16.npz").touch()
    files = fetched(capsys, "--config", "water_segmentation_224")
    assert list(files) == ["model_init", "tokenizer", "mask_codec"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pt_3b_22"], "'pt_3b_22' is no name of what can be fetched. Did you mean 'pt_3b_224'"),
        (["ft_vqa2_448"], "Did you mean 'ft_vqav2_448'.*ft_TASK_RES .paligemma-jax fetch --list"),
        (["paligemma2-3b", "--res=300"], "--res 300: paligemma2-3b has weights for 224, 448, 896"),
    ],
)
def test_what_cannot_be_fetched_is_named(words, message):
    with pytest.raises(ValueError, match=message):
        fetch.main(words)


def test_what_is_not_there_says_what_to_do(site):
    with pytest.raises(download.DownloadError, match="answers 404"):
        fetch.main([f"{site.url}/b.npz"])
    with pytest.raises(SystemExit):
        fetch.main([])


def test_all_published_weights_are_listed_with_their_sizes(capsys):
    fetch.main(["--list"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["name", "model", "px", "type", "GB", "from"]
    assert ["mix_3b_448", "paligemma2-3b", "448", "bfloat16", "6.1", "kaggle,", "hf"] in rows
    assert ["ft_docvqa_896", "paligemma1-3b", "896", "float32", "11.7", "kaggle,", "hf"] in rows
    assert len(rows) == 2 + len(released_models.FILES)
