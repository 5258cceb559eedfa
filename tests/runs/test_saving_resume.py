"""A run goes on in its own folder only, and with its own settings."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from paligemma_jax.runs import saving
from paligemma_jax.settings import load


@pytest.fixture
def begun(config, tmp_path):
    """The folder of a run that began with `config`."""
    (tmp_path / "config.json").write_text(load.to_json(load.typed(config)))
    return tmp_path


def test_folder_that_cannot_be_one_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--workdir .*run: .*file is a file"):
        saving.claim_folder(tmp_path / "file" / "run").__enter__()


def test_second_training_in_a_folder_is_refused_and_told_which_process_is_there(tmp_path):
    workdir = tmp_path / "run"
    with saving.claim_folder(workdir):
        message = rf"run is in use by process {os.getpid()} on {socket.gethostname()} \(since 20"
        with pytest.raises(ValueError, match=message):
            saving.claim_folder(workdir).__enter__()
        (workdir / "config.json").touch()
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_folder_of_a_killed_training_is_taken_over_with_a_word(tmp_path, capsys):
    program = (
        "import os, pathlib, signal\nfrom paligemma_jax.files import run_folder\n"
        f"claim = run_folder.claimed(pathlib.Path({str(tmp_path)!r}))\nclaim.__enter__()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.Popen([sys.executable, "-c", program])
    assert killed.wait() == -signal.SIGKILL
    with saving.claim_folder(tmp_path):
        pass
    assert f"process {killed.pid} on {socket.gethostname()}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_folder_that_stays_empty_is_removed_and_one_that_took_its_place_is_left_alone(tmp_path):
    with saving.claim_folder(tmp_path / "run"):
        pass
    assert list(tmp_path.iterdir()) == []
    with saving.claim_folder(tmp_path / "run"):
        (tmp_path / "run").rename(tmp_path / "moved")
        other = saving.claim_folder(tmp_path / "run")
        other.__enter__()
        (tmp_path / "run" / "config.json").touch()
    assert len(list((tmp_path / "run").iterdir())) == 3
    other.__exit__(None, None, None)


def test_finished_run_is_not_begun_again(config, begun):
    saving.check_folder(load.typed(config), begun)
    (begun / "final.npz").touch()
    with pytest.raises(ValueError, match=r"holds a finished run \(final.npz\)"):
        saving.check_folder(load.typed(config), begun, resume_anyway=True)


@pytest.mark.parametrize("key", ["input.data", "evals.val", "input.mixture.many"])
def test_folder_of_data_is_no_folder_of_a_run(config, tmp_path, key):
    if "mixture" in key:
        config.input.mixture = {"many": {"fname": config.input.data.fname}}
        config.input.data.fname = None
    config.update_from_flattened_dict({f"{key}.fname": str(tmp_path / "some.jsonl")})
    with pytest.raises(ValueError, match=rf"{key}.fname=.*some.jsonl' lies in it"):
        saving.check_folder(load.typed(config), tmp_path)


def test_other_settings_are_shown_and_must_be_wanted(config, begun, capsys):
    config.lr = 0.5
    config.model.img.dims = {"width": 8, "depth": 2}
    config.evals.extra = {"fname": "/x.jsonl"}
    with pytest.raises(ValueError, match=r"(?s)other settings:.*--resume_anyway") as caught:
        saving.check_folder(load.typed(config), begun)
    assert sorted(str(caught.value).splitlines()[1:-1]) == [
        "  evals.extra: not set there, {'fname': '/x.jsonl'} now",
        "  lr: 0.001 there, 0.5 now",
        "  model.img.dims.depth: 1 there, 2 now",
        "  model.img.dims.mlp_dim: 8 there, not set now",
        "  model.img.dims.num_heads: 1 there, not set now",
    ]
    saving.check_folder(load.typed(config), begun, resume_anyway=True)
    assert "lr: 0.001 there, 0.5 now" in capsys.readouterr().err


def test_key_that_is_newer_than_the_run_is_no_difference_at_its_default(config, begun):
    stored = json.loads((begun / "config.json").read_text())
    del stored["accumulation_steps"], stored["model"]["img"]["attention"]
    (begun / "config.json").write_text(json.dumps(stored))
    saving.check_folder(load.typed(config), begun)
    config.model.img.attention = "cudnn"
    with pytest.raises(ValueError, match=r"\n  model.img.attention: 'xla' there, 'cudnn' now\n"):
        saving.check_folder(load.typed(config), begun)


def test_torn_config_is_an_error_with_its_line(config, begun):
    (begun / "config.json").write_text('{\n "seed":')
    with pytest.raises(ValueError, match=r"config.json:2: not JSON"):
        saving.check_folder(load.typed(config), begun)


@pytest.mark.parametrize("stored", ["nothing_saveable", "dots_saveable"])
def test_a_run_keeps_the_remat_policy_that_it_began_with(config, begun, stored):
    assert config.remat_policy == "auto"
    assert saving.keep_remat(load.typed(config), begun / "new").remat_policy == "auto"
    (begun / "config.json").write_text(f'{{"remat_policy": "{stored}"}}')
    assert saving.keep_remat(load.typed(config), begun).remat_policy == stored


def test_a_remat_policy_that_is_asked_for_is_another_setting(config, begun):
    config.remat_policy = "none"
    with pytest.raises(ValueError, match="remat_policy: 'auto' there, 'none' now"):
        saving.check_folder(saving.keep_remat(load.typed(config), begun), begun)
