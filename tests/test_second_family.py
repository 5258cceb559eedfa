"""The family of docs/extending.md, as it stands there, through the doors: nothing else knows it."""

import json
import pathlib
import re
import textwrap
import types

import numpy as np
import pytest
from PIL import Image

import paligemma_jax
from paligemma_jax import evaluate, train
from paligemma_jax.assembly import model_functions
from paligemma_jax.checkpoints import npz
from paligemma_jax.data import tokens
from paligemma_jax.reports import run_log

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "extending.md"
STEPS = 120
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


@pytest.fixture(scope="module")
def example() -> types.ModuleType:
    """The first block of code of the section on families, as a module that tables name."""
    section = DOCS.read_text().split("## A model family\n")[1].split("\n## ")[0]
    code, lines = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    module = types.ModuleType("bigram")
    exec(compile(code, str(DOCS), "exec"), module.__dict__)
    given = {"FAMILY": module.FAMILY, "Bytes": module.Bytes}
    with pytest.MonkeyPatch.context() as patch:
        tables = types.SimpleNamespace(FAMILIES={}), types.SimpleNamespace(LOADERS={})
        exec(lines, given | dict(zip(("families", "tokens"), tables, strict=True)))
        for real, written in (
            (model_functions.FAMILIES, tables[0].FAMILIES),
            (tokens.LOADERS, tables[1].LOADERS),
        ):
            for name, value in written.items():
                patch.setitem(real, name, value)
        yield module


@pytest.fixture(scope="module")
def folder(example, tmp_path_factory) -> pathlib.Path:
    """Pictures of one colour each, and what a config needs."""
    folder = tmp_path_factory.mktemp("second_family")
    rows = []
    for name, colour in COLOURS.items():
        Image.new("RGB", (8, 8), colour).save(folder / f"{name}.png")
        rows.append({"image": f"{name}.png", "prefix": "what colour?", "suffix": name})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tokenizer.bytes").write_bytes(b"bytes")
    (folder / "config.py").write_text(
        textwrap.dedent(f"""
        from paligemma_jax.settings import presets

        def get_config(arg=""):
            c = presets.from_scratch(res=4, text_len=24, img={{}}, llm=dict(width=16))
            c.model.family = "bigram"
            c.task = "vqa"
            c.input.data.fname = "{folder}/train.jsonl"
            c.input.batch_size = 2
            c.tokenizer = "{folder}/tokenizer.bytes"
            c.total_steps = {STEPS}
            c.lr = 1e-2
            c.ckpt_steps = 50
            c.evals.val = dict(fname="{folder}/train.jsonl", max_new_tokens=6)
            return c
        """)
    )
    return folder


@pytest.fixture(scope="module")
def run(folder) -> pathlib.Path:
    """A finished run."""
    train.main([f"--config={folder}/config.py", f"--workdir={folder / 'run'}"])
    return folder / "run"


def test_it_learns_and_its_evaluation_reads_the_answers(run):
    rows = run_log.read_rows(run / "metrics.jsonl")
    assert rows[-1]["val/loss"] < 0.1 < rows[0]["loss"]
    lines = (run / f"predictions-val-{STEPS:06d}.jsonl").read_text().splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == list(COLOURS)
    assert set(npz.read(run / "final.npz")) == {
        *("image/kernel", "table"),
        *("dense0/kernel", "dense1/kernel"),
    }


def test_evaluation_of_the_run_equals_the_last_in_training(run, folder, capsys):
    words = f"--run={run}", f"--data={folder}/train.jsonl", "--eval.max_new_tokens=6"
    evaluate.main([*words, "--eval.sampler=beam", "--eval.beam_size=2"])
    beam = json.loads(capsys.readouterr().out)
    evaluate.main([*words])
    scores = json.loads(capsys.readouterr().out)
    assert scores["loss"] == pytest.approx(
        run_log.read_rows(run / "metrics.jsonl")[-1]["val/loss"], rel=1e-5
    )
    assert beam["loss"] == scores["loss"]


def test_a_loaded_run_answers_with_what_is_in_the_picture(run):
    loaded = paligemma_jax.load(str(run), decoding={"max_new_tokens": 6})
    pictures = [np.full((8, 8, 3), colour, np.uint8) for colour in COLOURS.values()]
    answers = loaded.predict(pictures, "what colour?")
    assert [answer["prediction"] for answer in answers] == list(COLOURS)


def test_a_run_that_was_interrupted_goes_on_to_the_same_weights(folder):
    changes = "evals={}", "input.batch_size=1", "total_steps=20"
    words = [f"--config={folder}/config.py", *(f"--config.{change}" for change in changes)]
    train.main([*words, f"--workdir={folder / 'whole'}"])
    # The second step of this order is the first one that sees it.
    picture, workdir = folder / "blue.png", folder / "interrupted"
    kept = picture.read_bytes()
    picture.write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot read image"):
        train.main([*words, f"--workdir={workdir}"])
    picture.write_bytes(kept)
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["000001"]
    train.main([*words, f"--workdir={workdir}"])
    first, second = (npz.read(path / "final.npz") for path in (folder / "whole", workdir))
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lora.targets=.*kernel", "models of the family 'bigram' have no factors"),
        ("quantize=int8", "no weight of a bigram can be quantized"),
        ("model.llm.attention=cudnn", "'bigram' has no attention there"),
        ("model_init=pt_224", "is not of the family 'bigram'"),
        ("model.family=bigrams", "model.family='bigrams' is not known. Did you mean 'bigram'"),
    ],
)
def test_what_the_family_has_not_is_refused(folder, change, message):
    words = [f"--config={folder}/config.py", f"--workdir={folder / 'no'}", f"--config.{change}"]
    with pytest.raises(ValueError, match=re.escape(message)):
        train.main(words)
