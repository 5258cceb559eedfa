"""Records are scored by the text that is learnt."""

from paligemma_jax.assembly import datasets
from paligemma_jax.settings import load


def test_bos_newline_and_eos_of_the_users_own_are_no_part_of_the_truth(config, data_folder):
    found = datasets.read_records(
        load.typed(config), f"{data_folder}/eos.jsonl", key="evals.val.fname"
    )
    plain = datasets.read_records(
        load.typed(config), f"{data_folder}/train.jsonl", key="evals.val.fname"
    )
    assert found[0].suffix.endswith("<eos>")
    learnt = datasets.as_learnt(load.typed(config), found)
    assert [(r.prefix, r.suffix) for r in learnt] == [(r.prefix, r.suffix) for r in plain]


def test_truth_is_lower_case_where_training_is(config, data_folder):
    config.input.lowercase = True
    config.input.data.prefix_template = "Detect CAT"
    found = datasets.read_records(
        load.typed(config), f"{data_folder}/train.jsonl", key="evals.val.fname"
    )
    assert datasets.as_learnt(load.typed(config), found)[0].prefix == "detect cat"
