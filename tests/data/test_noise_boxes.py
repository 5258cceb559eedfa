"""Noise boxes: what an answer is filled up with, and what of it is learnt."""

import numpy as np
import pytest

from paligemma_jax.data import noise_boxes, pipeline, prefix_lm, records, tokens
from paligemma_jax.tasks import box_text

CAT = "<loc0100><loc0200><loc0300><loc0400> cat"
TEXT_LEN = 40


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> tokens.Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    return tokens.train_tokenizer(["detect all classes", " cat", " ; "], path, vocab_size=1500)


@pytest.fixture(scope="module")
def noise(tokenizer) -> noise_boxes.NoiseBoxes:
    return noise_boxes.make(tokenizer, "<seg127>", seed=0)


def encode(tokenizer, suffix: str, text_len: int = TEXT_LEN, **kwargs):
    prefix = "detect all classes"
    return prefix_lm.encode_training(tokenizer, prefix, suffix, text_len=text_len, **kwargs)


def read(tokenizer, row) -> str:
    """The answer in a row as text."""
    is_answer = row["mask_ar"] & row["mask_input"]
    return tokenizer.decode(row["text"][is_answer], stop_at_eos=False)


def test_an_answer_goes_on_with_noise_to_the_end_of_the_text(tokenizer, noise):
    row = encode(tokenizer, CAT)
    filled = noise.fill(row, 0)
    text = read(tokenizer, filled)
    first, *others = text.split(box_text.SEPARATOR)
    assert first == CAT and len(others) == 4
    for other in others:
        (box,) = box_text.parse(other.replace("<seg127>", " x")).boxes_yxyx
        assert (box[:2] < box[2:]).all()
    assert noise.eos not in filled["text"]
    size = len(noise.separator) + 5
    assert 0 <= (~filled["mask_input"]).sum() < size
    assert not filled["mask_loss"][~filled["mask_input"]].any()
    assert (filled["text"][~filled["mask_input"]] == tokenizer.pad).all()


def test_what_noise_is_is_learnt_and_where_it_lies_is_not(tokenizer, noise):
    row, filled = encode(tokenizer, CAT), noise.fill(encode(tokenizer, CAT), 0)
    eos = int(row["mask_input"].sum()) - 1
    np.testing.assert_array_equal(filled["mask_loss"][:eos], row["mask_loss"][:eos])
    answer = filled["text"][eos:][filled["mask_input"][eos:]]
    is_loc = np.isin(answer, list(tokenizer.loc_ids))
    learnt = filled["mask_loss"][eos:][filled["mask_input"][eos:]]
    np.testing.assert_array_equal(learnt, ~is_loc)
    assert (answer == noise.noise).sum() == 4 and is_loc.sum() == 16
    np.testing.assert_array_equal(filled["mask_ar"], row["mask_ar"])


def test_a_broken_answer_is_filled_too(tokenizer, noise):
    broken = CAT.replace("<loc0100>", "")
    assert read(tokenizer, noise.fill(encode(tokenizer, broken), 0)).count("<seg127>") == 4


def test_an_image_without_objects_has_noise_alone(tokenizer, noise):
    text = read(tokenizer, noise.fill(encode(tokenizer, ""), 0))
    assert text.startswith("<loc") and text.count("<seg127>") == 5


def test_noise_is_a_function_of_seed_and_position(tokenizer, noise):
    row, other = encode(tokenizer, CAT), noise_boxes.make(tokenizer, "<seg127>", seed=1)
    texts = [read(tokenizer, n.fill(row, i)) for n, i in ((noise, 3), (noise, 4), (other, 3))]
    assert texts[0] == read(tokenizer, noise.fill(row, 3))
    assert len(set(texts)) == 3


def test_noise_lies_everywhere_and_is_never_empty(noise):
    nowhere = np.zeros((0, 4), int)
    ids = np.concatenate([noise._draw(50, position, nowhere) for position in range(40)])
    bins = ids - noise.loc_ids[0]
    assert (bins[:, :2] < bins[:, 2:]).all()
    assert bins.min() < 5 and bins.max() > 1018
    # Two places of a line are a third of it apart on average.
    assert abs((bins[:, 2:] - bins[:, :2]).mean() - 1024 / 3) < 10


def test_noise_lies_where_boxes_do_as_often_as_anywhere(tokenizer):
    dog = "<loc0001><loc0002><loc0003><loc0004> dog"
    noise = noise_boxes.make(tokenizer, "<seg127>", seed=0, suffixes=[dog, "", f"{dog} ; {dog}"])
    assert noise.places.shape == (3, 4)
    texts = [read(tokenizer, noise.fill(encode(tokenizer, CAT), i)) for i in range(300)]
    boxes = [part for text in texts for part in text.split(box_text.SEPARATOR)[1:]]
    own = boxes.count(CAT.replace(" cat", "<seg127>"))
    others = boxes.count(dog.replace(" dog", "<seg127>"))
    assert len(boxes) == 1200
    for count in (own, others, len(boxes) - own - others):
        assert abs(count - 400) < 60  # three standard deviations are 49


def test_a_row_without_room_or_without_eos_stays_as_it_is(tokenizer, noise):
    needed = int(encode(tokenizer, CAT)["mask_input"].sum())
    full = encode(tokenizer, CAT, text_len=needed)
    assert noise.fill(full, 0) is full
    cut = encode(tokenizer, f"{CAT} ; {CAT}", text_len=needed, allow_truncation=True)
    assert noise.fill(cut, 0) is cut


@pytest.mark.parametrize("piece", ["<unused0>", "cat dog", "<loc0000>", "<eos>", ""])
def test_a_piece_that_cannot_be_noise_is_an_error(tokenizer, piece):
    with pytest.raises(ValueError, match=f"noise piece '{piece}': .*'<unused0>' of Gemma's"):
        noise_boxes.make(tokenizer, piece, seed=0)


def test_training_and_validation_rows_are_filled_and_prompts_are_not(tokenizer, noise):
    data = [records.Record((), "detect all classes", CAT, source="x:1")]
    spec = pipeline.BatchSpec(res=14, text_len=TEXT_LEN, batch_size=1)
    (train,) = pipeline.train_batches(data, tokenizer, spec, seed=0, total_steps=1, noise=noise)
    (valid,) = pipeline.validation_batches(data, tokenizer, spec, noise=noise)
    (prompt,) = pipeline.eval_batches(data, tokenizer, spec)
    for batch in (train, valid):
        assert (batch["text"] == noise.noise).sum() == 4
    assert noise.noise not in prompt["text"]
