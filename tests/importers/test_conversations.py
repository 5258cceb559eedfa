"""Conversations: each answer is a row with what was asked right before it."""

import base64
import json

from paligemma_jax.importers import conversations, example, formats

ROW = {
    "id": "7",
    "image": "a.png",
    "conversations": [
        {"from": "human", "value": "<image>\nHow many boats?"},
        {"from": "gpt", "value": "Two."},
        {"from": "human", "value": "Are they red?"},
        {"from": "gpt", "value": "One is."},
    ],
}


def flatten(row, task="vqa"):
    tally = example.Tally()
    rows = list(conversations.flatten(row, example.Request("x", task), "x:1", tally))
    return rows, tally


def test_llava_s_rows_in_one_json_list(tmp_path, picture, read):
    picture("a.png")
    (tmp_path / "train.json").write_text(json.dumps([ROW]))
    assert formats.choose(str(tmp_path), "vqa")[0] == "jsonl"
    _, examples, tally = read("jsonl", tmp_path, "vqa")
    texts = [(one.question, one.suffix) for one in examples]
    assert texts == [("How many boats?", "Two."), ("Are they red?", "One is.")]
    key = "answers of longer conversations taken with their own question only"
    assert tally.changed[key] == 2


def test_messages_with_an_image_that_is_written_out(tmp_path, picture, read):
    data = picture("a.png").read_bytes()
    address = "data:image/png;base64," + base64.b64encode(data).decode()
    parts = [
        {"type": "text", "text": "detect boat"},
        {"type": "image_url", "image_url": {"url": address}},
    ]
    answer = "<loc0000><loc0000><loc0500><loc0500> boat"
    turns = [
        {"role": "system", "content": "You see."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": answer},
    ]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": turns}))
    _, (one,), tally = read("jsonl", tmp_path)
    assert (one.prefix, one.suffix, one.picture.data) == ("detect boat", answer, data)
    assert one.picture.name == "train-1.png"
    assert tally.changed == {"messages left out that are neither of the user nor the answer": 1}


def test_ms_swift_s_rows_lose_the_mark_of_the_image():
    row = {"query": "<image>How many?", "response": "3", "images": ["a.png"]}
    (flat,), tally = flatten(row)
    assert flat["query"] == "How many?" and tally.changed == {"prompts without their <image>": 1}


def test_a_conversation_without_an_answer_is_named():
    rows, tally = flatten({"image": "a.png", "messages": [{"role": "user", "content": "Hi"}, 3]})
    assert rows == [] and tally.drops[0].reason == "conversation without an answer"


def test_other_rows_are_left_alone():
    row = {"image": "a.png", "prefix": "caption en", "suffix": "x"}
    assert flatten(row, "caption")[0] == [row]
