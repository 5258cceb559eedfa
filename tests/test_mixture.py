"""A run on several data sets by weight: through the door."""

import json

import numpy as np
import pytest
from PIL import Image

from paligemma_jax import train
from paligemma_jax.data import tokens
from paligemma_jax.reports import run_log

CONFIG = """
from paligemma_jax.settings import presets


def get_config(arg=""):
    c = presets.from_scratch(
        res=14,
        text_len=12,
        img=dict(width=8, depth=1, mlp_dim=8, num_heads=1),
        llm=dict(width=8, depth=1, mlp_dim=8, num_heads=1, num_kv_heads=1, head_dim=8),
    )
    c.input.mixture = dict(
        many=dict(fname="{0}/many.jsonl"), few=dict(fname="{0}/few.jsonl", weight=3.0)
    )
    c.input.batch_size = 4
    c.tokenizer = "{0}/tokenizer.model"
    c.total_steps = 4
    c.log_training_steps = 1
    return c
"""


@pytest.fixture
def folder(tmp_path):
    """Two data sets of 6 and 2 rows, a tokenizer and a config that mixes them 1 to 3."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    row = json.dumps({"image": "a.png", "prefix": "what?", "suffix": "cat"})
    for name, count in (("many", 6), ("few", 2)):
        (tmp_path / f"{name}.jsonl").write_text(f"{row}\n" * count)
    tokens.train_tokenizer(["what?", "cat"], tmp_path / "tokenizer.model", vocab_size=1500)
    (tmp_path / "config.py").write_text(CONFIG.format(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_the_metrics_say_how_often_each_source_was_read(folder):
    train.main([f"--config={folder}/config.py", f"--workdir={folder}/run", "--config.task=vqa"])
    rows = run_log.read_rows(folder / "run" / "metrics.jsonl")
    assert [row["epochs/many"] for row in rows] == pytest.approx([n / 6 for n in (1, 2, 3, 4)])
    assert [row["epochs/few"] for row in rows] == pytest.approx([3 * n / 2 for n in (1, 2, 3, 4)])
