"""Two processes, two devices each, share the rows of a data set."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

# Every process brings its half of each batch; both must see all rows. The device mesh is reversed
# so that rows come back in another order than they were given.
PROGRAM = """
import functools, json, sys
import jax
import jax.numpy as jnp
import numpy as np

process, address = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(address, num_processes=2, process_id=process)

from paligemma_jax.data import records, tokens
from paligemma_jax.decoding import constraint, generate, grammars
from paligemma_jax.evaluation import prediction_rows
from paligemma_jax.params import sharding
from paligemma_jax.tasks import task

tokenizer = tokens.load_tokenizer(sys.argv[3])
examples = [records.Record((), f"p{i}", None, f"a.jsonl:{i + 1}") for i in range(13)]
mesh = sharding.make_mesh([("data", -1)], jax.devices()[::-1])


def prefill(params, batch):
    return params[batch["prompt"]], {"state": batch["prompt"]}


def decode_step(params, cache, token):
    state = (cache["state"] * 3 + token + 1) % 11
    return params[state], {"state": state}


def select_rows(cache, rows):
    return {"state": cache["state"][rows]}


held = None
if sys.argv[4] == "held":
    lists = [grammars.choose(tokenizer, answers, room=6) for answers in (["a", "b c"], ["d", "e"])]
    held = constraint.compile_grammars(
        lists, grammar_of_row=[i % 11 % 2 for i in range(13)], eos=tokenizer.eos,
        vocab_size=tokenizer.vocab_size)


@jax.jit
def jitted(params, batch, held):
    return generate.generate(
        prefill, decode_step, select_rows, params, batch, max_new_tokens=6, eos=tokenizer.eos,
        constraint=held)


def decode(params, batch):
    return jitted(params, batch, held)


def batches():
    for start in (0, 8):
        index = start + 4 * process + np.arange(4)
        real = index < len(examples)
        yield {"index": np.where(real, index, -1).astype(np.int32), "_mask": real,
               "prompt": (index % 11).astype(np.int32)}


params = np.random.default_rng(0).normal(size=(11, tokenizer.vocab_size)).astype(np.float32)
placed = (sharding.place_batch(batch, mesh) for batch in batches())
found = prediction_rows.evaluate(decode, params, placed, examples, tokenizer, task.choose("vqa"))
print(json.dumps([[row["index"], row["prefix"], row["prediction"]] for row in found[0]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["free", "held"])
def test_every_process_gets_every_row(tmp_path, how):
    from paligemma_jax.data import tokens

    tokens.train_tokenizer(["a b c d e f g"] * 9, tmp_path / "tokenizer.model")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(i), address, f"{tmp_path}/tokenizer.model", how],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], outputs
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert first == second
    assert [row[:2] for row in first] == [[i, f"p{i}"] for i in range(13)]
    assert first[11][2] == first[0][2] and first[0][2] != first[1][2], "the prompts repeat at 11"
    if how == "held":
        lists = ({"a", "b c"}, {"d", "e"})
        assert all(row[2] in lists[i % 11 % 2] for i, row in enumerate(first))
