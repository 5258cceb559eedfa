import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import jax
import pytest

from paligemma_jax.console import arguments, process
from paligemma_jax.params import sharding

# Maps and frees 100 MiB again and again, and prints the page faults that the last rounds took.
PROGRAM = """
import resource, sys
from paligemma_jax.console import process
if sys.argv[1] == "keep":
    assert process.keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for round in range(6):
    if round == 3:
        before = faults()
    block = bytearray(100 * 2**20)
    del block
print(faults() - before)
"""


def page_faults(*, how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"),
    reason="the allocator is glibc's",
)
def test_freed_memory_is_used_again_without_the_kernel():
    assert page_faults(how="plain") > 10 * page_faults(how="keep")


def test_other_systems_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not process.keep_freed_memory()


# Compiles a program through a door's process, and says how many came from the cache.
COMPILE = """
import jax, jax.numpy as jnp
from paligemma_jax.console import process, say
say.show_on_stderr()
process.keep_programs()
with process.counting() as count:
    found = float(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.eye(3))[0, 0])
print(found, count.from_cache)
"""


def compile_with_cache(folder) -> tuple[str, str]:
    """Returns (what it printed, what it said)."""
    env = {
        **os.environ,
        process.CACHE_ENV: str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, env=env, check=True
    )
    return done.stdout, done.stderr


def test_a_damaged_program_is_removed_and_kept_anew_with_one_line(tmp_path):
    first, nothing = compile_with_cache(tmp_path)
    assert nothing == "" and first.endswith(" 0\n")
    (entry,) = tmp_path.glob("jit__lambda*-cache")
    others, whole = len(list(tmp_path.iterdir())) - 1, entry.read_bytes()
    for damaged in (whole[: len(whole) // 2], bytes([whole[0] ^ 1]) + whole[1:]):
        entry.write_bytes(damaged)
        again, said = compile_with_cache(tmp_path)
        assert said == f"{entry}: a damaged program, removed: it is compiled again\n"
        assert again.split() == [first.split()[0], str(others)]
    assert compile_with_cache(tmp_path) == (f"{first.split()[0]} {others + 1}\n", "")


@pytest.mark.parametrize(("asked", "kept_from"), [(None, process.KEPT_FROM_S), ("5", None)])
def test_short_programs_are_kept_unless_it_is_said_otherwise(
    monkeypatch, tmp_path, asked, kept_from
):
    changes = {}
    monkeypatch.setattr(process.jax.config, "update", changes.__setitem__)
    monkeypatch.setenv(process.CACHE_ENV, str(tmp_path))
    monkeypatch.delenv(process.KEPT_ENV, raising=False)
    if asked:
        monkeypatch.setenv(process.KEPT_ENV, asked)
    process.keep_programs()
    assert changes.get("jax_persistent_cache_min_compile_time_secs") == kept_from
    assert changes["jax_compilation_cache_dir"] == str(tmp_path)


def test_a_cache_that_takes_nothing_is_said_once_and_stops_nothing(tmp_path):
    (tmp_path / "file").touch()
    printed, said = compile_with_cache(tmp_path / "file")
    assert printed.endswith(" 0\n")
    assert said == (
        f"warning: compiled programs are not kept: {tmp_path / 'file'} cannot be made (File "
        f"exists); {process.CACHE_ENV} names a folder\n"
    )


# Signals become a question that the loop asks; a second one is obeyed.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_noted_and_the_next_one_would_end_the_program(number, capfd):
    before = {each: signal.getsignal(each) for each in process.SIGNALS}
    with process.StopRequest(sharding.batch_sharding(sharding.make_mesh([("data", -1)]))) as stop:
        assert not stop() and stop.signal is None
        os.kill(os.getpid(), number)
        assert stop() and stop.signal == signal.Signals(number).name
        assert {signal.getsignal(each) for each in process.SIGNALS} == {signal.SIG_DFL}
    assert {each: signal.getsignal(each) for each in process.SIGNALS} == before
    assert "once more stops at once" in capfd.readouterr().err


def test_second_signal_ends_a_program_at_once():
    program = """if True:
        import os, signal
        from paligemma_jax.console import process
        from paligemma_jax.params import sharding
        with process.StopRequest(sharding.batch_sharding(sharding.make_mesh([("data", -1)]))):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
        """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGTERM


def test_preempted_run_has_a_status_of_its_own(capsys):
    def main():
        raise process.Preempted("preempted: SIGTERM after step 3 of 9")

    with pytest.raises(SystemExit) as caught:
        arguments.run(main)
    assert caught.value.code == 75
    assert capsys.readouterr().err == "warning: preempted: SIGTERM after step 3 of 9\n"


# One of two processes, which does something else where it is told to.
PARTNER = """
import sys, time
from jax.experimental import multihost_utils
from paligemma_jax.console import arguments, process

case, number = sys.argv[1], int(sys.argv[2])

def main():
    arguments.join_processes()
    lr = 0.1 * (1 + number) if case == "other settings" else 0.1
    process.require_same("settings", lambda: {"lr": lr, "model": {"res": 28}})
    if case == f"error in {number}":
        raise ValueError("b.png cannot be read")
    if case == f"defect in {number}":
        raise KeyError("b.png")
    if case == f"error at the end of {number}":
        time.sleep(2)  # the other one waits for it, to end together
        raise OSError("final.npz is not written")
    if "end" not in case and case != "no error":
        multihost_utils.sync_global_devices("never reached by both")

arguments.run(main)
"""


def run_both(case: str) -> list[tuple[int, str]]:
    """Returns status and errors of each of two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = {**os.environ, "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PARTNER, case, str(number)],
            env={**shared, "JAX_PROCESS_ID": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    errors = [one.communicate(timeout=200)[1] for one in both]
    return [(one.returncode, text) for one, text in zip(both, errors, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "statuses", "texts"),
    [
        ("no error", (0, 0), ("", "")),
        ("other settings", (2, 2), ("lr: 0.1 in process 0, 0.2 in process 1",) * 2),
        ("error in 1", (2, 2), ("process 1 of this run failed", "b.png cannot be read")),
        ("error in 0", (2, 2), ("b.png cannot be read", "process 0 of this run failed")),
        ("defect in 1", (2, 1), ("failed, so this one ends too: KeyError: 'b.png'", "Traceback")),
        ("error at the end of 0", (2, 2), ("final.npz is not written", "process 0 of this run")),
    ],
)
def test_error_of_one_process_ends_the_other_with_a_message(case, statuses, texts):
    # Well below the five minutes for which each would wait for the other.
    start = time.monotonic()
    ended = run_both(case)
    assert [status for status, _ in ended] == list(statuses), ended
    for (_, errors), text in zip(ended, texts, strict=True):
        assert text in errors
    assert time.monotonic() - start < 150


class Service:
    """The keys of a run of several processes, in one."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value):
        self.values[key] = value

    def blocking_key_value_get(self, key, timeout_ms):
        assert timeout_ms > 0
        return self.values[key]


class WaitingService(Service):
    """As `Service`, of processes that run at the same time: a key that is missing will come."""

    def blocking_key_value_get(self, key, timeout_ms):
        end = time.monotonic() + 60
        while key not in self.values and time.monotonic() < end:
            time.sleep(0.001)
        return super().blocking_key_value_get(key, timeout_ms)

    def key_value_delete(self, key):
        del self.values[key]


def test_what_processes_differ_in_is_told_to_each_of_them_by_key(monkeypatch):
    service = Service()
    given = [{"lr": 0.1, "evals": {"val": {"fname": "a"}}}, {"lr": 0.1, "evals": {}, "seed": 1}]
    monkeypatch.setattr(process, "_rounds", iter([0, 0, 0]))
    for number in (1, 0):
        state = types.SimpleNamespace(client=service, num_processes=2, process_id=number)
        monkeypatch.setattr(process.distributed, "global_state", state)
        if number:  # the first one is not there yet: it would wait
            service.values["paligemma_jax/compared/0/0"] = json.dumps(process._flat(given[0]))
        with pytest.raises(ValueError, match="differ in their settings:") as caught:
            process.require_same("settings", lambda number=number: given[number])
        if number:
            continue
        assert str(caught.value).splitlines()[1:-1] == [
            "  evals.val.fname: 'a' in process 0, not set in process 1",
            "  evals: not set in process 0, {} in process 1",
            "  seed: not set in process 0, 1 in process 1",
        ]


def test_the_largest_number_of_every_call_is_told_to_all_and_forgotten(monkeypatch):
    service, said = WaitingService(), {}
    monkeypatch.setattr(process, "_rounds", iter([0, 0]))
    asked = {}
    for number in range(2):
        state = types.SimpleNamespace(client=service, num_processes=2, process_id=number)
        monkeypatch.setattr(process.distributed, "global_state", state)
        asked[number] = process.make_largest()

    def call(number: int, numbers: list[int]) -> None:
        said[number] = [asked[number](one) for one in numbers]

    other = threading.Thread(target=call, args=(1, [5, 2, 9, 0]))
    other.start()
    call(0, [3, 4, 1, 0])
    other.join(60)
    assert said == {0: [5, 4, 9, 0], 1: [5, 4, 9, 0]}
    assert len(service.values) == 2, "more is kept than the last call's"


def test_alone_the_largest_number_is_ones_own():
    assert process.make_largest()(7) == 7


def test_nothing_is_compared_where_nobody_else_is():
    process.require_same("settings", lambda: pytest.fail("it is asked for"))


def test_versions_name_what_computes():
    known = process.versions()
    assert known["jax"] == jax.__version__
    assert len(known["paligemma_jax"]) == 16


class Beats(Service):
    """As `Service`, with what the watch asks of it."""

    def key_value_increment(self, key, by):
        self.values[key] = str(int(self.values.get(key, 0)) + by)

    def key_value_dir_get(self, folder):
        return [(key, text) for key, text in self.values.items() if key.startswith(folder)]


@pytest.fixture
def watched(monkeypatch):
    """Process 0 of two, which looks often; what its end would be is kept in `.ended`."""
    service, ended = Beats(), []
    state = types.SimpleNamespace(client=service, num_processes=2, process_id=0)
    monkeypatch.setattr(process.distributed, "global_state", state)
    monkeypatch.setattr(process, "LOOK_S", 0.005)
    monkeypatch.setattr(process, "SILENT_S", 0.3)
    monkeypatch.setattr(process, "GRACE_S", 0.01)
    monkeypatch.setattr(process.faulthandler, "dump_traceback", lambda: ended.append("stack"))

    def end(status):
        ended.append(status)
        state.client = None

    monkeypatch.setattr(process, "_exit", end)
    service.key_value_increment("paligemma_jax/alive/1", 1)
    return types.SimpleNamespace(service=service, state=state, ended=ended)


def test_a_process_that_was_killed_ends_the_others_by_name(watched, caplog):
    process._watch()
    assert watched.ended == ["stack", process.FAILED]
    assert "process 1 of this run is gone: nothing has come from it" in caplog.text


@pytest.mark.parametrize("how", ["it is busy", "it has ended"])
def test_a_process_that_beats_or_has_left_is_not_missed(watched, how):
    if how == "it has ended":
        watched.service.key_value_set("paligemma_jax/left/1", "")
    watch = threading.Thread(target=process._watch)
    watch.start()
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        time.sleep(0.01)
        if how == "it is busy":
            watched.service.key_value_increment("paligemma_jax/alive/1", 1)
    watched.state.client = None
    watch.join(5)
    assert watched.ended == []


def test_the_error_that_a_process_noted_is_told_rather_than_its_silence(watched, caplog):
    watched.service.key_value_set("paligemma_jax/failed/1", "b.png cannot be read")
    watched.state.process_id = 0
    process._watch()
    assert watched.ended == [process.FAILED]
    assert "process 1 of this run failed, so this one ends too: b.png" in caplog.text
