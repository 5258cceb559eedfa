"""Through the doors with LoRA: a small file that with its base answers as the run did."""

import json
import pathlib

import numpy as np
import pytest

import paligemma_jax
from paligemma_jax import convert
from paligemma_jax.checkpoints import checksums, npz
from paligemma_jax.params import names
from paligemma_jax.reports import run_log
from paligemma_jax.runs import whole_run
from paligemma_jax.settings import load
from tests import tiny_runs

REFERENCE = pathlib.Path(__file__).parent / "reference"


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A data set of texts, a tokenizer, a base, and a run with LoRA on it, among others."""
    return tiny_runs.shared(tmp_path_factory)


@pytest.fixture
def score(runs, tmp_path, capsys):
    """Returns the validation loss that the evaluate door finds of the run: (more words)."""

    def score(*words: str) -> float:
        return tiny_runs.score(runs, tmp_path / "out", capsys, f"--run={runs}/lora", *words)

    return score


def make_config(folder, **changes):
    """Returns settings as the run's, without evaluations and checkpoints."""
    lora = tiny_runs.RUNS["lora"] | tiny_runs.NOTHING_ON_THE_WAY
    return tiny_runs.make_config(folder, **{**lora, **changes})


def test_the_final_file_holds_the_factors_alone_and_names_its_base(runs):
    header = npz.read_header(runs / "lora" / "final.npz")
    assert len(header.arrays) == 10 and all(map(names.is_factor, header.arrays))
    assert {x.dtype for x in header.arrays.values()} == {np.dtype("float32")}
    assert header.metadata["base"]["fingerprint"] == checksums.of_file(runs / "base.npz")
    assert header.metadata["lora"].items() >= {"rank": 2, "alpha": 8.0}.items()
    factors = npz.read(runs / "lora" / "final.npz")
    assert all(array.any() for array in factors.values()), "both factors of every weight learn"


def test_the_log_shows_how_far_each_part_moves(runs):
    rows = run_log.read_rows(runs / "lora" / "metrics.jsonl")
    for row in rows:
        parts = {key: x for key, x in row.items() if key.startswith("update_norm/")}
        assert set(parts) == {"update_norm/llm_attn", "update_norm/llm_mlp"}
        whole = sum(x**2 for x in parts.values()) ** 0.5
        np.testing.assert_allclose(whole, row["update_norm"], rtol=1e-5)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


def test_a_run_with_lora_is_evaluated_and_loaded_as_any_other(runs, score):
    run = runs / "lora"
    last = run_log.read_rows(run / "metrics.jsonl")[-1]["val/loss"]
    assert score() == pytest.approx(last, rel=1e-5)
    loaded = paligemma_jax.load(str(run), decoding={"max_new_tokens": 2})
    (row,) = loaded.predict(np.zeros((14, 14, 3), np.uint8), "detect cat")
    assert np.isfinite(row["logp"])


def test_training_goes_on_from_an_adapter_and_a_fresh_one_is_the_base(runs, tmp_path, score):
    config = make_config(runs, model_init=f"{runs}/lora/final.npz")
    whole_run.train(load.typed(config), tmp_path / "again")
    rows = run_log.read_rows(runs / "lora" / "metrics.jsonl")
    first = run_log.read_rows(tmp_path / "again" / "metrics.jsonl")[0]["loss"]
    assert first == pytest.approx(rows[-1]["val/loss"], rel=1e-5)
    before = score(f"--weights={runs}/base.npz", "--config.lora.targets=None")
    assert before == pytest.approx(rows[0]["loss"], rel=1e-5)
    assert first < min(row["loss"] for row in rows)


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
def test_wrong_settings_are_said(runs, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        whole_run.train(load.typed(make_config(runs, **changes)), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora.targets": None, "lora.rank": 8}, r"extra: llm/layers/attn/attn_vec_einsum/lora_a"),
        ({"lora.targets": "hf_compat"}, r"missing: img/.*/key/kernel_lora_a"),
        ({"lora.rank": 4}, r"shape: llm/layers/.*lora_a is"),
        ({"lora.alpha": 2.0}, r"multiplied by 4 \(rank 2, alpha 8.*, the settings' by 1"),
    ],
)
def test_an_adapter_that_does_not_fit_the_settings_is_refused(runs, tmp_path, changes, message):
    changes = {"model_init": f"{runs}/lora/final.npz", **changes}
    with pytest.raises(ValueError, match=message):
        whole_run.train(load.typed(make_config(runs, **changes)), tmp_path / "unfit")


def test_an_adapter_on_another_base_is_refused_naming_both(runs, tmp_path, score):
    tiny_runs.write_base(tmp_path / "other.npz", tiny_runs.make_config(runs), seed=1)
    message = r"final\.npz was trained from .*base\.npz .*; .*other\.npz is another file"
    with pytest.raises(ValueError, match=message):
        score(f"--base={tmp_path}/other.npz")


def run_convert(capsys, *words):
    """Runs the door and returns what it prints."""
    convert.main([str(word) for word in words])
    return json.loads(capsys.readouterr().out)


def test_to_pefts_folder_and_back_keeps_every_bit(runs, tmp_path, capsys, score):
    run, base = runs / "lora", runs / "base.npz"
    folder, back = tmp_path / "peft", tmp_path / "back.npz"
    made = run_convert(capsys, run, folder)
    assert made["bytes"] == (folder / "adapter_model.safetensors").stat().st_size
    run_convert(capsys, folder, back, "--base", base)
    first, second = (npz.read_header(path) for path in (run / "final.npz", back))
    assert first.arrays == second.arrays
    assert checksums.of_file(run / "final.npz") == checksums.of_file(back)
    assert score(f"--weights={back}", f"--base={base}") == score()


def test_merged_weights_score_as_the_adapter_without_lora(runs, tmp_path, capsys, score):
    run, merged = runs / "lora", tmp_path / "merged.npz"
    run_convert(capsys, run, merged, "--merge")
    base, header = npz.read_header(runs / "base.npz"), npz.read_header(merged)
    assert header.arrays == base.arrays and "lora" not in header.metadata
    found = score("--config.lora.targets=None", f"--weights={merged}")
    # The sum is stored in the base's float16.
    assert found == pytest.approx(score(), rel=1e-3)
    run_convert(capsys, run, tmp_path / "hf", "--merge", "--tokenizer", "none")
    run_convert(capsys, tmp_path / "hf", tmp_path / "from_hf.npz")
    assert checksums.of_file(tmp_path / "from_hf.npz") == checksums.of_file(merged)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{0}/base.npz", "{1}/x.npz", "--merge"], "no LoRA factors, nothing to merge"),
        (["{0}/lora", "{1}/x", "--dtype", "float16"], "--dtype is for whole weights"),
        (["{0}/lora", "{1}/x.npz", "--openpi"], "openpi cannot read LoRA factors: add --merge"),
        (
            ["{1}/norm.npz", "{1}/x", "--base", "{0}/base.npz"],
            r"it holds 1 arrays of the base \(llm/final_norm/scale",
        ),
        (["{2}", "{1}/x.npz"], "adapter of PEFT: give its model's npz file as --base"),
        (
            ["{2}", "{1}/x.npz", "--base", "{0}/base.npz", "--variant", "tiny/14,tiny"],
            "none of|does not fit",
        ),
    ],
)
def test_wrong_conversions_are_refused(runs, tmp_path, words, message):
    header = npz.read_header(runs / "lora" / "final.npz")
    metadata = {key: value for key, value in header.metadata.items() if key != "dtypes"}
    arrays = {**npz.read(runs / "lora" / "final.npz"), "llm/final_norm/scale": np.ones(16, "f4")}
    npz.write(tmp_path / "norm.npz", arrays, metadata=metadata)
    peft_folder = REFERENCE / "lora_pg1" / "trained"
    with pytest.raises(ValueError, match=message):
        convert.main([word.format(runs, tmp_path, peft_folder) for word in words])
