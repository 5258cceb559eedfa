"""Through the doors with LoRA: a small file that with its base answers as the run did."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest

import paligemma_jax
from paligemma_jax import convert, evaluate
from paligemma_jax.assembly import model_functions, weights
from paligemma_jax.checkpoints import checksums, npz
from paligemma_jax.data import tokens
from paligemma_jax.models.paligemma import as_family
from paligemma_jax.params import names
from paligemma_jax.reports import run_log
from paligemma_jax.runs import whole_run
from paligemma_jax.settings import load, presets

REFERENCE = pathlib.Path(__file__).parent / "reference"
DIMS = dict(width=16, depth=2, mlp_dim=16, num_heads=2)


def make_config(folder, **changes):
    """Returns settings of three LoRA steps on a base in float16."""
    config = presets.from_scratch(
        res=14, text_len=24, img=DIMS, llm={**DIMS, "num_kv_heads": 1, "head_dim": 8}
    )
    config.input.data.fname = f"{folder}/train.jsonl"
    config.input.batch_size = 2
    config.tokenizer = f"{folder}/tokenizer.model"
    config.total_steps = 3
    config.lr = 0.1
    config.log_training_steps = 1
    config.model_init = f"{folder}/base.npz"
    config.lora.targets, config.lora.rank = "llm", 2
    config.evals.val = dict(fname=f"{folder}/train.jsonl", decode=False)
    config.update_from_flattened_dict(changes)
    return config


def write_base(path, config, *, seed=0):
    vocab_size = tokens.load_tokenizer(config.tokenizer).vocab_size
    adapted = model_functions.describe(load.typed(config), vocab_size=vocab_size)
    model = as_family.Model(dataclasses.replace(adapted.dims, lora=None))
    rng = np.random.default_rng(seed)
    shapes = model.shapes()
    params = {name: rng.normal(size=x.shape, scale=0.1) for name, x in shapes.items()}
    half = {name: array.astype("float16") for name, array in params.items()}
    npz.write(path, half, metadata=weights.model_metadata(model))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of texts, a tokenizer, a base, and a run with LoRA."""
    folder = tmp_path_factory.mktemp("adapters")
    rows = [
        {"image": [], "prefix": "detect cat", "suffix": "<loc0000>" * 2 + f"<loc0{n}>" * 2 + " cat"}
        for n in (100, 200)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens.train_tokenizer(["detect cat", "cat"], folder / "tokenizer.model", vocab_size=1500)
    write_base(folder / "base.npz", make_config(folder))
    whole_run.train(load.typed(make_config(folder)), folder / "run")
    return folder


def test_the_final_file_holds_the_factors_alone_and_names_its_base(folder):
    header = npz.read_header(folder / "run" / "final.npz")
    assert len(header.arrays) == 10 and all(map(names.is_factor, header.arrays))
    assert {x.dtype for x in header.arrays.values()} == {np.dtype("float32")}
    assert header.metadata["base"]["fingerprint"] == checksums.of_file(folder / "base.npz")
    assert header.metadata["lora"].items() >= {"rank": 2, "alpha": 8.0}.items()
    factors = npz.read(folder / "run" / "final.npz")
    assert all(array.any() for array in factors.values()), "both factors of every weight learn"


def test_the_log_shows_how_far_each_part_moves(folder):
    rows = run_log.read_rows(folder / "run" / "metrics.jsonl")
    for row in rows:
        parts = {key: x for key, x in row.items() if key.startswith("update_norm/")}
        assert set(parts) == {"update_norm/llm_attn", "update_norm/llm_mlp"}
        whole = sum(x**2 for x in parts.values()) ** 0.5
        np.testing.assert_allclose(whole, row["update_norm"], rtol=1e-5)
    assert [row["step"] for row in rows] == [1, 2, 3]


def score(folder, capsys, *words):
    """Returns the validation loss that the evaluate door finds."""
    out = "--eval.decode=False", f"--out={folder}/out"
    evaluate.main([f"--data={folder}/train.jsonl", *out, *words])
    return json.loads(capsys.readouterr().out)["loss"]


def test_a_run_with_lora_is_evaluated_and_loaded_as_any_other(folder, capsys):
    run = folder / "run"
    last = run_log.read_rows(run / "metrics.jsonl")[-1]["val/loss"]
    assert score(folder, capsys, f"--run={run}") == pytest.approx(last, rel=1e-5)
    loaded = paligemma_jax.load(str(run), decoding={"max_new_tokens": 2})
    (row,) = loaded.predict(np.zeros((14, 14, 3), np.uint8), "detect cat")
    assert np.isfinite(row["logp"])


def test_training_goes_on_from_an_adapter_and_a_fresh_one_is_the_base(folder, capsys):
    final = folder / "run" / "final.npz"
    whole_run.train(load.typed(make_config(folder, model_init=str(final))), folder / "again")
    first = run_log.read_rows(folder / "again" / "metrics.jsonl")[0]["loss"]
    learnt = [row["loss"] for row in run_log.read_rows(folder / "run" / "metrics.jsonl")]
    assert first < min(learnt)
    words = f"--weights={folder / 'base.npz'}", "--config.lora.targets=None"
    before = score(folder, capsys, f"--run={folder / 'run'}", *words)
    assert before == pytest.approx(learnt[0], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora.targets": "llm/layer/.*"}, r"lora.targets: .*Nearest names: llm/layers"),
        ({"lora.rank": 9}, r"lora.rank=9: 'llm/layers/attn/kv_einsum/w' has 16 inputs and 8"),
        (
            {"schedule": [(".*/attn/.*", dict(decay_type="cosine")), (".*", None)]},
            r"4 of 10 LoRA factors are frozen by a rule, 'llm/layers/mlp/gating_einsum_lora_a'",
        ),
    ],
)
def test_wrong_settings_are_said(folder, changes, message):
    config = make_config(folder, **changes)
    config.evals = {}
    with pytest.raises(ValueError, match=message):
        whole_run.train(load.typed(config), folder / "wrong")
    assert not (folder / "wrong").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora.targets": None, "lora.rank": 8}, r"extra: llm/layers/attn/attn_vec_einsum/lora_a"),
        ({"lora.targets": "hf_compat"}, r"missing: img/.*/key/kernel_lora_a"),
        ({"lora.rank": 4}, r"shape: llm/layers/.*lora_a is"),
        ({"lora.alpha": 2.0}, r"multiplied by 4 \(rank 2, alpha 8.*, the settings' by 1"),
    ],
)
def test_an_adapter_that_does_not_fit_the_settings_is_refused(folder, changes, message):
    changes = {"model_init": f"{folder}/run/final.npz", **changes}
    with pytest.raises(ValueError, match=message):
        whole_run.train(load.typed(make_config(folder, **changes)), folder / "unfit")


def test_an_adapter_on_another_base_is_refused_naming_both(folder, capsys):
    write_base(folder / "other.npz", make_config(folder), seed=1)
    message = r"final\.npz was trained from .*base\.npz .*; .*other\.npz is another file"
    with pytest.raises(ValueError, match=message):
        score(folder, capsys, f"--run={folder / 'run'}", f"--base={folder}/other.npz")


def run_convert(capsys, *words):
    """Runs the door and returns what it prints."""
    convert.main([str(word) for word in words])
    return json.loads(capsys.readouterr().out)


def test_to_pefts_folder_and_back_keeps_every_bit(folder, capsys):
    run, base = folder / "run", folder / "base.npz"
    made = run_convert(capsys, run, folder / "peft")
    assert made["bytes"] == (folder / "peft" / "adapter_model.safetensors").stat().st_size
    run_convert(capsys, folder / "peft", folder / "back.npz", "--base", base)
    first, second = (npz.read_header(path) for path in (run / "final.npz", folder / "back.npz"))
    assert first.arrays == second.arrays
    assert checksums.of_file(run / "final.npz") == checksums.of_file(folder / "back.npz")
    back = score(folder, capsys, f"--run={run}", f"--weights={folder / 'back.npz'}")
    assert back == score(folder, capsys, f"--run={run}")


def test_merged_weights_score_as_the_adapter_without_lora(folder, capsys):
    run, merged = folder / "run", folder / "merged.npz"
    run_convert(capsys, run, merged, "--merge")
    base, header = npz.read_header(folder / "base.npz"), npz.read_header(merged)
    assert header.arrays == base.arrays and "lora" not in header.metadata
    words = "--config.lora.targets=None", f"--weights={merged}"
    found = score(folder, capsys, f"--run={run}", *words)
    # The sum is stored in the base's float16.
    assert found == pytest.approx(score(folder, capsys, f"--run={run}"), rel=1e-3)
    run_convert(capsys, run, folder / "hf", "--merge", "--tokenizer", "none")
    run_convert(capsys, folder / "hf", folder / "from_hf.npz")
    assert checksums.of_file(folder / "from_hf.npz") == checksums.of_file(merged)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{0}/base.npz", "{0}/x.npz", "--merge"], "no LoRA factors, nothing to merge"),
        (["{0}/run", "{0}/x", "--dtype", "float16"], "--dtype is for whole weights"),
        (["{0}/run", "{0}/x.npz", "--openpi"], "openpi cannot read LoRA factors: add --merge"),
        (["{0}/norm.npz", "{0}/x"], r"it holds 1 arrays of the base \(llm/final_norm/scale"),
        (["{1}", "{0}/x.npz"], "adapter of PEFT: give its model's npz file as --base"),
        (
            ["{1}", "{0}/x.npz", "--base", "{0}/base.npz", "--variant", "tiny/14,tiny"],
            "none of|does not fit",
        ),
    ],
)
def test_wrong_conversions_are_refused(folder, words, message):
    header = npz.read_header(folder / "run" / "final.npz")
    metadata = {key: value for key, value in header.metadata.items() if key != "dtypes"}
    arrays = {**npz.read(folder / "run" / "final.npz"), "llm/final_norm/scale": np.ones(16, "f4")}
    npz.write(folder / "norm.npz", arrays, metadata=metadata)
    peft_folder = REFERENCE / "lora_pg1" / "trained"
    with pytest.raises(ValueError, match=message):
        convert.main([word.format(folder, peft_folder) for word in words])
