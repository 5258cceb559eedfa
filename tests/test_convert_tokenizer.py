"""A tokenizer for a model from scratch, learnt from a converted data set."""

import json
import pathlib

from paligemma_jax import convert
from paligemma_jax.data import tokens

DATASETS = pathlib.Path(__file__).parent / "reference" / "datasets"


def test_a_tokenizer_is_learnt_from_the_texts(tmp_path, capsys):
    target = tmp_path / "out"
    convert.main([f"{DATASETS}/coco", str(target), "--task=detection", "--train_tokenizer"])
    learnt = tokens.load_tokenizer(target / "tokenizer.model")
    for line in (target / "train.jsonl").read_text().splitlines():
        suffix = json.loads(line)["suffix"]
        assert learnt.decode(learnt.encode(suffix)) == suffix
    assert f"c.tokenizer = '{target / 'tokenizer.model'}'" in capsys.readouterr().err
