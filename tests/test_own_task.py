"""A task and a metric of one's own, as docs/extending.md writes them, through the real rooms.

From lines of JSONL to training rows, to answers and their scores, to the report: the examples are
the page's own, and no line of the package is changed.
"""

import json

import numpy as np
import pytest
from PIL import Image

from paligemma_jax.data import prefix_lm, records, tokens
from paligemma_jax.decoding import generate
from paligemma_jax.evaluation import prediction_rows, report
from paligemma_jax.tasks import definition, metrics, task
from tests import extending_page

TRUTHS = ["a1 c3", "b2", "d4 e5 f6"]
ROOM = 24


@pytest.fixture
def own(monkeypatch):
    """The page's task and metric, listed in the tables."""
    squares, first = extending_page.run_example("A task"), extending_page.run_example("A metric")
    monkeypatch.setitem(task.TASKS, "squares", squares.make)
    monkeypatch.setitem(metrics.METRICS, "first_word", first.FIRST_WORD)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("own_task") / "tokenizer.model"
    return tokens.train_tokenizer(["where?", *TRUTHS], path)


def write_data(folder, suffixes):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a.png")
    rows = [{"image": "a.png", "prefix": "where?", "suffix": suffix} for suffix in suffixes]
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(chosen, found, tokenizer, answers):
    """Rows and scores of a model that gives these answers."""

    def generate_fn(params, batch):
        ids = [[*tokenizer.encode(text), tokenizer.eos] for text in answers]
        padded = np.array([one + [0] * (ROOM - len(one)) for one in ids], np.int32)
        length = np.array([len(one) for one in ids])
        logp = np.zeros(padded.shape, np.float32)
        return generate.Generation(padded, logp, length, batch["index"], batch["_mask"])

    count = len(answers)
    batches = [{"index": np.arange(count), "_mask": np.ones(count, bool)}]
    return prediction_rows.evaluate(generate_fn, {}, batches, found, tokenizer, chosen)


def test_a_task_of_ones_own_reads_data_trains_scores_and_is_reported(own, tokenizer, tmp_path):
    chosen = task.choose("squares")
    found = records.read_jsonl(write_data(tmp_path, TRUTHS), check=chosen.check)
    row = prefix_lm.encode_training(
        tokenizer, found[0].prefix, found[0].suffix or "", text_len=ROOM
    )
    learnt = row["text"][row["mask_loss"]].tolist()
    assert learnt == [*tokenizer.encode("a1 c3"), tokenizer.eos]

    answers = ["C3 and a1", "b2 b3", "none"]
    rows, scores = evaluate(chosen, found, tokenizer, answers)
    assert [one["score"] for one in rows] == [1.0, 0.5, 0.0]
    assert scores[chosen.metric] == 0.5

    about = report.Subject(title="squares")
    report.write(tmp_path / "run", rows, scores, subject=about, run=None)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "squares in both over squares in either" in page and "C3 and a1" in page
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in lines]
    assert chosen.aggregate(written)["squares_iou"] == 0.5


def test_a_bad_line_of_a_task_of_ones_own_is_named(own, tmp_path):
    path = write_data(tmp_path, ["a1", "c3 a1"])
    with pytest.raises(ValueError, match=r"data.jsonl:2.*as 'a1 c3'"):
        records.read_jsonl(path, check=task.choose("squares").check)


def test_a_metric_of_ones_own_scores_answers_and_is_reported(own, tokenizer, tmp_path):
    chosen = task.choose("vqa", task.Options(scores=("first_word",)))
    found = records.read_jsonl(write_data(tmp_path, TRUTHS), check=chosen.check)
    rows, scores = evaluate(chosen, found, tokenizer, ["a1 b2", "c3", "d4"])
    assert scores["first_word"] == pytest.approx(2 / 3)
    about = report.Subject(title="words")
    report.write(tmp_path / "run", rows, scores, subject=about, run=None)
    assert "the first word is right" in (tmp_path / "run" / "report.html").read_text()


def test_answers_of_other_tasks_are_told_from_those_of_ones_own(own):
    boxes = ["<loc0100><loc0200><loc0500><loc0600> cat"] * 3
    assert "task='detection'" in task.find_mismatch("squares", boxes).remedy
    assert task.find_mismatch("squares", TRUTHS) is None


def test_a_field_left_out_is_an_error_where_the_task_is_made(own):
    fields = vars(task.choose("squares")).copy()
    del fields["grammar"]
    with pytest.raises(TypeError, match="'grammar'"):
        definition.Task(**fields)
