"""The key `constrain`: from settings and prompts to what may be said, through the doors."""

import json

import numpy as np
import pytest

from paligemma_jax.assembly import assembly
from paligemma_jax.checks import planned_run
from paligemma_jax.decoding import constraint
from paligemma_jax.evaluation import evaluator
from paligemma_jax.prediction import predictor
from paligemma_jax.settings import load
from paligemma_jax.settings import schema as settings_schema
from paligemma_jax.tasks import box_text

PICTURES = [np.zeros((14, 14, 3), np.uint8)] * 3


def make(config, constrain, prompts=("detect cat",), room=40):
    built = assembly.assemble(load.typed(config))
    size = built.functions.vocab_size
    chosen = evaluator.constrain_answers(
        load.typed(config), constrain, tokenizer=built.tokenizer, vocab_size=size
    )
    return chosen(prompts, room)


def test_answers_are_free_unless_asked_for(config):
    assert make(config, None) is None


@pytest.mark.slow
def test_an_evaluation_holds_answers_to_the_labels_of_their_prompts(config):
    config.evals.val.update(constrain="task", sampler="beam", max_new_tokens=40, beam_size=2)
    built = assembly.assemble(load.typed(config))
    rows, scores = evaluator.run(
        built, evaluator.make(built, "val"), assembly.load_weights(built, None)
    )
    assert scores["num_hit_max_new_tokens"] == 0 and all(row["stopped"] for row in rows)
    assert not any(row["dropped"] for row in rows)
    assert {d["label"] for row in rows for d in row["detections"]} <= {"cat"}


def test_a_predictor_holds_answers_to_the_labels_of_each_prompt(config):
    model = predictor.open_predictor(
        assembly.assemble(load.typed(config)),
        None,
        settings_schema.EvalSettings(
            fname="", constrain="task", sampler="temperature", max_new_tokens=60
        ),
    )
    for prompt, labels in (("detect cat", {"cat"}), ("detect dog ; bird", {"bird", "dog"})):
        rows = model.predict(PICTURES, prompt)
        assert [box_text.check(row["prediction"]) for row in rows] == [None] * 3
        assert {d["label"] for row in rows for d in row["detections"]} <= labels


def test_prompts_of_one_label_set_share_a_grammar(config):
    same = make(config, "task", ["detect cat ; dog", "detect dog ; cat"])
    assert same.starts.tolist() == [2]
    two = make(config, "task", ["detect cat", "detect dog", "detect cat"])
    assert two.starts[0] == two.starts[2] != two.starts[1]
    config.input.lowercase = True
    assert make(config, "task", ["detect cat", "detect Cat"]).starts.tolist() == [2]


def test_a_list_is_labels_where_there_are_boxes_and_answers_elsewhere(config):
    assert len(make(config, ["cat", "dog"], ["detect all classes"]).starts) == 1
    config.task = "vqa"
    made = make(config, ["cat", "a cat"], ["is it?"])
    assert constraint.shortest_answers(made).tolist() == [2], "cat and eos"


def test_a_schema_is_read_from_its_file(config, tmp_path):
    path, config.task = tmp_path / "schema.json", "json"
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    path.write_text(json.dumps(schema))
    model = predictor.open_predictor(
        assembly.assemble(load.typed(config)),
        None,
        settings_schema.EvalSettings(fname="", constrain=str(path), sampler="temperature"),
    )
    rows = model.predict(PICTURES, "count")
    assert all(isinstance(json.loads(row["prediction"])["n"], int) for row in rows)


@pytest.mark.parametrize(
    ("task", "constrain", "prompt", "message"),
    [
        ("detection", "task", "detect all classes", r"names no labels, as 'detect cat ; dog' does"),
        ("detection", "schema.json", "detect cat", "for detection 'task' .* or a list of labels"),
        ("detection", ["a;b"], "detect cat", "label 'a;b'"),
        ("vqa", "task", "answer", "'task' is for detection and segmentation; for the task 'vqa'"),
        ("json", "no.json", "count", "'no.json': no such file"),
        ("json", __file__, "count", "not JSON"),
        ("vqa", ["much too long an answer"] * 2, "answer", "and there is room for 6"),
    ],
)
def test_a_grammar_that_cannot_be_made_is_an_error(config, task, constrain, prompt, message):
    config.task = task
    with pytest.raises(ValueError, match=message):
        make(config, constrain, [prompt], room=6)


def test_json_that_does_not_fit_is_an_error(config, tmp_path):
    path, config.task = tmp_path / "schema.json", "json"
    path.write_text('{"const": "some words"}')
    with pytest.raises(ValueError, match=r"the shortest answer takes .* there is room for 6"):
        make(config, str(path), ["count"], room=6)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ('{"type": {"type": "string"}}', r"JSON schema, \$: type {'type': 'string'} is none of"),
        ('{"type": "string", "maxLength": -5}', r"JSON schema, \$: maxLength=-5: expected"),
        ('{"type": "array", "items": ' * 9999, "not JSON|too deep within each other"),
        ("[" * 200_000 + "]" * 200_000, "too deep within each other; .* at most 32 levels"),
        ("\ufeff{", "not JSON: "),
    ],
)
def test_a_wrong_schema_is_one_error_that_names_its_file(config, tmp_path, written, message):
    path, config.task = tmp_path / "schema.json", "json"
    path.write_text(written, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"constrain='.*schema\.json': .*(?:{message})"):
        make(config, str(path), ["count"])


def test_a_folder_is_no_schema(config, tmp_path):
    config.task = "json"
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        make(config, str(tmp_path), ["count"])


def test_noise_boxes_have_no_end_and_so_no_grammar(config):
    config.input.noise_piece = "<seg127>"
    config.evals.val.constrain = "task"
    with pytest.raises(ValueError, match=r"with input.noise_piece they have no end"):
        evaluator.make(assembly.assemble(load.typed(config)), "val")


def test_prompts_are_checked_before_weights_load(config):
    with pytest.raises(ValueError, match="names no labels"):
        predictor.open_predictor(
            assembly.assemble(load.typed(config)),
            "no such weights",
            settings_schema.EvalSettings(fname="", constrain="task"),
            prompts=["what?"],
        )


def test_the_check_door_finds_a_wrong_grammar(config):
    config.evals.val.constrain = "nonsense"
    built = assembly.assemble(load.typed(config))
    _, found, _ = planned_run.look(load.typed(config), built.tokenizer, examples=[])
    assert any("constrain='nonsense'" in finding.what for finding in found)
