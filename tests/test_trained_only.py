"""Through the doors with save="trainable": a small file that with its base is the whole one."""

import json
import shutil

import numpy as np
import pytest

import paligemma_jax
from paligemma_jax import convert, evaluate
from paligemma_jax.assembly import model_functions
from paligemma_jax.checkpoints import checksums, npz
from paligemma_jax.data import tokens
from paligemma_jax.runs import whole_run
from paligemma_jax.settings import load, presets

DIMS = dict(width=8, depth=1, mlp_dim=8, num_heads=1)


def make_config(folder, **changes):
    """Returns settings of two steps on attention alone, from a base of another resolution."""
    config = presets.from_scratch(
        res=28, text_len=24, img=DIMS, llm={**DIMS, "num_kv_heads": 1, "head_dim": 8}
    )
    config.input.data.fname = f"{folder}/train.jsonl"
    config.input.batch_size = 2
    config.tokenizer = f"{folder}/tokenizer.model"
    config.total_steps = 2
    config.lr = 0.1
    config.trainable = "llm/layers/attn/.*"
    config.model_init = f"{folder}/base.npz"
    config.model.img.resample_posemb = True
    config.frozen_dtype = "bfloat16"
    config.update(changes)
    return config


def write_base(path, config, *, seed=0):
    vocab_size = tokens.load_tokenizer(config.tokenizer).vocab_size
    shapes = model_functions.describe(load.typed(config), vocab_size=vocab_size).shapes()
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=x.shape).astype("float32") for name, x in shapes.items()}
    npz.write(path, params)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of texts, a tokenizer, a base, and one run saved as a whole and as trained."""
    folder = tmp_path_factory.mktemp("trained_only")
    rows = [
        {
            "image": [],
            "prefix": "detect cat",
            "suffix": "<loc0000>" * 2 + f"<loc0{number}>" * 2 + " cat",
        }
        for number in (100, 200)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens.train_tokenizer(["detect cat", "cat"], folder / "tokenizer.model", vocab_size=1500)
    write_base(folder / "base.npz", make_config(folder, res=14))
    for save in ("all", "trainable"):
        whole_run.train(load.typed(make_config(folder, save=save)), folder / save)
    return folder


@pytest.fixture
def moved(folder):
    """The base's path after it was moved; it is put back when the test ends."""
    path = (folder / "base.npz").rename(folder / "moved.npz")
    yield path
    path.rename(folder / "base.npz")


def test_it_holds_what_the_base_lacks_and_says_what_that_is(folder):
    whole = npz.read_header(folder / "all" / "final.npz")
    header = npz.read_header(folder / "trainable" / "final.npz")
    trained = {name for name in whole.arrays if name.startswith("llm/layers/attn/")}
    # The position embeddings were resampled.
    assert set(header.arrays) == trained | {"img/pos_embedding"}
    assert header.metadata["num_arrays_with_base"] == len(whole.arrays)
    base = header.metadata["base"]
    assert base == whole.metadata["base"]
    assert base == {
        "source": f"{folder}/base.npz",
        "path": f"{folder}/base.npz",
        "fingerprint": checksums.of_file(folder / "base.npz"),
        "dtype": "bfloat16",
    }
    said = {"variant", "res", "coordinates", "attn_logits_softcap", "final_logits_softcap"}
    assert said | {"query_scale", "vocab_size", "dtypes"} <= header.metadata.keys()


def test_merged_with_its_base_it_is_the_whole_file_bit_for_bit(folder):
    merged = folder / "merged.npz"
    convert.main([str(folder / "trainable"), str(merged)])
    assert checksums.of_file(merged) == checksums.of_file(folder / "all" / "final.npz")
    assert "num_arrays_with_base" not in npz.read_header(merged).metadata


def test_it_answers_like_the_whole_file(folder):
    image = np.zeros((28, 28, 3), np.uint8)
    answers = [
        paligemma_jax.load(str(folder / run), decoding={"max_new_tokens": 2}).predict(image, "cat")
        for run in ("all", "trainable")
    ]
    assert answers[0] == answers[1]


def test_a_run_starts_from_it_as_from_the_whole_file(folder):
    for run in ("all", "trainable"):
        config = make_config(folder, model_init=f"{folder / run}/final.npz", save=run)
        whole_run.train(load.typed(config), folder / f"again_{run}")
    # Its base is a file of trained arrays itself.
    convert.main([str(folder / "again_trainable"), str(folder / "again.npz")])
    expected = checksums.of_file(folder / "again_all" / "final.npz")
    assert checksums.of_file(folder / "again.npz") == expected


def score(folder, run, capsys, *words):
    """Returns the validation loss of a run."""
    out = "--eval.decode=False", f"--out={folder}/out"
    evaluate.main([f"--run={folder / run}", f"--data={folder}/train.jsonl", *out, *words])
    return json.loads(capsys.readouterr().out)


def test_without_its_base_it_asks_for_it(folder, moved, capsys):
    run, data = folder / "trainable", folder / "train.jsonl"
    total = len(npz.read_header(folder / "all" / "final.npz").arrays)
    missing = total - len(npz.read_header(run / "final.npz").arrays)
    message = f"{missing} of {total} arrays missing: trainable-only file, give --base"
    with pytest.raises(ValueError, match=message):
        evaluate.main([f"--run={run}", f"--data={data}", f"--out={folder}/out"])
    with pytest.raises(ValueError, match=message):
        convert.main([str(run), str(folder / "hf")])
    with pytest.raises(ValueError, match=message):
        whole_run.train(
            load.typed(make_config(folder, model_init=f"{run}/final.npz")), folder / "not_made"
        )
    found = score(folder, "trainable", capsys, f"--base={moved}")
    assert found == score(folder, "all", capsys)
    config = make_config(
        folder, model_init=f"{run}/final.npz", model_init_base=str(moved), total_steps=0
    )
    whole_run.train(load.typed(config), folder / "from_moved")
    shutil.rmtree(folder / "from_moved")


def test_a_wrong_base_is_refused_naming_both(folder):
    write_base(folder / "other.npz", make_config(folder, res=14), seed=1)
    words = ["--base", str(folder / "other.npz"), "--tokenizer", "none"]
    message = r"final\.npz was trained from .*base\.npz .*; .*other\.npz is another file"
    with pytest.raises(ValueError, match=message):
        convert.main([str(folder / "trainable"), str(folder / "hf"), *words])


def test_random_weights_cannot_be_left_out(folder):
    with pytest.raises(ValueError, match="random ones are in no other file: set model_init"):
        whole_run.train(
            load.typed(make_config(folder, model_init=None, save="trainable")), folder / "random"
        )
    assert not (folder / "random").exists()
