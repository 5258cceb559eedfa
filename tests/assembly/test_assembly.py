"""A run's folder gives back what was trained, and says so if it was not."""

import pytest

from paligemma_jax.assembly import assembly
from paligemma_jax.settings import load


def test_weights_of_a_run_keep_the_types_that_they_are_stored_in(config, tmp_path):
    config.frozen_dtype = "float16"  # of what was frozen: trained arrays are float32
    (tmp_path / "config.json").write_text(load.to_json(load.typed(config)))
    loaded, _ = assembly.open_run(str(tmp_path), None, [])
    assert loaded.frozen_dtype is None
    loaded, _ = assembly.open_run(str(tmp_path), None, ["frozen_dtype=bfloat16"])
    assert loaded.frozen_dtype == "bfloat16"


def test_a_tokenizer_that_is_not_there_names_the_key(config):
    config.tokenizer = "gone.model"
    with pytest.raises(FileNotFoundError) as caught:
        assembly.assemble(load.typed(config))
    (note,) = caught.value.__notes__
    assert note.startswith("the config key tokenizer names the file, here 'gone.model'")


def test_run_without_final_weights_can_go_on_or_be_given_others(tmp_path):
    final = str(tmp_path / "final.npz")
    with pytest.raises(ValueError, match=r"did not end. The command that began.*--weights"):
        assembly.choose_weights(None, final)
    assert assembly.choose_weights("none", final) is None
    assert assembly.choose_weights("other.npz", final) == "other.npz"
    assert assembly.choose_weights(None, "pt_224") == "pt_224"
