"""The data that evaluations are on."""

import dataclasses
import types

import pytest

from paligemma_jax.assembly import assembly
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
