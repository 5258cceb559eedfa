"""The authors' model.safetensors in and out: same bytes, and clear words for what is none."""

import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from paligemma_jax import convert
from paligemma_jax.checkpoints import npz

REFERENCE = pathlib.Path(__file__).parents[1] / "reference" / "moondream"
TINY = "--variant=tiny/14,tiny"


@pytest.fixture
def source(tmp_path):
    (tmp_path / "theirs").mkdir()
    shutil.copy(REFERENCE / "model.safetensors", tmp_path / "theirs")
    return tmp_path / "theirs"


def test_to_npz_and_back_gives_the_same_tensors(source, tmp_path):
    convert.main([str(source), str(tmp_path / "ours.npz"), TINY])
    arrays = npz.read(tmp_path / "ours.npz")
    metadata = npz.read_header(tmp_path / "ours.npz").metadata
    assert arrays["text/layers/attn/qkv/kernel"].shape == (3, 64, 3, 4, 16)
    assert (metadata["res"], metadata["vocab_size"], metadata["rotary_dim"]) == (56, 320, 8)
    convert.main([str(tmp_path / "ours.npz"), str(tmp_path / "again")])
    first, second = (
        safetensors.numpy.load_file(folder / "model.safetensors")
        for folder in (source, tmp_path / "again")
    )
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_16_bits_are_written_where_they_are_asked_for(source, tmp_path):
    convert.main([str(source), str(tmp_path / "ours.npz"), TINY, "--dtype=float16"])
    assert {x.dtype.name for x in npz.read(tmp_path / "ours.npz").values()} == {"float16"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--variant=tiny/14,gemma_2b"], "expected moondream2-2024-04-02"),
        ([], "theirs"),  # the released size: all that is misshapen is listed
        ([TINY, "--openpi"], "--openpi"),
        ([TINY, "--verify"], "--verify"),
    ],
)
def test_what_does_not_fit_is_refused(source, tmp_path, words, message):
    with pytest.raises(ValueError) as caught:
        convert.main([str(source), str(tmp_path / "ours.npz"), *words])
    assert message in str(caught.value)
    assert not (tmp_path / "ours.npz").exists()


def test_a_later_release_is_read_without_its_model_of_regions(source, tmp_path, capsys):
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    name = "vision_encoder.projection.mlp.fc1.weight"
    tensors[name] = np.concatenate([tensors[name]] * 2, axis=1)
    regions = {"region_model.position_features.weight": np.ones((2, 3), np.float32)}
    safetensors.numpy.save_file(tensors | regions, source / "model.safetensors")
    with pytest.raises(ValueError, match=r"projection\.mlp\.fc1"):
        convert.main([str(source), str(tmp_path / "ours.npz"), TINY])
    convert.main([str(source), str(tmp_path / "ours.npz"), "--variant=tiny/14_crops,tiny"])
    assert "1 tensors of its region_model.* are left out" in capsys.readouterr().err
    convert.main([str(tmp_path / "ours.npz"), str(tmp_path / "again")])
    again = safetensors.numpy.load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[name], tensors[name]) for name in again)


def test_a_missing_tensor_is_named(source, tmp_path):
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    del tensors["text_model.lm_head.ln.bias"]
    safetensors.numpy.save_file(tensors, source / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.ln\.bias"):
        convert.main([str(source), str(tmp_path / "ours.npz"), TINY])
