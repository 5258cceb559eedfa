"""Reports of a run's evaluations."""

import dataclasses
import json
import types

import pytest

from paligemma_jax.assembly import assembly
from paligemma_jax.evaluation import evaluator
from paligemma_jax.settings import load

ROW = dict(
    index=0, source="a.jsonl:1", images=[], prefix="p", suffix="s", prediction="s", score=1.0
)


def test_evaluations_of_one_run_keep_their_own_files(tmp_path):
    for name, loss in (("one", 1.0), ("two", 2.0)):
        evaluator.write_report(
            tmp_path, [ROW], {"loss": loss}, title=name, run=None, evaluation=name
        )
    found = [json.loads((tmp_path / f"metrics-{n}.json").read_text()) for n in ("one", "two")]
    assert found == [{"loss": 1.0}, {"loss": 2.0}]
    assert "<h1>two</h1>" in (tmp_path / "report-two.html").read_text()


def test_what_is_trained_on_can_be_evaluated_on(config):
    config.input.num_examples, config.evals.val.fname = 1, "input"
    found = evaluator.make(assembly.assemble(load.typed(config)), "val").records
    assert [record.source.rpartition("/")[2] for record in found] == ["train.jsonl:1"]
    config.evals.val.image_dir = "elsewhere"
    with pytest.raises(ValueError, match=r"evals.val.image_dir='elsewhere': the images of 'input'"):
        evaluator.make(assembly.assemble(load.typed(config)), "val")


def test_batches_are_rounded_up_to_what_the_devices_share(config):
    built = assembly.assemble(load.typed(config))
    four = dataclasses.replace(built, mesh=types.SimpleNamespace(size=4))
    assert evaluator.make(four, "val").prompts.batch_size == 4  # of 2 in training
    config.evals.val.batch_size = 5
    one = evaluator.make(dataclasses.replace(four, settings=load.typed(config)), "val")
    assert one.prompts.batch_size == one.examples.batch_size == 8


def test_so_many_rows_are_evaluated_as_the_settings_say(config):
    config.evals.val.num_examples = 1
    records = evaluator.make(assembly.assemble(load.typed(config)), "val").records
    assert [record.source.rpartition("/")[2] for record in records] == ["train.jsonl:1"]


def test_curves_have_the_evaluation_that_the_report_is_of(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "val/loss": 2.0}\n')
    shown = []
    monkeypatch.setattr(evaluator.gallery, "write", lambda *_, history, **__: shown.extend(history))
    now = {"step": 2, "val/loss": 1.0}
    evaluator.write_report(tmp_path, [ROW], {}, title="", run=tmp_path, now=now)
    assert shown == [{"step": 1, "val/loss": 2.0}, now]
