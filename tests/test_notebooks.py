"""The notebooks of notebooks/, each cell in a kernel of Jupyter, on the small base.

What a notebook is about stands in its cell of parameters; a cell with those of a rehearsal follows
it here. What it fetches comes from servers on this machine.
"""

import csv
import importlib
import io
import json
import os
import pathlib
import threading
import zipfile

import nbclient
import nbformat
import numpy as np
import pytest
import sentencepiece
from PIL import Image

from paligemma_jax.checkpoints import npz
from paligemma_jax.reports import run_log
from tests.importers import test_remote, test_roboflow

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
NAMES = ("finetune_paligemma", "fracture", "quickstart", "structured_vqa")
COUNT = 4  # pictures of a split
SHORT = {"evals.val.decode": False, "input.batch_size": 2}
ONE_TOKEN = {"max_new_tokens": 4, "batch_size": 4}


@pytest.fixture
def draw(monkeypatch):
    """experiments/systems/make_data.py, with few pictures."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments" / "systems"))
    made = importlib.import_module("make_data")
    monkeypatch.setattr(made, "COUNT", COUNT)
    return made


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Returns a function that executes a notebook with parameters: its code cells, executed."""
    monkeypatch.setenv("PALIGEMMA_JAX_CACHE", str(tmp_path / "cache"))
    # A kernel finds the package as this process does, and draws without a screen.
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", paths)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")

    def execute(name: str, *, until: str = "", before: str = "", **parameters) -> list:
        """Args: the last cell, by its last line; a cell that goes before all others."""
        book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        (place,) = [
            number
            for number, cell in enumerate(book.cells)
            if "parameters" in cell.metadata.get("tags", ())
        ]
        text = "".join(f"{key} = {value!r}\n" for key, value in parameters.items())
        book.cells.insert(place + 1, nbformat.v4.new_code_cell(text))
        book.cells.insert(0, nbformat.v4.new_code_cell(before))
        ends = [cell.source.strip().splitlines()[-1:] == [until] for cell in book.cells]
        book.cells = book.cells[: ends.index(True) + 1] if until else book.cells
        resources = {"metadata": {"path": str(tmp_path)}}
        nbclient.NotebookClient(
            book, timeout=1200, kernel_name="python3", resources=resources
        ).execute()
        return [cell for cell in book.cells if cell.cell_type == "code"]

    return execute


def shown(cells: list, source: str, kind: str) -> str:
    """Returns what the cell that ends with a line shows of a MIME type."""
    (cell,) = [one for one in cells if one.source.strip().splitlines()[-1:] == [source]]
    return "".join(one["data"].get(kind, "") for one in cell.outputs if "data" in one)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_without_outputs_and_names_its_parameters(name):
    book = json.loads((FOLDER / f"{name}.ipynb").read_text())
    codes = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in codes)
    tags = [tag for cell in codes for tag in cell["metadata"].get("tags", ())]
    assert tags == ["setup", "keys", "parameters"]
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])


@pytest.mark.slow
def test_the_colab_shows_captions_before_and_after(execute, draw, tmp_path, monkeypatch):
    source = tmp_path / "drawn"
    source.mkdir()
    draw.write_caption(source)
    with open(next(source.rglob("*.csv")), newline="") as file:
        rows = list(csv.DictReader(file))
    (image, caption) = ("image", "caption")
    hub = test_remote.Hub()
    files = {path.name: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    for split, part in (("train90", rows[:-2]), ("val10", rows[-2:])):
        held = [{"image": pathlib.Path(r[image]).name, "suffix": r[caption]} for r in part]
        files[f"data_{split}.jsonl"] = "".join(json.dumps(row) + "\n" for row in held).encode()
    hub.buckets["longcap100"] = {name: x for name, x in files.items() if name[-4:] != ".csv"}
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", hub.url)
    cells = execute(
        "finetune_paligemma",
        CONFIG="colab_longcap_224:tiny",
        BASE="tiny_base",
        CHANGES={**SHORT, "total_steps": 2},
        DECODING=ONE_TOKEN,
    )
    hub.shutdown()
    hub.server_close()
    table = shown(cells, 'pandas.DataFrame({**told, "truth": truth})', "text/html")
    assert "before" in table and "after" in table
    assert "<table" in shown(cells, "run", "text/html")
    assert shown(cells, 'run.plot("loss")', "image/png")
    assert (tmp_path / "runs" / "longcap-transformers" / "config.json").exists()


# In place of what the data would give: the batches that big_vision's Colab trained on.
BATCHES = """
import jax
import numpy
from paligemma_jax.data import pipeline

jax.config.update("jax_default_matmul_precision", "highest")
stored = numpy.load({stored!r})


def train_batches(*args, start_step=0, **settings):
    for step in range(start_step, 10):
        masks = ("mask_ar", "mask_loss", "mask_input")
        batch = {{name: stored["in/" + name][step].astype(bool) for name in masks}}
        pixels = stored["in/image_u8"][step][:, None]
        batch |= {{"image": pixels, "mask_image": numpy.ones((4, 1), bool)}}
        yield batch | {{"text": stored["in/text"][step]}}


pipeline.train_batches = train_batches
"""
# The notebook's config, for the references' model and its ten steps.
TINY = """
import runpy


def get_config(arg=""):
    c = runpy.run_path({config!r})["get_config"]("")
    c.evals = {{}}
    c.model.img.variant, c.model.llm.variant, c.model.llm.vocab_size = "tiny/14", "tiny", 1400
    c.res, c.input.text_len, c.input.batch_size, c.total_steps = 56, 17, 4, 10
    c.model_init, c.tokenizer, c.frozen_dtype = {base!r}, {tokenizer!r}, None
    return c
"""


def write_tokenizer(path):
    """Writes one of at most as many pieces as the reference's embedding has rows."""
    symbols = [
        "\n",
        *(f"<loc{n:04d}>" for n in range(1024)),
        *(f"<seg{n:03d}>" for n in range(128)),
    ]
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["caption en", "a cat"]),
        model_writer=pieces,
        vocab_size=1400,
        hard_vocab_limit=False,
        user_defined_symbols=symbols,
        model_type="bpe",
        character_coverage=1.0,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=3,
    )
    path.write_bytes(pieces.getvalue())


@pytest.mark.slow
def test_ten_steps_of_the_colab_have_big_visions_losses(
    execute, tmp_path, monkeypatch, load_reference, reference_folder
):
    params, _, _ = load_reference("forward_pg1")
    _, _, out = load_reference("train_colab_pg1")
    npz.write(tmp_path / "base.npz", params)
    write_tokenizer(tmp_path / "tokenizer.model")
    values = {
        "config": str(ROOT / "configs" / "colab_longcap_224.py"),
        "base": str(tmp_path / "base.npz"),
        "tokenizer": str(tmp_path / "tokenizer.model"),
    }
    (tmp_path / "config.py").write_text(TINY.format(**values))
    source = tmp_path / "drawn"
    source.mkdir()
    for split in ("train90", "val10"):
        rows = []
        for number in range(4):
            name = f"{split}-{number}.png"
            Image.new("RGB", (56, 56), (60 * number, 9, len(split))).save(source / name)
            rows.append({"image": name, "suffix": "a cat"})
        (source / f"data_{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    cells = execute(
        "finetune_paligemma",
        until="losses",
        before=BATCHES.format(stored=str(reference_folder / "train_colab_pg1.npz")),
        DATA=str(source),
        CONFIG=str(tmp_path / "config.py"),
        BASE="tiny_base",
        CHANGES={},
        DECODING=ONE_TOKEN,
    )
    assert "3" in shown(cells, "losses", "text/plain")
    rows = run_log.read_rows(tmp_path / "runs" / "longcap" / "metrics.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    np.testing.assert_allclose(losses, out["losses"], rtol=1e-5)


@pytest.mark.slow
def test_from_roboflow_to_a_package_to_deploy(execute, draw, tmp_path, monkeypatch):
    source = tmp_path / "drawn"
    source.mkdir()
    draw.write_counting(source)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(source.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(source).as_posix())
    site = test_roboflow.Server()
    site.content = packed.getvalue()
    monkeypatch.setenv("ROBOFLOW_API_URL", site.host)
    monkeypatch.setenv("ROBOFLOW_API_KEY", "secret-of-a-user")
    cells = execute(
        "fracture",
        CONFIG="fracture_224:tiny",
        CHANGES={**SHORT, "total_examples": 4, "lr": 0.001},
        DECODING=ONE_TOKEN,
    )
    site.server.shutdown()
    site.server.server_close()
    assert site.asked[0].startswith("/roboflow-jvuqo/number-ops-j1426/1/coco?api_key=")
    assert "mAP 50" in shown(cells, "comparison", "text/html")
    assert "penny" in shown(
        cells,
        'pandas.DataFrame(confusion["counts"], confusion["labels"], confusion["labels"])',
        "text/html",
    )
    assert "data:image/" in shown(cells, "model.predict(first)", "text/html")
    assert (tmp_path / "runs" / "fracture" / "evaluation-test" / "comparison.html").exists()
    assert (tmp_path / "runs" / "fracture-transformers" / "config.json").exists()
    assert "secret-of-a-user" not in json.dumps([dict(cell) for cell in cells])


@pytest.mark.slow
def test_ones_own_pictures(execute, draw, tmp_path):
    source = tmp_path / "mine"
    source.mkdir()
    draw.write_counting(source)
    cells = execute(
        "quickstart",
        DATA=str(source),
        MODEL="tiny_base",
        EPOCHS=1,
        CHANGES={"evals.valid.max_new_tokens": 4},
        DECODING=ONE_TOKEN,
    )
    assert "data:image/" in shown(cells, "answers", "text/html")
    assert "<table" in shown(cells, "answers.to_dataframe()", "text/html")
    assert (tmp_path / "runs" / "mine-transformers" / "config.json").exists()


@pytest.mark.slow
def test_structured_answers_by_lora(execute, draw, tmp_path):
    source = tmp_path / "events"
    source.mkdir()
    draw.COUNT = 10
    draw.write_structured_vqa(source)
    cells = execute(
        "structured_vqa",
        DATA=str(source / "labels.jsonl"),
        CONFIG="structured_vqa_448:tiny,res=112",
        CHANGES={"total_epochs": 1},
        DECODING=ONE_TOKEN,
    )
    assert "data:image/" in shown(cells, "evaluation.worst(3)", "text/html")
    assert (tmp_path / "runs" / "events-adapter" / "adapter_config.json").exists()
