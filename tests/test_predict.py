"""The predict door: what its images stand for, and what it refuses."""

import pytest

from paligemma_jax import predict


def test_files_folders_and_globs_are_found_once(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", "sub.png"):
        (tmp_path / name).touch()
    folder = str(tmp_path)
    found = predict.find_images([folder, f"{folder}/*.png", f"{folder}/a.JPG"])
    assert found == [f"{folder}/{name}" for name in ("a.JPG", "b.png", "sub.png")]
    assert predict.find_images(["https://host/a.png"]) == ["https://host/a.png"]


def test_pattern_that_stands_for_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such file, and no folder or glob"):
        predict.find_images([f"{tmp_path}/*.png"])


@pytest.mark.parametrize("key", ["num_examples", "decode", "log_steps", "fname"])
def test_key_without_effect_on_predictions_is_refused(key):
    with pytest.raises(ValueError, match=f"--eval.{key} has no effect"):
        predict.check_decoding([f"{key}=1"])
    predict.check_decoding(["sampler=beam", "max_new_tokens=4"])
