"""experiments/benchmarks: what compare makes of its sides' answers, and one tiny run of our own."""

import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "benchmarks"
HIDDEN = ("tensorflow", "ml_collections", "matplotlib", "PIL", "sentencepiece", "pycocotools")
# Hides libraries from every Python that finds this as sitecustomize.
HIDE = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {libraries}:
            return self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
# A side that answers at once; its arguments are the folder and the case.
SIDE = """
import json, sys
for line in sys.stdin:
    answer = {{"seconds": {{"step": {seconds}}}, "loss": {loss}, "peak_bytes": 5}}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def modules():
    """Returns a function that imports a file of experiments/benchmarks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module


@pytest.fixture
def folder(tmp_path):
    told = {"dtype": "float32", "model": {"vocab_size": 64_000}}
    (tmp_path / "work.json").write_text(json.dumps(told))
    return tmp_path


def make_results(*, device="cpu", rounds=3) -> dict:
    def side(seconds, **more):
        times = [{"prefill": seconds, "further token": seconds / 10}] * rounds
        return {"seconds": times, "device": device, "peak_bytes": 2_500_000_000} | more

    ours, theirs = side(1.0, read_bytes=33.5e9), side(4.0)
    step = {"seconds": [{"step": 2.0}] * rounds, "device": device, "flops": 989e12}
    return {
        "date": "2026-01-02",
        "machine": "1 core of x86_64",
        "size": "tiny",
        "arguments": {"rounds": rounds},
        "versions": {"paligemma_jax": {"jax": "9.9"}},
        "cases": {
            "decode": {
                "batch_size": 32,
                "sides": {"paligemma_jax": ours, "keras_hub": theirs},
                "left_out": {"big_vision": "not there"},
            },
            "step": {"batch_size": 8, "sides": {"paligemma_jax": step}, "left_out": {}},
        },
        "scripts": {"help": {"rows": [{"quotient": 1.4}]}, "input": {"left_out": "no data"}},
    }


def test_table_has_a_row_for_every_case_quantity_and_side(modules):
    rows = modules("report").rows(make_results())
    assert [row[:4] for row in rows] == [
        ("decode: prefill", "paligemma_jax", "1.000 s", "32 prompts"),
        ("decode: prefill", "keras_hub", "4.000 s", "8 prompts"),
        ("decode: further token", "paligemma_jax", "100 ms", "320 tokens"),
        ("decode: further token", "keras_hub", "400 ms", "80 tokens"),
        ("step", "paligemma_jax", "2.000 s", "4 examples"),
    ]
    assert [row[4] for row in rows] == ["2.50 GB"] * 4 + [""]
    assert rows[1][6:] == ("0.250", "0.250 to 0.250")


def test_shares_of_the_peak_are_shown_where_it_is_known(modules):
    def shown(device):
        return [row[5] for row in modules("report").rows(make_results(device=device))]

    assert shown("cpu") == [""] * 5
    # 33.5 GB in 0.1 and in 0.4 s of 3350 GB/s; 989 TFLOP in 2 s of 989 TFLOP/s.
    assert shown("NVIDIA H100 80GB HBM3")[2:] == ["bandwidth 10.0%", "bandwidth 2.5%", "MFU 50.0%"]


def test_results_folder_has_numbers_table_and_plot(modules, tmp_path):
    report, results = modules("report"), make_results()
    assert report.folder_name(results) == "2026-01-02-1-core-of-x86-64-tiny"
    shown = report.write(tmp_path / "a", results)
    report.write(tmp_path / "b", results)
    assert json.loads((tmp_path / "a" / "results.json").read_text()) == results
    assert (tmp_path / "a" / "table.md").read_text() == shown
    assert "- decode, big_vision: not there\n- input: no data" in shown
    assert "| help | quotient: 1.4 |" in shown
    plots = [(tmp_path / name / "plot.svg").read_bytes() for name in "ab"]
    assert plots[0] == plots[1] and b"<svg" in plots[0]


def test_own_benchmarks_alone_have_no_plot(modules, tmp_path):
    modules("report").write(tmp_path, make_results() | {"cases": {}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "table.md"]


def test_cases_are_added_to_a_folder_of_the_same_machine_and_arguments(modules, tmp_path):
    report, old, new = modules("report"), make_results(), make_results()
    old["cases"] = {"full": old["cases"]["step"], "step": old["cases"]["decode"]}
    report.write(tmp_path, old)
    report.write(tmp_path, new)
    written = json.loads((tmp_path / "results.json").read_text())["cases"]
    assert written == {**old["cases"], **new["cases"]}
    with pytest.raises(ValueError, match=r"rounds.*give --out another folder"):
        report.write(tmp_path, make_results(rounds=4))


def run_sides(modules, folder, **others):
    commands = {"paligemma_jax": SIDE.format(seconds=1, loss=10.0), **others}
    group = {name: [sys.executable, "-c", code] for name, code in commands.items()}
    outcome = modules("sides").time_runs([group], folder, {}, rounds=2, label="test")
    return outcome.found, outcome.left_out


def test_a_side_that_cannot_run_is_left_out_with_the_reason(modules, folder):
    found, left_out = run_sides(modules, folder, keras_hub="import not_installed")
    assert left_out == {"keras_hub": "ModuleNotFoundError: No module named 'not_installed'"}
    assert list(found) == ["paligemma_jax"]
    assert found["paligemma_jax"]["seconds"] == [{"step": 1}, {"step": 1}]


def test_our_side_of_an_earlier_commit_runs_with_the_package_of_its_checkout(modules, folder):
    sides, checkout = modules("sides"), folder / "earlier"
    side = checkout / sides.OUR_FILE
    side.parent.mkdir(parents=True)
    side.write_text("import paligemma_jax\n" + SIDE.format(seconds="paligemma_jax.TOOK", loss=1.0))
    (checkout / "paligemma_jax").mkdir()
    (checkout / "paligemma_jax" / "__init__.py").write_text("TOOK = 4")
    commands = {
        "paligemma_jax": [sys.executable, "-c", SIDE.format(seconds=1, loss=1.0)],
        sides.BEFORE: sides.command_before(checkout),
    }
    outcome = sides.time_runs([commands], folder, {}, rounds=2, label="test")
    assert outcome.found["before"]["seconds"] == [{"step": 4}, {"step": 4}]
    quotient = modules("report").quotient({"sides": outcome.found}, "before", "step")
    assert quotient == (0.25, 0.25, 0.25)


def test_a_side_with_another_loss_is_left_out(modules, folder):
    same, other = (SIDE.format(seconds=1, loss=loss) for loss in (10.0015, 10.1))
    found, left_out = run_sides(modules, folder, transformers=same, keras_hub=other)
    assert list(found) == ["paligemma_jax", "transformers"]
    assert left_out == {"keras_hub": "other work: its loss is 10.10000, ours 10.00000"}


def test_other_tokens_are_other_work_in_float32_alone(modules, folder):
    sides = modules("sides")
    ours, theirs = {"tokens": [[1, 2], [3, 4]]}, {"tokens": [[1, 2], [3, 5]]}
    with pytest.raises(sides.Ended, match="75% of its tokens are ours"):
        sides.check(theirs, ours, folder)
    told = {"dtype": "bfloat16", "model": {"vocab_size": 64_000}}
    (folder / "work.json").write_text(json.dumps(told))
    assert sides.check(theirs, ours, folder) == {"tokens_as_ours": 0.75, "seconds": []}


def test_without_our_side_a_case_is_left_out(modules, folder):
    found, left_out = run_sides(
        modules, folder, paligemma_jax="1 / 0", keras_hub=SIDE.format(seconds=1, loss=1.0)
    )
    assert (found, left_out) == ({}, {"paligemma_jax": "ZeroDivisionError: division by zero"})
    results = make_results()
    results["cases"]["step"] = {"batch_size": 8, "sides": found, "left_out": left_out}
    assert "- step, paligemma_jax: ZeroDivisionError" in modules("report").write(folder, results)


def test_starts_are_timed_without_and_with_what_was_compiled(modules, folder):
    command = [sys.executable, "-c", SIDE.format(seconds=1, loss=1.0)]
    outcome = modules("sides").time_starts(
        {"paligemma_jax": command}, folder, {}, rounds=2, label="test"
    )
    timed = outcome.found["paligemma_jax"]["seconds"]
    assert [list(times) for times in timed] == [["cold", "with cache"]] * 2


def test_a_side_that_runs_out_of_memory_says_so(modules, folder):
    died = "print('x: RESOURCE_EXHAUSTED: 9 bytes\\nlater', file=__import__('sys').stderr)"
    _, left_out = run_sides(modules, folder, big_vision=died)
    assert left_out == {"big_vision": "x: RESOURCE_EXHAUSTED: 9 bytes"}


def test_sides_use_all_cores_unless_cores_says_how_many(modules, monkeypatch, capsys):
    compare, cores, pinned = modules("compare"), sorted(os.sched_getaffinity(0)), []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, chosen: pinned.append(chosen))
    monkeypatch.setattr(sys, "argv", ["compare.py"])
    compare.pin(compare.parse_args().cores)
    monkeypatch.setattr(sys, "argv", ["compare.py", "--cores", "1"])
    compare.pin(compare.parse_args().cores)
    assert pinned == [cores, cores[:1]]
    monkeypatch.setattr(sys, "argv", ["compare.py", "--cores", str(len(cores) + 1)])
    with pytest.raises(SystemExit):
        compare.parse_args()
    assert f"this process may use {len(cores)}" in capsys.readouterr().err


@pytest.fixture
def without_libraries(tmp_path):
    """Returns the environment of a Python that finds none of HIDDEN."""
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(libraries=HIDDEN))
    paths = os.pathsep.join(map(str, (tmp_path, ROOT, FOLDER)))
    return {**os.environ, "PYTHONPATH": paths}


@pytest.mark.slow
def test_our_side_imports_on_a_machine_with_little_else(without_libraries):
    for library in HIDDEN:
        with pytest.raises(subprocess.CalledProcessError):
            run(["-c", f"import {library}"], without_libraries)
    run(["-c", "import compare, prepare, side_ours"], without_libraries)


def run(arguments: list[str], env: dict[str, str]) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_our_side_runs_on_a_machine_with_little_else(without_libraries, tmp_path):
    arguments = [str(FOLDER / "compare.py"), "--size", "tiny", "--rounds", "1"]
    arguments += ["--what", "LoRA step, Adam", "decode, batch 1", "checkpoint"]
    arguments += ["--sides", "paligemma_jax", "big_vision", "--out", str(tmp_path / "out")]
    shown = run(arguments, without_libraries)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["cases"]) == ["LoRA step, Adam", "decode, batch 1", "checkpoint"]
    for case in results["cases"].values():
        hidden = "ModuleNotFoundError: No module named 'ml_collections'"
        assert case["left_out"] == {"big_vision": hidden}
        assert len(case["sides"]["paligemma_jax"]["seconds"]) == 1
    assert results["versions"]["paligemma_jax"].keys() == {"jax", "flax", "optax"}
    assert shown == (tmp_path / "out" / "table.md").read_text() + "\n"
