"""A tiny Moondream2 through the doors: it learns to name colours, goes on, scores and answers."""

import json
import pathlib
import re
import textwrap

import numpy as np
import pytest
from PIL import Image

import paligemma_jax
from paligemma_jax import evaluate, train
from paligemma_jax.checkpoints import npz
from paligemma_jax.data import tokenizer_json
from paligemma_jax.reports import run_log
from tests import gpt2_vocabulary

STEPS = 60
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


def write_tokenizer(path: pathlib.Path) -> None:
    """Writes a tokenizer.json of all bytes and the control piece."""
    pieces = {letter: i for i, letter in enumerate(tokenizer_json._byte_of_letter())}
    merges = ["Q u", "e s", "t i", "o n", "A n", "s w", "e r"]
    for merge in merges:
        pieces[merge.replace(" ", "")] = len(pieces)
    pieces[gpt2_vocabulary.END] = len(pieces)
    path.write_bytes(gpt2_vocabulary.make(pieces, merges))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("moondream")
    rows = []
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
        answer = json.dumps({name: 1}, indent=2)
        rows.append({"image": f"{name}.png", "prefix": "count", "suffix": answer})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_tokenizer(folder / "tokenizer.json")
    (folder / "config.py").write_text(
        textwrap.dedent(f"""
        from paligemma_jax.settings import presets

        def get_config(arg=""):
            c = presets.from_scratch(res=28, text_len=48, img={{}}, llm={{}})
            c.model.family = "moondream"
            c.task = "json"
            c.input.data.fname = "{folder}/train.jsonl"
            c.input.batch_size = 2
            c.tokenizer = "{folder}/tokenizer.json"
            c.total_steps = {STEPS}
            c.lr = 3e-3
            c.ckpt_steps = 50
            c.evals.val = dict(
                fname="{folder}/train.jsonl", max_new_tokens=24, scores=("count_exact",)
            )
            return c
        """)
    )
    return folder


@pytest.fixture(scope="module")
def run(folder) -> pathlib.Path:
    train.main([f"--config={folder}/config.py", f"--workdir={folder / 'run'}"])
    return folder / "run"


@pytest.mark.slow
def test_it_repeats_what_it_was_shown_through_every_door(run, folder, capsys):
    rows = run_log.read_rows(run / "metrics.jsonl")
    assert rows[-1]["val/loss"] < 0.4 < rows[0]["loss"]
    assert rows[-1]["val/count_exact"] == 1
    lines = (run / f"predictions-val-{STEPS:06d}.jsonl").read_text().splitlines()
    answers = [json.dumps({name: 1}, indent=2) for name in COLOURS]
    assert [json.loads(line)["prediction"] for line in lines] == answers
    schema = folder / "schema.json"
    counts = {key: {"type": "integer", "minimum": 1, "maximum": 9} for key in COLOURS}
    schema.write_text(json.dumps({"type": "object", "properties": counts, "required": []}))
    words = f"--run={run}", f"--data={folder}/train.jsonl", f"--eval.constrain={schema}"
    evaluate.main([*words, "--eval.max_new_tokens=24", "--eval.scores=['count_exact']"])
    assert json.loads(capsys.readouterr().out)["count_exact"] == 1
    loaded = paligemma_jax.load(str(run), decoding={"max_new_tokens": 24})
    pictures = [np.full((30, 40, 3), colour, np.uint8) for colour in COLOURS.values()]
    made = loaded.predict(pictures, "count")
    assert [answer["prediction"] for answer in made] == answers
    names = set(npz.read(run / "final.npz"))
    assert {"text/head/kernel", "text/layers/attn/qkv/kernel", "img/pos_embedding"} <= names


@pytest.mark.slow
def test_large_images_are_seen_in_squares_through_the_doors(folder, tmp_path):
    rows = []
    for name, colour in COLOURS.items():
        pixels = np.zeros((40, 80, 3), np.uint8)  # two squares, of which the right one has colour
        pixels[:, 40:] = colour
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        rows.append({"image": f"{name}.png", "prefix": "which", "suffix": name})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {
        "model.img.variant": "tiny/14_crops",
        "task": "vqa",
        "input.data.fname": f"{tmp_path}/train.jsonl",
        "evals.val.fname": f"{tmp_path}/train.jsonl",
        "evals.val.scores": "('exact_match',)",
        "input.augment.brightness": 0.1,
    }
    words = [f"--config.{key}={value}" for key, value in changes.items()]
    train.main([f"--config={folder}/config.py", f"--workdir={tmp_path / 'run'}", *words])
    row = run_log.read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    assert row["val/loss"] < 0.4 and row["val/exact_match"] == 1
    made = paligemma_jax.load(str(tmp_path / "run")).predict(
        [str(tmp_path / f"{name}.png") for name in COLOURS], "which"
    )
    assert [answer["prediction"] for answer in made] == list(COLOURS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.llm.final_logits_softcap=30.0", "Moondream2 has no soft-cap"),
        ("model.llm.variant=gemma_2b", "'gemma_2b' is none of Moondream2's"),
        ("input.augment.crop=0.5", "resize images bilinearly"),
        ("model_init=pt_224", "is not of the family 'moondream'"),
        ("task=detection", "<loc>"),
    ],
)
def test_what_the_family_has_not_is_refused(folder, change, message):
    words = [f"--config={folder}/config.py", f"--workdir={folder / 'no'}", f"--config.{change}"]
    with pytest.raises(ValueError, match=re.escape(message)):
        train.main(words)
