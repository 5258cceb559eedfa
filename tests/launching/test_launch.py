"""The launch door, with stand-ins for gcloud, sbatch and ssh that record what they are asked."""

import io
import json
import os
import pathlib
import re
import sys
import tarfile

import pytest

from paligemma_jax import launch
from paligemma_jax.console import arguments
from paligemma_jax.launching import clusters, shell, tpu

STAND_IN = """#!{python} -IS
import json, os, re, sys, time
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
line = " ".join(words)
given = b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()
with open({record!r}, "a") as file:
    file.write(json.dumps([words, len(given)]) + "\\n")
answers = json.load(open({answers!r}))
for number, (pattern, status, text) in enumerate(answers):
    if re.search(pattern, line):
        if status >= 1000:  # once: the next call gets the next answer
            del answers[number]
            with open({answers!r}, "w") as file:
                json.dump(answers, file)
            status -= 1000
        if text.startswith("sleep "):
            time.sleep(float(text.split()[1]))
        (sys.stderr if status else sys.stdout).write(text + "\\n")
        sys.exit(status)
"""
ONCE = 1000
KINDS = ("accelerator-types list", 0, "v5litepod-8\nv5litepod-16")
PROJECT = ("config get-value project", 0, "mine")
ACTIVE = ("queued-resources describe", 0, "ACTIVE")
TPU = ["--tpu", "v5e-8", "--zone", "us-west4-a", "--name", "run-1"]
TRAIN = ["--", "train", "--config", "demo", "--workdir", "gs://bucket/run"]


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Returns a function that takes answers; stand-ins are on PATH, `.calls()` tells what came."""
    record, answers, folder = (tmp_path / name for name in ("calls", "answers", "bin"))
    folder.mkdir()
    text = STAND_IN.format(python=sys.executable, record=str(record), answers=str(answers))
    for name in ("gcloud", "sbatch", "ssh"):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(tpu, "WAIT_S", 0.01)
    monkeypatch.setattr(clusters, "GRACE_S", 1.0)
    monkeypatch.setattr(shell, "PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(launch.signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)

    def prepare(*given):
        answers.write_text(json.dumps(given))

    prepare.calls = lambda: (
        [" ".join(json.loads(line)[0]) for line in record.read_text().splitlines()]
        if record.exists()
        else []
    )
    prepare.given = lambda: [json.loads(line)[1] for line in record.read_text().splitlines()]
    return prepare


def status_of(words) -> int:
    return arguments.status_of(lambda: launch.main(words))


def kinds_of(calls):
    """Returns what was asked of gcloud, in a word each."""
    words = ("create", "describe", "delete", "scp", "tar xzf", "exec ")
    return [word.strip() for call in calls for word in words if f" {word}" in f" {call}"]


def test_a_tpu_is_made_used_and_deleted(programs):
    programs(PROJECT, KINDS, ACTIVE)
    assert status_of([*TPU, "--spot", "--setup", "echo hello", *TRAIN]) == 0
    calls = programs.calls()
    (create,) = [call for call in calls if " create " in call]
    assert "run-1 --node-id=run-1 --zone=us-west4-a" in create and "--spot" in create
    assert "--accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite" in create
    (start,) = [call for call in calls if "exec" in call]
    assert "-m paligemma_jax.train --config demo --workdir gs://bucket/run" in start
    assert "--distributed" not in start  # one host
    (install,) = [call for call in calls if "pip install" in call]
    assert install.endswith("'.[tpu,gcs]' && echo hello")
    assert "queued-resources delete run-1 --zone=us-west4-a --force --quiet" in calls[-1]
    assert kinds_of(calls) == ["create", "describe", "scp", "tar xzf", "exec", "delete"]


def test_a_dry_run_shows_every_command_and_calls_none(programs, capsys):
    programs()
    assert status_of([*TPU, "--dry_run", *TRAIN]) == 0
    assert programs.calls() == []
    shown = capsys.readouterr().out.splitlines()
    assert kinds_of(shown) == ["create", "describe", "scp", "tar xzf", "exec", "delete"]
    assert status_of(["--hosts", "a,b", "--dry_run", "--", "train", "--config", "demo"]) == 0
    assert status_of(["--slurm", "--name", "x", "--dry_run", "--", "train"]) == 0
    assert programs.calls() == [] and not pathlib.Path("x.sbatch").exists()


@pytest.mark.parametrize("failing", ["tar xzf", "exec", "scp"])
def test_a_tpu_is_deleted_after_whatever_fails(programs, failing, capsys):
    programs((failing, 3, "it broke"), PROJECT, KINDS, ACTIVE)
    assert status_of([*TPU, *TRAIN]) in (2, 3)
    assert kinds_of(programs.calls())[-1] == "delete" or "delete" in programs.calls()[-1]
    assert "it broke" in capsys.readouterr().err or failing == "exec"


def test_a_spot_machine_that_is_taken_is_made_again_and_the_run_goes_on(programs):
    programs(
        *(PROJECT, KINDS),
        ("exec", 1 + ONCE, "connection closed"),
        ("describe", 0 + ONCE, "ACTIVE"),
        ("describe", 0 + ONCE, "SUSPENDED"),
        ("describe", 0 + ONCE, "WAITING_FOR_RESOURCES"),
        ACTIVE,
    )
    assert status_of([*TPU, "--spot", *TRAIN]) == 0
    names = kinds_of(programs.calls())
    assert names.count("create") == names.count("delete") == names.count("exec") == 2


def test_a_machine_that_is_taken_every_time_is_given_up(programs):
    programs(PROJECT, KINDS, ("describe", 0, "FAILED"))
    assert status_of([*TPU, "--attempts", "3", *TRAIN]) == 75
    names = kinds_of(programs.calls())
    assert names.count("create") == names.count("delete") == 3


def test_a_command_that_fails_by_itself_is_not_repeated(programs):
    programs(PROJECT, KINDS, ACTIVE, ("exec", 2, "config: no such file"))
    assert status_of([*TPU, *TRAIN]) == 2
    assert kinds_of(programs.calls()).count("exec") == 1


def test_a_tpu_that_cannot_be_deleted_is_told_with_the_command(programs, capsys):
    programs(PROJECT, KINDS, ACTIVE, ("queued-resources delete", 1, "no network"))
    assert status_of([*TPU, *TRAIN]) == 0
    said = capsys.readouterr().err
    assert "STILL THERE and may cost: gcloud compute tpus queued-resources delete run-1" in said
    assert len([call for call in programs.calls() if " delete " in call]) == 3


def test_a_name_that_another_tpu_has_deletes_nothing(programs, capsys):
    programs(PROJECT, KINDS, ("queued-resources create", 1, "ERROR: ALREADY_EXISTS: run-1"))
    assert status_of([*TPU, *TRAIN]) == 2
    assert "ALREADY_EXISTS" in capsys.readouterr().err
    assert not [call for call in programs.calls() if " delete " in call]


def test_a_kept_tpu_stays(programs):
    programs(PROJECT, KINDS, ACTIVE)
    assert status_of([*TPU, "--keep", *TRAIN]) == 0
    assert not [call for call in programs.calls() if " delete " in call]


@pytest.mark.parametrize(
    ("words", "answers", "message"),
    [
        ([*TPU], [PROJECT, KINDS], "stands behind --"),
        (["--tpu", "v5e", "--zone", "z", *TRAIN], [], "expected a generation"),
        (["--tpu", "v5e-8", *TRAIN], [], "--tpu needs --zone"),
        ([*TPU, *TRAIN], [("get-value", 0, "")], "give --project"),
        ([*TPU, *TRAIN], [PROJECT, ("types list", 0, "v4-8")], "us-west4-a has no v5litepod-8"),
        ([*TPU, *TRAIN], [PROJECT, ("types list", 1, "PERMISSION_DENIED")], "PERMISSION_DENIED"),
        (["--tpu", "v5e-16", "--zone", "z", *TRAIN], [PROJECT, KINDS], "4 processes write one run"),
        (
            ["--tpu", "v5e-16", "--zone", "z", "--", "predict", "a.png"],
            [],
            "only train and evaluate",
        ),
        (["--hosts", "a,a", *TRAIN], [], "is there twice"),
        (["--hosts", "a b", *TRAIN], [], "expected names, as alpha,beta"),
        (["--hosts", "a", *TRAIN], [("ssh", 255, "Permission denied (publickey)")], "publickey"),
    ],
)
def test_what_is_wrong_is_said_before_anything_costs(programs, capsys, words, answers, message):
    programs(*answers)
    assert status_of(words) == 2
    assert message in capsys.readouterr().err
    assert not [call for call in programs.calls() if " create " in call or "tar xzf" in call]


def test_an_option_of_another_way_is_an_error(capsys):
    with pytest.raises(SystemExit):
        launch.parse_args(["--slurm", "--spot", "--", "train"])
    assert "--spot is of --tpu, not of --slurm" in capsys.readouterr().err


def test_several_hosts_of_a_tpu_are_one_run(programs):
    programs(PROJECT, KINDS, ACTIVE)
    words = ["--tpu", "v5e-16", "--zone", "z", "--name", "a"]
    assert status_of([*words, "--", "train", "--config", "demo", "--workdir", "/mnt/run"]) == 0
    (start,) = [call for call in programs.calls() if "exec" in call]
    assert "--workdir /mnt/run --distributed" in start and "--worker=all" in start


def test_a_job_of_slurm_saves_before_its_time_is_over_and_is_queued_again(programs):
    programs(("sbatch", 0, "77;cluster"))
    words = ["--slurm", "--name", "mine", "--nodes", "2", "--gpus", "8", "--time", "4:00:00"]
    assert status_of([*words, "--", "train", "--config", "demo", "--workdir", "/s/a b"]) == 0
    assert programs.calls() == ["sbatch --parsable mine.sbatch"]
    text = pathlib.Path("mine.sbatch").read_text()
    for line in ("--nodes=2", "--gpus-per-node=8", "--time=4:00:00", "--signal=TERM@120"):
        assert f"#SBATCH {line}\n" in text
    assert "paligemma_jax.train --config demo --workdir '/s/a b' --distributed\n" in text
    assert '[ $status -ne 75 ] || exec scontrol requeue "$SLURM_JOB_ID"' in text


def test_a_job_that_slurm_refuses_is_its_error(programs, capsys):
    programs(("sbatch", 1, "Batch job submission failed: Invalid partition"))
    assert status_of(["--slurm", "--partition", "no", "--", "train", "--config", "demo"]) == 2
    assert "Invalid partition" in capsys.readouterr().err


HOSTS = ["--hosts", "me@alpha,beta", "--", "train", "--config", "demo", "--workdir", "/shared/run"]


def test_hosts_get_the_code_and_a_process_each(programs):
    programs()
    assert status_of(HOSTS) == 0
    calls = programs.calls()
    starts = sorted(call for call in calls if "exec" in call)
    for number, (start, host) in enumerate(zip(sorted(starts), ("beta", "me@alpha"), strict=True)):
        assert f"{host} cd ~/paligemma_jax" in start
        assert "JAX_COORDINATOR_ADDRESS=alpha:8476 JAX_NUM_PROCESSES=2" in start
        assert f"JAX_PROCESS_ID={1 - number}" in start and start.endswith("--distributed")
    sent = [size for call, size in zip(calls, programs.given(), strict=True) if "tar xzf" in call]
    assert len(sent) == 2 and min(sent) > 10_000


def test_when_one_host_fails_the_others_are_asked_to_end(programs, capsys):
    programs(("alpha.*exec", 0, "sleep 30"), ("beta.*exec", 7, "killed"))
    assert status_of(HOSTS) == 7
    assert "beta ended with 7" in capsys.readouterr().err
    stops = [call for call in programs.calls() if "kill -TERM" in call]
    assert len(stops) == 2 and re.search(r"grep -q paligemma_jax /proc/", stops[0])


def test_the_code_that_is_sent_is_the_package_and_the_named_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("x = 1")
    with tarfile.open(
        fileobj=io.BytesIO(shell.pack(["train", "--config", "mine.py:res=448"]))
    ) as f:
        names = f.getnames()
    assert {"mine.py", "pyproject.toml", "paligemma_jax/train.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]
    with pytest.raises(ValueError, match="give the path from the folder"):
        shell.pack(["train", f"--config={tmp_path}/mine.py"])
