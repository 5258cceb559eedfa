"""The data that evaluations are on."""

import dataclasses
import json
import types

import jax
import pytest

from paligemma_jax.assembly import assembly
from paligemma_jax.console import process
from paligemma_jax.evaluation import evaluator
from paligemma_jax.settings import load


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


def test_evaluations_that_differ_by_a_few_tokens_share_compiled_programs(
    config, data_folder, tmp_path
):
    rows = [json.loads(line) for line in (data_folder / "train.jsonl").read_text().splitlines()]
    longer = [{**row, "suffix": f"{row['suffix']} cat cat"} for row in rows]
    (tmp_path / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in longer))
    config.input.text_len = 32
    config.evals.other = dict(fname=f"{tmp_path}/other.jsonl", image_dir=str(data_folder))
    built = assembly.assemble(load.typed(config))
    first, second = (evaluator.make(built, name) for name in ("val", "other"))
    assert first.max_new_tokens == second.max_new_tokens
    assert first.eval_loss is second.eval_loss
    params = built.model.init(jax.random.key(0))
    evaluator.run(built, first, params)
    with process.counting() as count:
        evaluator.run(built, second, params)
    assert count.programs == 0
    config.evals.other.sampler = "temperature"
    built = dataclasses.replace(built, settings=load.typed(config))
    assert evaluator.make(built, "other").generate.func is not first.generate.func
