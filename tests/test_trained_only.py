"""Through the doors with save="trainable": a small file that with its base is the whole one."""

import shutil

import numpy as np
import pytest

import paligemma_jax
from paligemma_jax import convert, evaluate
from paligemma_jax.checkpoints import checksums, npz
from paligemma_jax.runs import whole_run
from paligemma_jax.settings import load
from tests import tiny_runs

CHANGES = tiny_runs.NOTHING_ON_THE_WAY


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A data set of texts, a base, and one run on it saved as a whole and as trained."""
    return tiny_runs.shared(tmp_path_factory)


@pytest.fixture
def moved(runs, tmp_path):
    """The run saved as trained, as if its base had been moved to tmp_path."""
    shutil.copy(runs / "base.npz", tmp_path / "base.npz")
    shutil.copytree(runs / "trainable", tmp_path / "trainable")
    final = tmp_path / "trainable" / "final.npz"
    metadata = npz.read_header(final).metadata
    metadata["base"] |= dict.fromkeys(("source", "path"), f"{runs}/gone.npz")
    written = {key: value for key, value in metadata.items() if key != "dtypes"}
    npz.write(final, npz.read(final), metadata=written)
    return tmp_path / "trainable"


def test_it_holds_what_the_base_lacks_and_says_what_that_is(runs):
    whole = npz.read_header(runs / "part" / "final.npz")
    header = npz.read_header(runs / "trainable" / "final.npz")
    trained = {name for name in whole.arrays if name.startswith("llm/layers/attn/")}
    assert set(header.arrays) == trained
    assert header.metadata["num_arrays_with_base"] == len(whole.arrays)
    base = header.metadata["base"]
    assert base == whole.metadata["base"]
    assert base == {
        "source": f"{runs}/base.npz",
        "path": f"{runs}/base.npz",
        "fingerprint": checksums.of_file(runs / "base.npz"),
        "dtype": "bfloat16",
    }
    said = {"variant", "res", "coordinates", "attn_logits_softcap", "final_logits_softcap"}
    assert said | {"query_scale", "vocab_size", "dtypes"} <= header.metadata.keys()


def test_position_embeddings_that_were_resampled_are_held_too(runs, tmp_path):
    changes = {"save": "trainable", "res": 28, "model.img.resample_posemb": True, "total_steps": 0}
    config = tiny_runs.make_config(runs, **CHANGES, **changes)
    whole_run.train(load.typed(config), tmp_path / "run")
    held = npz.read_header(tmp_path / "run" / "final.npz").arrays
    trained = npz.read_header(runs / "trainable" / "final.npz").arrays
    assert set(held) == set(trained) | {"img/pos_embedding"}
    assert held["img/pos_embedding"].shape == (1, 4, tiny_runs.DIMS["width"])


def test_merged_with_its_base_it_is_the_whole_file_bit_for_bit(runs, tmp_path):
    merged = tmp_path / "merged.npz"
    convert.main([str(runs / "trainable"), str(merged)])
    assert checksums.of_file(merged) == checksums.of_file(runs / "part" / "final.npz")
    assert "num_arrays_with_base" not in npz.read_header(merged).metadata


def test_it_answers_like_the_whole_file(runs):
    image = np.zeros((14, 14, 3), np.uint8)
    answers = [
        paligemma_jax.load(str(runs / run), decoding={"max_new_tokens": 2}).predict(image, "cat")
        for run in ("part", "trainable")
    ]
    assert answers[0] == answers[1]


def test_a_run_starts_from_it_as_from_the_whole_file(runs, tmp_path):
    for run, save in (("part", "all"), ("trainable", "trainable")):
        changes = {"model_init": f"{runs / run}/final.npz", "save": save}
        config = tiny_runs.make_config(runs, **CHANGES, **changes)
        whole_run.train(load.typed(config), tmp_path / save)
    # Its base is a file of trained arrays itself.
    convert.main([str(tmp_path / "trainable"), str(tmp_path / "again.npz")])
    expected = checksums.of_file(tmp_path / "all" / "final.npz")
    assert checksums.of_file(tmp_path / "again.npz") == expected


def test_without_its_base_it_asks_for_it(runs, moved, tmp_path, capsys):
    data, out = runs / "train.jsonl", tmp_path / "out"
    total = len(npz.read_header(runs / "part" / "final.npz").arrays)
    missing = total - len(npz.read_header(moved / "final.npz").arrays)
    message = f"{missing} of {total} arrays missing: trainable-only file, give --base"
    with pytest.raises(ValueError, match=message):
        evaluate.main([f"--run={moved}", f"--data={data}", f"--out={out}"])
    with pytest.raises(ValueError, match=message):
        convert.main([str(moved), str(tmp_path / "hf")])
    changes = {**CHANGES, "model_init": f"{moved}/final.npz"}
    settings = load.typed(tiny_runs.make_config(runs, **changes))
    with pytest.raises(ValueError, match=message):
        whole_run.train(settings, tmp_path / "not_made")
    base = tmp_path / "base.npz"
    found = tiny_runs.score(runs, out, capsys, f"--run={moved}", f"--base={base}")
    assert found == tiny_runs.score(runs, out, capsys, f"--run={runs}/part")
    changes |= {"model_init_base": str(base), "total_steps": 0}
    whole_run.train(load.typed(tiny_runs.make_config(runs, **changes)), tmp_path / "from_moved")


def test_a_wrong_base_is_refused_naming_both(runs, tmp_path):
    other = tmp_path / "other.npz"
    tiny_runs.write_base(other, tiny_runs.make_config(runs), seed=1)
    words = ["--base", str(other), "--tokenizer", "none"]
    message = r"final\.npz was trained from .*base\.npz .*; .*other\.npz is another file"
    with pytest.raises(ValueError, match=message):
        convert.main([str(runs / "trainable"), str(tmp_path / "hf"), *words])


def test_random_weights_cannot_be_left_out(runs, tmp_path):
    config = tiny_runs.make_config(runs, **CHANGES, model_init=None, save="trainable")
    with pytest.raises(ValueError, match="random ones are in no other file: set model_init"):
        whole_run.train(load.typed(config), tmp_path / "random")
    assert not (tmp_path / "random").exists()
