"""Each system: its own raw data, by its own commands, to a plan; slow: to a score and a report."""

import importlib
import pathlib

import pytest

from paligemma_jax.assembly import assembly
from paligemma_jax.runs import training_run
from paligemma_jax.settings import load

FOLDER = pathlib.Path(__file__).parents[1] / "experiments" / "systems"
NAMES = ("fracture", "water", "counting", "structured_vqa", "vqa", "caption")
# The first example's prompt, and an answer that must be among those to learn.
EXPECTED = {
    "fracture": ("detect fracture", None),
    "water": ("segment water", None),
    "counting": ("count dime ; penny ; euro and answer in JSON", '{\n  "penny": 2\n}'),
    "structured_vqa": ("answer en which events are there, and in which phase?", "jump: start"),
    "vqa": ("answer en what color is the ball?", "red"),
    "caption": ("caption en", "a green ball to the left of a blue box"),
}


@pytest.fixture(scope="module")
def run():
    """experiments/systems/run.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("run")


@pytest.mark.parametrize("name", NAMES)
def test_raw_data_become_what_the_config_trains_on(run, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepared = run.prepare(name, tmp_path, say=lambda _: None)
    config = load.load(prepared.config, prepared.overrides)
    planned = training_run.plan(assembly.assemble(config))
    prompt, answer = EXPECTED[name]
    assert len(planned.data.records) == 8
    assert {record.prefix for record in planned.data.records} >= {prompt}
    assert answer is None or answer in {record.suffix for record in planned.data.records}
    assert planned.optimizer.trainable


@pytest.mark.slow  # vqa's chain is run by its command in test_experiments.py
@pytest.mark.parametrize("name", [name for name in NAMES if name != "vqa"])
def test_eight_records_are_repeated_from_raw_data_to_report(run, name, tmp_path):
    row = run.run(name, tmp_path, say=lambda _: None)
    assert row["records"] == 8 and row["verbatim"] == 1
    for key, least in run.SYSTEMS[name].scores.items():
        assert row["scores"][key] >= least, key
    assert (tmp_path / name / "evaluation-input" / "report.html").stat().st_size > 1000
