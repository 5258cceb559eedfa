"""A data set of two images, a tokenizer, and the settings of a model of a few hundred weights."""

import json

import numpy as np
import pytest
from PIL import Image

from paligemma_jax.config import presets
from paligemma_jax.data import tokens

SUFFIX = "<loc0100><loc0200><loc0500><loc0600> cat"


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """A folder with train.jsonl, two.jsonl (two images in its second row) and eos.jsonl."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name)
    rows = [
        {"image": name, "prefix": "detect cat", "suffix": SUFFIX} for name in ("a.png", "b.png")
    ]
    two = [rows[0], rows[1] | {"image": ["a.png", "b.png"]}]
    eos = [row | {"prefix": "<bos>detect cat\n", "suffix": f"{SUFFIX}<eos>"} for row in rows]
    for name, written in {"train": rows, "two": two, "eos": eos}.items():
        text = "".join(json.dumps(row) + "\n" for row in written)
        (folder / f"{name}.jsonl").write_text(text)
    tokens.train_tokenizer(["detect cat", "cat"], folder / "tokenizer.model", vocab_size=1500)
    return folder


@pytest.fixture
def config(data_folder):
    """Settings of a run on that data, with one evaluation."""
    dims = dict(width=8, depth=1, mlp_dim=8, num_heads=1)
    config = presets.from_scratch(
        res=14, text_len=24, img=dims, llm={**dims, "num_kv_heads": 1, "head_dim": 8}
    )
    config.input.data.fname = f"{data_folder}/train.jsonl"
    config.input.batch_size = 2
    config.tokenizer = f"{data_folder}/tokenizer.model"
    config.total_steps = 2
    config.evals.val = dict(fname=f"{data_folder}/train.jsonl")
    return config
