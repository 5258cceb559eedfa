"""Runs that are killed, or asked to stop, go on as if nothing had happened: through the door."""

import functools
import multiprocessing
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from paligemma_jax import train
from paligemma_jax.checkpoints import npz
from paligemma_jax.console import arguments as console_arguments
from paligemma_jax.reports import run_log
from tests import tiny_runs

pytestmark = pytest.mark.slow
STEPS = 24
TIMINGS = {"seconds", "examples_per_s", "input_wait", "programs_compiled"}
# State of each kind: factored moments, momentum in 16 bits, a moving average.
STATE = (
    "--config.optax_name=big_vision.scale_by_adafactor",
    "--config.optax={'min_dim_size_to_factor': 8}",
    "--config.ema_decay=0.9",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A folder with a data set of 6 images, a tokenizer and a config; dropout and evaluation on."""
    folder = tmp_path_factory.mktemp("resume")
    tiny_runs.write_pictures(folder)
    (folder / "config.py").write_text(
        textwrap.dedent(f"""
        from paligemma_jax.settings import presets

        def get_config(arg=""):
            c = presets.from_scratch(
                res=14,
                text_len=12,
                img=dict(width=8, depth=1, mlp_dim=8, num_heads=1),
                llm=dict(width=8, depth=1, mlp_dim=8, num_heads=1, num_kv_heads=1, head_dim=8),
            )
            c.model.llm.dropout = 0.1
            c.input.data.fname = "{folder}/train.jsonl"
            c.input.batch_size = 4
            c.tokenizer = "{folder}/tokenizer.model"
            c.total_steps = {STEPS}
            c.lr = 1e-2
            c.log_training_steps = 1
            c.ckpt_steps = 3
            c.evals.val = dict(fname="{folder}/train.jsonl", log_steps=12, decode=False)
            return c
        """)
    )
    return folder


@pytest.fixture(scope="module")
def start(folder):
    """Starts the door in a process, forked from one that has imported what it needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["paligemma_jax.train", "tensorflow"])

    def start(workdir: str, *arguments: str):
        argv = [f"--config={folder}/config.py", f"--workdir={folder / workdir}", *STATE, *arguments]
        call = functools.partial(train.main, argv)
        process = context.Process(target=console_arguments.run, args=(call,))
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def straight(start, folder) -> pathlib.Path:
    """A run that nobody touched."""
    return finish(start("straight"), folder / "straight")


def finish(process, workdir: pathlib.Path) -> pathlib.Path:
    process.join(timeout=300)
    assert process.exitcode == 0
    return workdir


def wait_for(condition, process) -> None:
    while not condition():
        assert process.is_alive()
        time.sleep(0.0005)


def last_step(workdir: pathlib.Path) -> int:
    path = workdir / "metrics.jsonl"
    rows = run_log.read_rows(path) if path.exists() else []
    return rows[-1]["step"] if rows else 0


def is_saving(workdir: pathlib.Path) -> bool:
    return any(not path.name.isdecimal() for path in (workdir / "checkpoints").glob("*"))


def rows(workdir: pathlib.Path) -> list[dict]:
    found = run_log.read_rows(workdir / "metrics.jsonl")
    return [{key: row[key] for key in row if key not in TIMINGS} for row in found]


def assert_same_run(found: pathlib.Path, expected: pathlib.Path) -> None:
    first, second = npz.read(found / "final.npz"), npz.read(expected / "final.npz")
    assert list(first) == list(second)
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name
    assert rows(found) == rows(expected)


def test_three_kills_and_a_request_to_stop_leave_no_trace(start, straight, folder):
    workdir = folder / "killed"
    for condition, number, status in (
        (lambda: last_step(workdir) >= 1, signal.SIGKILL, -9),  # before the first checkpoint
        (lambda: last_step(workdir) >= 8 and is_saving(workdir), signal.SIGKILL, -9),
        (lambda: last_step(workdir) >= 10, signal.SIGTERM, 75),
        (lambda: last_step(workdir) >= 15, signal.SIGKILL, -9),
    ):
        process = start("killed")
        wait_for(condition, process)
        os.kill(process.pid, number)
        process.join(timeout=300)
        assert process.exitcode == status
        if status == 75:
            newest = max(path.name for path in (workdir / "checkpoints").iterdir())
            assert newest == f"{last_step(workdir):06d}"
    assert_same_run(finish(start("killed"), workdir), straight)
    with pytest.raises(ValueError, match="finished run"):
        train.main([f"--config={folder}/config.py", f"--workdir={workdir}", *STATE])


def start_on(devices: int, folder, workdir: str, *arguments: str, **env: str) -> subprocess.Popen:
    """Starts a program that splits every array over so many devices of this machine."""
    command = [
        *(sys.executable, "-m", "paligemma_jax.train"),
        *(f"--config={folder}/config.py", f"--workdir={folder / workdir}", "--resume_anyway"),
        """--config.sharding_strategy=[('.*', 'fsdp(axis="data", min_size_to_shard_mb=0)')]""",
        "--config.evals.val.batch_size=8",
        *arguments,
    ]
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        command,
        env={**os.environ, "XLA_FLAGS": flags, **env},
        cwd=pathlib.Path(__file__).parents[1],
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen, status: int = 0) -> str:
    """Returns what a program said, after making sure of its exit status."""
    _, errors = process.communicate(timeout=600)
    assert process.returncode == status, errors
    return errors


def test_run_of_four_devices_goes_on_with_two(folder):
    end(start_on(4, folder, "four"))
    end(start_on(4, folder, "four_two", "--config.keep_last=9"))
    workdir = folder / "four_two"
    (workdir / "final.npz").unlink()
    for path in sorted((workdir / "checkpoints").iterdir())[4:]:
        (path / "sizes.json").unlink()  # as if the run had been stopped at step 12
    said = end(start_on(2, folder, "four_two", "--config.keep_last=9"))
    assert "000015 is damaged" in said and "going on after step 12" in said
    found, expected = rows(workdir), rows(folder / "four")
    assert found[:12] == expected[:12]
    for row, other in zip(found[12:], expected[12:], strict=True):
        assert row == pytest.approx(other, rel=1e-6), row["step"]


def test_two_processes_stop_at_the_same_step_when_one_is_asked_to_and_go_on(folder):
    end(start_on(2, folder, "two_devices"))

    def start_both() -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        shared = dict(JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2")
        return [
            start_on(1, folder, "two", "--distributed", **shared, JAX_PROCESS_ID=str(number))
            for number in range(2)
        ]

    workdir = folder / "two"
    both = start_both()
    while last_step(workdir) < 4:
        assert all(process.poll() is None for process in both)
        time.sleep(0.001)
    both[1].send_signal(signal.SIGTERM)
    said = [end(process, status=75) for process in both]
    number = last_step(workdir)
    assert f"preempted: another process after step {number} of {STEPS}" in said[0]
    assert f"preempted: SIGTERM after step {number} of {STEPS}" in said[1]
    for process in start_both():
        assert f"going on after step {number}" in end(process)
    for row, other in zip(rows(workdir), rows(folder / "two_devices"), strict=True):
        assert row == pytest.approx(other, rel=1e-6), row["step"]
