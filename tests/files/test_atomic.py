import json

import numpy as np

from paligemma_jax.files import atomic


def test_json_has_null_for_what_is_no_number(tmp_path):
    value = {"map": float("nan"), "list": [np.float32(0.5), np.int64(3), float("inf")], "text": "é"}
    atomic.write_json(tmp_path / "deep" / "metrics.json", value)
    written = (tmp_path / "deep" / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(written) == {"map": None, "list": [0.5, 3, None], "text": "é"}


def test_rows_are_one_line_each(tmp_path):
    path = tmp_path / "predictions.jsonl"
    atomic.write_jsonl(path, [{"prediction": "a\nb"}, {"logp": float("-inf")}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"prediction": "a\nb"},
        {"logp": None},
    ]


def test_a_file_is_replaced_whole(tmp_path):
    atomic.write_text(tmp_path / "a.txt", "old and long")
    atomic.write_text(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"
