"""The switch of the noise-box recipe: data, loss, decoding and scores follow it together."""

import numpy as np
import pytest

from paligemma_jax.assembly import assembly, datasets, training_data
from paligemma_jax.evaluation import evaluator
from paligemma_jax.prediction import predictor
from paligemma_jax.settings import load, schema

PIECE = "<seg127>"


@pytest.fixture
def noisy(config):
    config.input.noise_piece = PIECE
    config.input.data.prefix_template = "detect all classes"
    config.input.text_len = 40
    return config


def test_answers_have_the_room_of_training_and_neither_noise_nor_end(noisy):
    built = assembly.assemble(load.typed(noisy))
    one = evaluator.make(built, "val")
    params = assembly.load_weights(built, None)
    rows, scores = evaluator.run(built, one, params)
    prompt = len(built.tokenizer.encode("detect all classes")) + 2
    for row in rows:
        assert (row["tokens"], row["stopped"]) == (40 + 1 - prompt, False)
        assert PIECE not in row["prediction"] and "unsure" in row
    assert np.isfinite(scores["loss"]) and scores["num_hit_max_new_tokens"] == 2


def test_training_answers_are_filled_up(noisy):
    built = assembly.assemble(load.typed(noisy))
    read = training_data.read(load.typed(noisy), built.tokenizer)
    assert read.noise.forbidden_ids == (built.tokenizer.seg_ids[-1], built.tokenizer.eos)
    assert len(read.noise.places) and set(read.noise.places.flat) <= set(built.tokenizer.loc_ids)


def test_a_prediction_has_the_room_of_training_too(noisy):
    built = assembly.assemble(load.typed(noisy))
    model = predictor.open_predictor(built, None, schema.EvalSettings(fname=""))
    (row,) = model.predict(np.zeros((14, 14, 3), np.uint8), "detect all classes")
    assert row["tokens"] == 40 - datasets.PROMPT_MULTIPLE and not row["stopped"]


def test_beams_need_an_end(noisy):
    noisy.evals.val.sampler = "beam"
    with pytest.raises(ValueError, match="sampler 'beam' ends answers"):
        evaluator.make(assembly.assemble(load.typed(noisy)), "val")


def test_the_recipe_is_for_detection(noisy):
    noisy.task = "caption"
    with pytest.raises(ValueError, match="for detection, not the task 'caption'"):
        datasets.make_task(load.typed(noisy))


def test_a_wrong_piece_is_said_before_weights_load(noisy):
    noisy.input.noise_piece = "<noise>"
    with pytest.raises(ValueError, match=r"input\.noise_piece: noise piece '<noise>': the tok"):
        evaluator.make(assembly.assemble(load.typed(noisy)), "val")
