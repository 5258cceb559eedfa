"""From a config file to a run's folder, through the doors, on a model of a few thousand weights."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

import paligemma_jax
from paligemma_jax import evaluate, predict, train
from paligemma_jax.checkpoints import npz
from paligemma_jax.reports import run_log
from tests import tiny_runs

STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A folder with a data set of 6 images, a tokenizer and a config."""
    folder = tmp_path_factory.mktemp("end_to_end")
    tiny_runs.write_pictures(folder)
    (folder / "config.py").write_text(
        textwrap.dedent(f"""
        from paligemma_jax.settings import parse_arg, presets

        def get_config(arg=""):
            arg = parse_arg(arg, trainable="")
            c = presets.from_scratch(
                res=28,
                text_len=24,
                img=dict(width=16, depth=2, mlp_dim=16, num_heads=2),
                llm=dict(width=16, depth=2, mlp_dim=16, num_heads=2, num_kv_heads=1, head_dim=8),
            )
            c.input.data.fname = "{folder}/train.jsonl"
            c.input.batch_size = 4
            c.tokenizer = "{folder}/tokenizer.model"
            c.total_steps = {STEPS}
            c.lr = 1e-2
            c.trainable = arg.trainable or None
            c.log_training_steps = 1
            c.ckpt_steps = 0
            c.evals.val = dict(fname="{folder}/train.jsonl", log_steps=2, max_new_tokens=4)
            return c
        """)
    )
    return folder


@pytest.fixture(scope="module")
def run(folder) -> pathlib.Path:
    """A finished run."""
    workdir = folder / "run"
    train.main(["--config", f"{folder}/config.py", "--workdir", str(workdir)])
    return workdir


def test_run_folder_is_complete(run):
    found = {path.name for path in run.iterdir()}
    assert found >= {
        "config.json",
        "final.npz",
        "metrics.json",
        "metrics.jsonl",
        "predictions-val-000002.jsonl",
        "predictions-val-000004.jsonl",
        "prompt.json",
        "report.html",
        "tokenizer.model",
        "train.log",
    }
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"loss", "grad_norm", "examples_per_s", "input_wait"} <= rows[0].keys()
    assert [row["epoch"] for row in rows] == pytest.approx([4 / 6, 8 / 6, 12 / 6, 16 / 6])
    assert rows[0]["lr"] == 0.0 < rows[3]["lr"] < 1e-2
    assert {"val/loss", "val/map50"} <= rows[1].keys()
    page = (run / "report.html").read_text()
    assert "after step 4 of 4, from" in page and "mAP 50" in page
    assert 'href="config.json"' in page and 'href="predictions-val-000004.jsonl"' in page


def test_evaluation_of_the_final_file_equals_the_last_in_training(run, folder, capsys):
    evaluate.main([f"--run={run}", f"--data={folder}/train.jsonl", "--eval.max_new_tokens=4"])
    scores = json.loads(capsys.readouterr().out)
    last = run_log.read_rows(run / "metrics.jsonl")[-1]
    assert scores["loss"] == pytest.approx(last["val/loss"], rel=1e-5)
    out, first = run / "evaluation-train", (run / "predictions-val-000004.jsonl").read_text()
    assert "map50" in scores and len(scores) < 8
    assert scores.items() <= json.loads((out / "metrics.json").read_text()).items()
    assert (out / "predictions.jsonl").read_text() == first


def test_prediction_by_file_by_array_and_in_evaluation_are_one(run, folder, capsys):
    image = str(folder / "1.png")
    pictures = folder / "pictures"
    words = "--prompt=detect cat", f"--pictures={pictures}", "--eval.max_new_tokens=4"
    predict.main([f"--run={run}", *words, image])
    row = json.loads(capsys.readouterr().out)
    evaluated = (run / "predictions-val-000004.jsonl").read_text().splitlines()[1]
    assert row["prediction"] == json.loads(evaluated)["prediction"]
    assert (pictures / "1.png").exists()
    loaded = paligemma_jax.load(str(run), decoding={"max_new_tokens": 4})
    opened = Image.open(image)
    by_array, by_file = (
        loaded.predict([np.asarray(opened), opened], "detect cat"),
        loaded.predict(image, "detect cat"),
    )
    assert [r["prediction"] for r in by_array] == [row["prediction"]] * 2
    assert by_file[0]["logp"] == pytest.approx(row["logp"], rel=1e-5)


def test_frozen_weights_stay_bit_identical_in_their_16_bit_type(run, folder):
    base = npz.read(run / "final.npz")
    half = {name: array.astype(np.float16) for name, array in base.items()}
    npz.write(folder / "half.npz", half)
    workdir = folder / "attention_only"
    train.main(
        [
            f"--config={folder}/config.py:trainable=llm/layers/attn/.*",
            f"--workdir={workdir}",
            f"--config.model_init={folder}/half.npz",
            "--config.evals={}",
        ]
    )
    final = npz.read(workdir / "final.npz")
    assert set(final) == set(half)
    for name, array in final.items():
        if name.startswith("llm/layers/attn/"):
            assert array.dtype == np.float32
            assert not np.array_equal(array, half[name].astype(np.float32))
        else:
            assert array.dtype == np.float16
            assert np.array_equal(array, half[name])


def test_same_command_gives_the_same_numbers(run, folder):
    workdir = folder / "again"
    train.main([f"--config={folder}/config.py", f"--workdir={workdir}"])
    first, second = npz.read(run / "final.npz"), npz.read(workdir / "final.npz")
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_run_ends_where_it_has_what_it_wants(run, folder, capsys):
    workdir = folder / "enough"
    changes = ["evals.val.fname=input", "stop_at=[('val/loss', 100)]"]
    config = f"--config={folder}/config.py"
    train.main([config, f"--workdir={workdir}", *(f"--config.{change}" for change in changes)])
    said = capsys.readouterr().err
    assert "stop_at: reached after step 2: val/loss" in said
    *_, report, following, evaluating, asking, _ = said.splitlines()
    assert (report, following) == (f"report: {workdir / 'report.html'}", "next:")
    assert evaluating == f"  paligemma-jax evaluate --run {workdir}"
    assert asking.startswith(f"  paligemma-jax predict --run {workdir} --pictures ")
    rows, usual = (run_log.read_rows(path / "metrics.jsonl") for path in (workdir, run))
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[1]["val/loss"] == usual[1]["val/loss"]  # the same examples, by their file
    assert (workdir / "final.npz").exists() and not (workdir / "checkpoints").exists()


def fails(folder, workdir, *arguments: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        train.main([f"--config={folder}/config.py", f"--workdir={folder / workdir}", *arguments])
    assert not (folder / workdir / "final.npz").exists()


def test_everything_wrong_is_said_before_the_first_step(run, folder):
    with pytest.raises(ValueError, match=r"holds a finished run.*--workdir"):
        train.main([f"--config={folder}/config.py", f"--workdir={run}"])
    fails(folder, "a", "--config.input.text_len=6", match=r"train.jsonl:2: needs text_len")
    fails(folder, "b", "--config.trainable=llm/layer/attn/.*", match=r"trainable.*llm/layers/attn/")
    fails(folder, "c", "--config.task=detecting", match="Did you mean 'detection'")
    fails(folder, "d", "--config.mesh=[('data', 3)]", match="data=3")
    accumulation = "--config.accumulation_steps=3"
    fails(folder, "e", accumulation, match=r"batch_size=4 is not divisible by 1 device x 3")
    init = f"--config.model_init={run}/final.npz"
    fails(folder, "f", init, "--config.res=56", match="resample_posemb")
    said = "it says coordinates '1023', the settings '1024'"
    fails(folder, "k", init, "--config.coordinates=1024", match=said)
    fails(folder, "g", f"--config.tokenizer={folder}/config.py", match="sentencepiece")
    fails(folder, "h", "--config.optax_name=scale_by_adamm", match="scale_by_adam")
    fails(folder, "i", "--config.remat_policy=some", match="remat_policy")


def test_checkpoint_with_other_arrays_is_listed(run, folder):
    params = npz.read(run / "final.npz")
    params["llm/layers/attn/q_einsum/v"] = params.pop("llm/layers/attn/q_einsum/w")
    params["img/head/bias"] = params["img/head/bias"][:3]
    npz.write(folder / "other.npz", params)
    both = r"(?s)q_einsum/w.*q_einsum/v|q_einsum/v.*q_einsum/w"
    fails(folder, "j", f"--config.model_init={folder}/other.npz", match=both)


@pytest.mark.slow
def test_bad_image_stops_the_run_naming_its_line_and_keeps_the_state(folder):
    (folder / "broken.png").write_bytes(b"no image")
    # The second batch is the first one that holds this row: see data/index_sampler.py.
    rows = (folder / "train.jsonl").read_text().replace('"4.png"', '"broken.png"')
    (folder / "broken.jsonl").write_text(rows)
    workdir = folder / "broken"
    changes = ["evals={}", f"input.data.fname={folder}/broken.jsonl", "total_steps=40"]
    words = [f"--config={folder}/config.py", *(f"--config.{change}" for change in changes)]
    with pytest.raises(ValueError, match=r"broken.jsonl:5: cannot read image .*broken.png"):
        train.main([*words, f"--workdir={workdir}"])
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["000001"]
    with pytest.raises(ValueError, match=r"did not end. The command that began it goes on"):
        evaluate.main([f"--run={workdir}", f"--data={folder}/train.jsonl"])


@pytest.mark.slow
def test_four_devices_give_the_losses_of_one(run, folder):
    process = start(*training(folder, folder / "four"), devices=4)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    assert "4 x cpu" in stderr
    assert_same_losses(folder / "four", run)


@pytest.mark.slow
def test_two_processes_of_two_devices_give_the_losses_of_one(run, folder):
    workdir = folder / "two_processes"
    wait_for(start_two(*training(folder, workdir)))
    assert_same_losses(workdir, run)

    words = [f"--data={folder}/train.jsonl", "--eval.batch_size=8", "--eval.max_new_tokens=4"]
    said = wait_for(start_two("evaluate", f"--run={workdir}", *words))
    evaluate.main([f"--run={workdir}", *words, "--name=alone"])
    several, one = (
        json.loads((workdir / f"evaluation-{name}" / "metrics.json").read_text())
        for name in ("train", "alone")
    )
    # Beside what is ours there, the processes' connections are announced.
    assert json.loads(said[0].splitlines()[-1])["loss"] == several["loss"]
    assert "loss" not in said[1]
    for name in ("loss", "perplexity"):
        assert several.pop(name) == pytest.approx(one.pop(name), rel=2e-5)
    assert several == one


def training(folder, workdir) -> list[str]:
    """Returns the command that trains with every array split over all devices."""
    return [
        "train",
        f"--config={folder}/config.py",
        f"--workdir={workdir}",
        """--config.sharding_strategy=[('.*', 'fsdp(axis="data", min_size_to_shard_mb=0)')]""",
        "--config.evals.val.batch_size=8",
    ]


def start(door: str, *arguments: str, devices: int, **env: str) -> subprocess.Popen:
    """Starts a command on so many devices of this machine."""
    return subprocess.Popen(
        [sys.executable, "-m", f"paligemma_jax.{door}", *arguments],
        env={
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            **env,
        },
        cwd=pathlib.Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(door: str, *arguments: str) -> list[subprocess.Popen]:
    """Starts two programs of two devices each that work together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2")
    return [
        start(door, *arguments, "--distributed", devices=2, **shared, JAX_PROCESS_ID=str(number))
        for number in range(2)
    ]


def wait_for(processes: list[subprocess.Popen]) -> list[str]:
    """Returns what each wrote to standard output."""
    ended = [process.communicate(timeout=600) for process in processes]
    for process, (_, stderr) in zip(processes, ended, strict=True):
        assert process.returncode == 0, stderr
    return [stdout for stdout, _ in ended]


def assert_same_losses(found: pathlib.Path, expected: pathlib.Path) -> None:
    several, one = (run_log.read_rows(path / "metrics.jsonl") for path in (found, expected))
    for name in ("loss", "grad_norm", "val/loss"):
        values, truth = ([row[name] for row in rows if name in row] for rows in (several, one))
        assert values == pytest.approx(truth, rel=2e-5), name
    first, second = (npz.read_header(path / "final.npz").arrays for path in (found, expected))
    assert first == second
