"""Rows of predictions and scores, from answers that a test makes up."""

import jax
import numpy as np
import pytest
from PIL import Image

from paligemma_jax.data import objects, records, tokens
from paligemma_jax.decoding import generate
from paligemma_jax.evaluation import prediction_rows
from paligemma_jax.tasks import task

N = 24
BONE = "<loc0100><loc0200><loc0300><loc0400> bone"
HAND = "<loc0500><loc0500><loc0900><loc0900> hand"
SUFFIXES = [BONE, f"{BONE} ; {HAND}", "", HAND, BONE]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return tokens.train_tokenizer(["detect bone ; hand", "a bone", "a hand"] * 9, path)


@pytest.fixture
def examples():
    return [
        records.Record((f"/data/{i}.png",), "detect bone ; hand", suffix, f"a.jsonl:{i + 1}")
        for i, suffix in enumerate(SUFFIXES)
    ]


def make_batches(answers, *, size=2):
    """Batches of [index, answer ids]; the last one is filled with copies marked as such."""
    for start in range(0, len(answers), size):
        index = np.minimum(np.arange(start, start + size), len(answers) - 1)
        real = np.arange(start, start + size) < len(answers)
        rows = [answers[i] for i in index]
        yield {"index": np.where(real, index, -1), "_mask": real, "rows": rows}


def answer(params, batch):
    """Stands for generate: says what the batch holds, log-probability -0.1 a token."""
    length = np.array([len(ids) for ids in batch["rows"]])
    written = np.arange(N) < length[:, None]
    ids = np.array([ids + [0] * (N - len(ids)) for ids in batch["rows"]], np.int32)
    logp = np.where(written, params, 0).astype(np.float32)
    return generate.Generation(ids, logp, length, batch["index"], batch["_mask"])


def encode(tokenizer, texts):
    return [[*tokenizer.encode(text), tokenizer.eos] for text in texts]


def run(answers, examples, tokenizer, *, batches=None, params=-0.1, **kwargs):
    batches = make_batches(answers) if batches is None else batches
    detection = task.choose("detection")
    return prediction_rows.evaluate(
        answer, params, batches, examples, tokenizer, detection, **kwargs
    )


def test_right_answers_score_one_and_rows_say_what_was_asked_and_answered(tokenizer, examples):
    answers = encode(tokenizer, SUFFIXES)
    rows, scores = run(answers, examples, tokenizer)
    assert scores["map50"] == 1 and scores["correct"] == 1
    assert scores["num_hit_max_new_tokens"] == 0
    assert scores["mean_tokens"] == np.mean([len(ids) for ids in answers])
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
    row = rows[0]
    assert (row["source"], row["images"]) == ("a.jsonl:1", ["/data/0.png"])
    assert (row["prefix"], row["suffix"], row["prediction"]) == ("detect bone ; hand", BONE, BONE)
    assert row["tokens"] == len(answers[0]) and row["stopped"] is True
    assert row["logp"] == pytest.approx(-0.1 * len(answers[0]), abs=1e-5)
    assert row["detections"][0]["label"] == "bone"
    assert row["detections"][0]["score"] == pytest.approx(np.exp(-0.1 - 0.1), rel=0.5)
    assert [found["label"] for found in rows[1]["truths"]] == ["bone", "hand"]
    assert rows[2]["detections"] == [] and rows[2]["prediction"] == ""


def test_verbatim_is_the_share_of_answers_that_are_the_truth_letter_by_letter(tokenizer, examples):
    texts = [BONE.replace(" bone", "  bone"), *SUFFIXES[1:]]
    rows, scores = run(encode(tokenizer, texts), examples, tokenizer)
    assert rows[0]["correct"] and scores["correct"] == 1
    assert scores["verbatim"] == 0.8
    unknown = [records.Record((), "detect bone", None, "b.jsonl:1")] * 5
    assert np.isnan(run(encode(tokenizer, texts), unknown, tokenizer)[1]["verbatim"])


def test_an_answer_without_eos_is_counted(tokenizer, examples):
    answers = encode(tokenizer, SUFFIXES)
    answers[3] = answers[3][:-1]
    rows, scores = run(answers, examples, tokenizer)
    assert scores["num_hit_max_new_tokens"] == 1
    assert [row["stopped"] for row in rows] == [True, True, True, False, True]
    assert rows[3]["prediction"] == HAND


def test_malformed_answers_are_rows_with_their_reasons(tokenizer, examples):
    texts = ["<loc0100> bone", *SUFFIXES[1:]]
    rows, _ = run(encode(tokenizer, texts), examples, tokenizer)
    assert rows[0]["detections"] == [] and rows[0]["dropped"] == {"loc_count": 1}
    assert rows[0]["score"] == 0


def test_rows_without_truth_are_predicted_too(tokenizer, examples):
    examples[1] = records.Record((), "detect bone", None, "b.jsonl:1")
    rows, _ = run(encode(tokenizer, SUFFIXES), examples, tokenizer)
    assert rows[1]["suffix"] is None and rows[1]["truths"] is None
    assert len(rows[1]["detections"]) == 2


def test_boxes_have_the_pixels_that_the_file_or_the_row_tells(tokenizer, examples, tmp_path):
    Image.new("RGB", (1023, 2046)).save(tmp_path / "a.png")
    kept = objects.make(width=10, height=1023, labels=("bone",), boxes_xyxy=[[0, 0, 5, 5]])
    examples[0] = records.Record((f"{tmp_path}/a.png",), "detect bone", BONE, "b.jsonl:1")
    examples[1] = records.Record(("gone.png",), "detect bone", BONE, "b.jsonl:2", objects=kept)
    rows, _ = run(encode(tokenizer, [BONE] * 5), examples, tokenizer)
    (top, left, bottom, right) = rows[0]["detections"][0]["box_yxyx"]
    by_file, by_row = (row["detections"][0]["xyxy"] for row in rows[:2])
    assert by_file == pytest.approx(
        [1023 * left, 2046 * top, 1023 * right, 2046 * bottom], abs=0.01
    )
    assert by_row == pytest.approx([10 * left, 1023 * top, 10 * right, 1023 * bottom], abs=0.01)
    assert "xyxy" not in rows[3]["detections"][0], "a file that is not there tells nothing"


def test_rows_come_in_the_order_of_the_batches_and_are_sorted_for_scores(tokenizer, examples):
    batches = list(make_batches(encode(tokenizer, SUFFIXES)))[::-1]
    detection = task.choose("detection")
    found = prediction_rows.predict(answer, -0.1, batches, examples, tokenizer, detection)
    assert [row["index"] for row in found] == [4, 2, 3, 0, 1]
    rows, _ = run(None, examples, tokenizer, batches=batches)
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([0, 1], r"1 of 5 records were in no batch, the first: a.jsonl:5"),
        ([0, 1, 0, 2], r"a.jsonl:1: record 0 was answered twice"),
    ],
)
def test_a_record_left_out_or_answered_twice_is_an_error(tokenizer, examples, keep, message):
    batches = list(make_batches(encode(tokenizer, SUFFIXES)))
    with pytest.raises(ValueError, match=message):
        run(None, examples, tokenizer, batches=[batches[i] for i in keep])


def test_an_index_that_is_no_record_is_an_error(tokenizer, examples):
    with pytest.raises(ValueError, match="index 3, but there are 3 records"):
        run(encode(tokenizer, SUFFIXES), examples[:3], tokenizer)


def test_log_probabilities_that_are_no_numbers_name_the_row(tokenizer, examples):
    with pytest.raises(ValueError, match=r"a.jsonl:1: the model's log-probabilities are \[nan"):
        run(encode(tokenizer, SUFFIXES), examples, tokenizer, params=np.nan)


def test_progress_counts_rows(tokenizer, examples):
    seen = []
    answers = encode(tokenizer, SUFFIXES)
    run(answers, examples, tokenizer, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_a_batch_is_made_and_dispatched_before_answers_to_the_one_before_are_waited_for(
    tokenizer, examples, monkeypatch
):
    events, get = [], jax.device_get

    def batches():
        for number, batch in enumerate(make_batches(encode(tokenizer, SUFFIXES))):
            events.append(f"make {number}")
            yield batch | {"number": number}

    def answer_noting(params, batch):
        events.append(f"dispatch {batch['number']}")
        return answer(params, batch)

    def get_noting(x):
        events.append("wait")
        return get(x)

    monkeypatch.setattr(jax, "device_get", get_noting)
    detection = task.choose("detection")
    for row in prediction_rows.predict(
        answer_noting, -0.1, batches(), examples, tokenizer, detection
    ):
        events.append(f"row {row['index']}")
    begun = ["make 0", "dispatch 0", "make 1", "dispatch 1"]
    first = ["wait", "row 0", "row 1", "make 2", "dispatch 2"]  # while the device answers 1
    assert events == [*begun, *first, "wait", "row 2", "row 3", "wait", "row 4"]


@pytest.mark.parametrize(
    "text", ["", f"{BONE} ; {HAND}", " two  spaces ", "Kn\u00f6chel \u9aa8 \U0001f9b4 end"]
)
def test_the_parts_of_a_text_join_to_the_text(tokenizer, text):
    ids = [tokenizer.bos, *tokenizer.encode(text), tokenizer.vocab_size + 7]
    decoded = tokenizer.decode(ids)
    parts = prediction_rows.split_text(tokenizer, ids, decoded)
    assert "".join(parts) == decoded == text
    assert len(parts) == len(ids) and parts[0] == ""


def test_a_loc_token_is_a_part_of_its_own(tokenizer):
    ids = tokenizer.encode(BONE)
    parts = prediction_rows.split_text(tokenizer, ids, BONE)
    assert parts[:4] == ["<loc0100>", "<loc0200>", "<loc0300>", "<loc0400>"]


def test_bytes_cut_off_before_a_character_is_complete_do_not_fail(tokenizer):
    ids = tokenizer.encode("a \U0001f9b4")[:-1]
    text = tokenizer.decode(ids)
    assert "".join(prediction_rows.split_text(tokenizer, ids, text)) == text
