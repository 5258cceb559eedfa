"""Records are scored by the text that is learnt."""

import io
import json
import time

import numpy as np
from PIL import Image

from paligemma_jax.assembly import assembly, datasets
from paligemma_jax.console import say
from paligemma_jax.data import pipeline
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


def test_a_prompt_with_the_words_of_its_template_is_said_once(config, tmp_path, capsys):
    rows = [{"image": None, "q": f"answer en {n}?", "suffix": "1"} for n in range(3)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.task, config.input.data.prefix_template = "vqa", "answer en {q}"
    settings = load.typed(config)
    read = datasets.read_records(settings, str(path), key="input.data.fname")
    assert [record.prefix for record in read] == [row["q"] for row in rows]
    line = f"{path}: 3 prompts with their own 'answer en': written once"
    assert capsys.readouterr().err.splitlines().count(line) == 1


def test_truth_is_lower_case_where_training_is(config, data_folder):
    config.input.lowercase = True
    config.input.data.prefix_template = "Detect CAT"
    found = datasets.read_records(
        load.typed(config), f"{data_folder}/train.jsonl", key="evals.val.fname"
    )
    assert datasets.as_learnt(load.typed(config), found)[0].prefix == "detect cat"


def test_every_process_has_its_own_rows_of_a_batch(config, monkeypatch):
    settings = load.typed(config)
    tokenizer = assembly.assemble(settings).tokenizer
    examples = datasets.read_records(settings, settings.input.data.fname, key="input.data.fname")
    monkeypatch.setattr(datasets.jax, "process_count", lambda: 2)
    places = []
    for number in range(2):
        monkeypatch.setattr(datasets.jax, "process_index", lambda number=number: number)
        (batch,) = pipeline.eval_batches(examples, tokenizer, datasets.spec(settings))
        places.append(batch["index"])
    np.testing.assert_array_equal(places, [[0], [1]])


def test_answers_that_a_score_reads_are_lower_case_only_where_training_is(config, tmp_path):
    row = {"image": [], "prefix": "colour?", "suffix": "Red", "answers": ["Red", "RED"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    config.task = "vqa"
    for lowercase, expected in ((False, ["Red", "RED"]), (True, ["red", "red"])):
        config.input.lowercase = lowercase
        settings = load.typed(config)
        records = datasets.read_records(settings, str(tmp_path / "a.jsonl"), key="evals.val.fname")
        assert datasets.as_learnt(settings, records)[0].extra["answers"] == expected


def test_an_answer_has_room_for_the_longest_true_one_its_end_and_some_more(config):
    settings = load.typed(config)
    tokenizer = assembly.assemble(settings).tokenizer
    examples = datasets.read_records(settings, settings.input.data.fname, key="input.data.fname")
    longest = len(tokenizer.encode(examples[0].suffix)) + 1
    found = datasets.answer_len(settings, examples, tokenizer)
    assert found == datasets.round_length(longest + datasets.EXTRA_NEW_TOKENS)


def test_lengths_are_few_and_at_most_half_too_long():
    lengths = [datasets.round_length(n) for n in range(1, 600)]
    assert sorted(set(lengths)) == [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768]
    assert all(n <= length for n, length in enumerate(lengths, 1))
    assert all(length <= 1.5 * n for n, length in enumerate(lengths, 1) if n > 16)


def test_what_an_image_is_waited_for_is_said_without_its_keys(monkeypatch, capsys):
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (9, 0, 0)).save(file, "PNG")
    monkeypatch.setattr(say, "LINE_AFTER_S", 0.01)
    monkeypatch.setattr(say, "TICK_S", 0.01)

    def slow(address):
        time.sleep(0.2)
        return file.getvalue()

    monkeypatch.setattr(datasets.locations, "read", slow)
    image = datasets.open_image("https://me:KEY@example.org/a.png?key=KEY")
    assert image.size == (4, 3)
    shown = capsys.readouterr().err
    assert "fetching https://example.org/a.png: " in shown and "KEY" not in shown
