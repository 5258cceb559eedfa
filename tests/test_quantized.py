"""Through the doors on a quantized base: trained, resumed, evaluated, merged, answered with."""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import paligemma_jax
from paligemma_jax import convert
from paligemma_jax.checkpoints import checksums, npz
from paligemma_jax.models.common import quantize
from paligemma_jax.models.paligemma import as_family
from paligemma_jax.params import names
from paligemma_jax.reports import run_log
from paligemma_jax.runs import whole_run
from paligemma_jax.settings import load, presets
from tests import tiny_runs

pytestmark = pytest.mark.slow
TIMINGS = {"seconds", "examples_per_s", "input_wait", "programs_compiled"}


def make_config(folder, **changes):
    """Returns settings of four LoRA steps on an NF4 base."""
    config = presets.from_scratch(
        res=14,
        text_len=24,
        img=dict(width=64, depth=2, mlp_dim=64, num_heads=2),
        llm=dict(width=64, depth=2, mlp_dim=64, num_heads=2, num_kv_heads=1, head_dim=32),
    )
    config.input.data.fname = f"{folder}/train.jsonl"
    config.input.batch_size = 4
    config.tokenizer = f"{folder}/tokenizer.model"
    config.total_steps, config.ckpt_steps = 4, 2
    config.lr, config.lr_mults = 0.01, None
    config.optax = {"mu_dtype": "bfloat16"}
    config.log_training_steps = 1
    config.model_init = f"{folder}/base.npz"
    config.quantize = "nf4"
    config.lora.targets, config.lora.rank = "llm", 2
    config.evals.val = dict(fname=f"{folder}/train.jsonl", decode=False)
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of texts, a tokenizer, a base in float16, and a run with LoRA on it in NF4."""
    folder = tmp_path_factory.mktemp("quantized")
    tiny_runs.write_data(folder, num_rows=4)
    config = make_config(folder, **{"lora.targets": None, "lora.rank": 8})
    tiny_runs.write_base(folder / "base.npz", config)
    whole_run.train(load.typed(make_config(folder)), folder / "run")
    return folder


def losses(workdir):
    return [row["loss"] for row in run_log.read_rows(workdir / "metrics.jsonl")]


def rows(workdir):
    found = run_log.read_rows(workdir / "metrics.jsonl")
    return [{key: row[key] for key in row if key not in TIMINGS} for row in found]


def score(folder, capsys, *words):
    return tiny_runs.score(folder, folder / "out", capsys, *words)


def decoded(folder):
    """Returns the base with every quantized weight replaced by what it stands for, as float32."""
    base = npz.read(folder / "base.npz")
    quantizable = as_family.NAMES.quantizable
    for name in quantizable.candidates(base):
        unit = quantizable.unit_of(name, base[name].shape)
        base[name] = quantize.quantize_on_host(base[name], "nf4", unit=unit).astype("float32")
    return base


def test_training_is_that_on_what_is_stored(folder):
    said = npz.read_header(folder / "base.npz").metadata
    said = {key: value for key, value in said.items() if key != "dtypes"}
    npz.write(folder / "decoded.npz", decoded(folder), metadata=said)
    changes = {"model_init": f"{folder}/decoded.npz", "quantize": None}
    whole_run.train(load.typed(make_config(folder, **changes)), folder / "on_decoded")
    np.testing.assert_allclose(losses(folder / "run"), losses(folder / "on_decoded"), rtol=1e-5)
    assert losses(folder / "run")[-1] < losses(folder / "run")[0]


def test_the_final_file_is_the_adapter_and_names_the_dense_base(folder):
    header = npz.read_header(folder / "run" / "final.npz")
    assert header.arrays and all(map(names.is_factor, header.arrays))
    assert header.metadata["base"]["fingerprint"] == checksums.of_file(folder / "base.npz")
    assert header.metadata["quantize"] == "nf4"


def test_a_run_with_momentum_in_16_bits_goes_on_bit_for_bit(folder):
    workdir = folder / "again"
    shutil.copytree(folder / "run", workdir)
    (workdir / "final.npz").unlink()
    shutil.rmtree(workdir / "checkpoints" / "000004")
    whole_run.train(load.typed(make_config(folder)), workdir)
    first, second = (npz.read(path / "final.npz") for path in (folder / "run", workdir))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    assert rows(workdir) == rows(folder / "run")
    (workdir / "final.npz").unlink()
    with pytest.raises(ValueError, match=r"other frozen weights: .*quantized: 1\d x nf4.*these"):
        whole_run.train(
            load.typed(make_config(folder, **{"quantize": "int8"})), workdir, resume_anyway=True
        )


def test_it_is_evaluated_and_answers_as_it_was_trained(folder, capsys):
    run = folder / "run"
    last = run_log.read_rows(run / "metrics.jsonl")[-1]["val/loss"]
    assert score(folder, capsys, f"--run={run}") == pytest.approx(last, rel=1e-5)
    dense = score(folder, capsys, f"--run={run}", "--config.quantize=None")
    assert dense == pytest.approx(last, rel=0.2) and dense != last
    loaded = paligemma_jax.load(str(run), decoding={"max_new_tokens": 2})
    held = [x.kind for x in loaded.params.values() if isinstance(x, quantize.Quantized)]
    assert set(held) == {"nf4"}
    (row,) = loaded.predict(np.zeros((14, 14, 3), np.uint8), "detect cat")
    assert np.isfinite(row["logp"])


def test_convert_merges_into_the_dense_base(folder, capsys):
    merged = folder / "merged.npz"
    convert.main([str(folder / "run"), str(merged), "--merge"])
    capsys.readouterr()
    header, base = npz.read_header(merged), npz.read(folder / "base.npz")
    assert {name: x.dtype for name, x in header.arrays.items()} == {
        name: x.dtype for name, x in base.items()
    }
    frozen = "img/head/kernel"
    np.testing.assert_array_equal(npz.read(merged, names=[frozen])[frozen], base[frozen])


def test_attention_trains_beside_a_quantized_rest(folder, capsys):
    changes = {"lora.targets": None, "lora.rank": 8, "trainable": "llm/layers/attn/.*"}
    workdir = folder / "attention"
    whole_run.train(load.typed(make_config(folder, **changes)), workdir)
    header = npz.read_header(workdir / "final.npz")
    assert header.arrays and all("/attn/" in name for name in header.arrays)
    last = run_log.read_rows(workdir / "metrics.jsonl")[-1]["val/loss"]
    assert score(folder, capsys, f"--run={workdir}") == pytest.approx(last, rel=1e-5)


def test_blocks_are_split_over_four_devices(folder):
    (folder / "config.py").write_text(
        f"""
import sys
sys.path.insert(0, {os.fspath(pathlib.Path(__file__).parent)!r})
import test_quantized

def get_config(arg=""):
    return test_quantized.make_config({os.fspath(folder)!r})
"""
    )
    command = [
        *(sys.executable, "-m", "paligemma_jax.train", f"--config={folder}/config.py"),
        f"--workdir={folder}/four",
        """--config.sharding_strategy=[('.*', 'fsdp(axis="data", min_size_to_shard_mb=0)')]""",
    ]
    flags = "--xla_force_host_platform_device_count=4"
    subprocess.run(
        command,
        env={**os.environ, "XLA_FLAGS": flags},
        cwd=pathlib.Path(__file__).parents[1],
        check=True,
    )
    np.testing.assert_allclose(losses(folder / "four"), losses(folder / "run"), rtol=1e-5)
