"""From another tool's export to answers, with three commands and no config file."""

import json
import pathlib
import sys

import pytest

from paligemma_jax import __main__
from paligemma_jax.preparing import starting

sys.path.insert(0, str(pathlib.Path(__file__).parent / "preparing"))
from conftest import place, write_coco  # noqa: F401 (fixtures)


@pytest.mark.slow
def test_three_commands_lead_from_coco_to_a_scored_page(place, write_coco, capsys, monkeypatch):  # noqa: F811
    write_coco("data/coins", 10)
    train = ["train", "--data", "data/coins", "--model", "tiny", "--config.total_epochs=-1"]
    __main__.main([*train, "--config.total_steps=2", "--config.evals.valid.max_new_tokens=8"])
    run = place / "runs/coins"
    assert (run / "report.html").exists() and (run / "final.npz").exists()
    # The run's folder is moved, and used from elsewhere.
    run.rename(place / "moved")
    monkeypatch.chdir(place / "data")
    capsys.readouterr()
    __main__.main(["evaluate", "--run", "../moved"])
    assert json.loads(capsys.readouterr().out)["loss"] > 0
    assert (place / "moved/evaluation-valid/report.html").exists()
    __main__.main(["predict", "--run", "../moved", "--eval.max_new_tokens=8", "coins/0.png"])
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["prefix"] == "detect coin ; note"
    # What it learnt can be trained on, as any other weights.
    start = starting.model_search.find("../moved", "full", None)
    assert start.keys["model_init"] == str(place / "moved")
    assert start.values["llm"]["width"] == 96 and start.keys["tokenizer"]
