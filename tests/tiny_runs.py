"""Runs of four steps on two texts, which several files look at through the doors.

They are made once for all processes of a test session: read from them, and write elsewhere.
"""

import json
import os
import pathlib
import shutil

import filelock
import numpy as np
from PIL import Image

from paligemma_jax import evaluate
from paligemma_jax.assembly import model_functions, weights
from paligemma_jax.checkpoints import npz
from paligemma_jax.data import tokens
from paligemma_jax.reports import run_log
from paligemma_jax.runs import whole_run
from paligemma_jax.settings import load, presets

STEPS = 4
DIMS = dict(width=16, depth=2, mlp_dim=16, num_heads=2)
LORA = {"trainable": None, "frozen_dtype": None, "lora.targets": "llm", "lora.rank": 2}
RUNS = {
    "part": {"save": "all"},  # attention alone is trained
    "trainable": {"save": "trainable"},  # the same training
    "lora": {**LORA, "lr": 0.1, "ema_decay": 0.5},
}
# Of a run that is looked at for its weights alone.
NOTHING_ON_THE_WAY = {"evals": {}, "keep_best": None, "ckpt_steps": 0}


def make_config(folder: pathlib.Path, **changes):
    """Returns settings of four steps on attention alone, a checkpoint and an evaluation at each."""
    config = presets.from_scratch(
        res=14, text_len=24, img=DIMS, llm={**DIMS, "num_kv_heads": 1, "head_dim": 8}
    )
    config.input.data.fname = f"{folder}/train.jsonl"
    config.input.batch_size = 2
    config.tokenizer = f"{folder}/tokenizer.model"
    config.total_steps, config.ckpt_steps, config.keep_last = STEPS, 1, 9
    config.lr = 10.0  # so large that the last step is not the best one
    config.log_training_steps = 1
    config.trainable = "llm/layers/attn/.*"
    config.model_init = f"{folder}/base.npz"
    config.frozen_dtype = "bfloat16"
    config.keep_best = "val/loss"
    config.evals.val = dict(fname=f"{folder}/train.jsonl", log_steps=1, decode=False)
    config.update_from_flattened_dict(changes)
    return config


def write_data(folder: pathlib.Path, *, num_rows: int = 2) -> None:
    """Writes train.jsonl, texts without an image, and tokenizer.model."""
    rows = [
        {"image": [], "prefix": "detect cat", "suffix": "<loc0000>" * 2 + f"<loc0{n}>" * 2 + " cat"}
        for n in range(100, 100 * num_rows + 1, 100)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens.train_tokenizer(["detect cat", "cat"], folder / "tokenizer.model", vocab_size=1500)


def write_pictures(folder: pathlib.Path) -> None:
    """Writes six images of noise (the first one shows nothing), train.jsonl, tokenizer.model."""
    rng, rows = np.random.default_rng(0), []
    for number in range(6):
        pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        suffix = f"<loc{100 + number:04d}><loc0200><loc0500><loc0600> cat" if number else ""
        rows.append({"image": f"{number}.png", "prefix": "detect cat", "suffix": suffix})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokens.train_tokenizer(["detect cat", "cat"], folder / "tokenizer.model", vocab_size=1500)


def write_base(path: pathlib.Path, config, *, seed: int = 0) -> None:
    """Writes random weights of the model of a config, in float16."""
    vocab_size = tokens.load_tokenizer(config.tokenizer).vocab_size
    model = model_functions.describe(load.typed(config), vocab_size=vocab_size)
    rng = np.random.default_rng(seed)
    params = {
        name: rng.normal(size=x.shape, scale=0.1).astype("float16")
        for name, x in model.shapes().items()
    }
    npz.write(path, params, metadata=weights.model_metadata(model))


def shared(tmp_path_factory) -> pathlib.Path:
    """Returns a folder of data, base.npz and a run of each of RUNS, to read from.

    The first process of pytest-xdist that asks for it makes it; others wait.
    """
    parent = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        parent = parent.parent  # each worker has a folder of its own in it
    folder, is_whole = parent / "tiny_runs", parent / "tiny_runs.whole"
    with filelock.FileLock(parent / "tiny_runs.lock"):
        if not is_whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_data(folder)
            write_base(folder / "base.npz", make_config(folder))
            for name, changes in RUNS.items():
                whole_run.train(load.typed(make_config(folder, **changes)), folder / name)
            is_whole.touch()
    return folder


def losses(run: pathlib.Path) -> dict[int, float]:
    """Returns step -> validation loss, as training found it."""
    return {row["step"]: row["val/loss"] for row in run_log.read_rows(run / "metrics.jsonl")}


def score(folder: pathlib.Path, out: pathlib.Path, capsys, *words: str) -> float:
    """Returns the validation loss that the evaluate door finds on a folder's data."""
    words = *words, f"--data={folder}/train.jsonl", "--eval.decode=False", f"--out={out}"
    evaluate.main(list(words))
    return json.loads(capsys.readouterr().out)["loss"]
