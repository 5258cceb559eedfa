"""A notebook in a kernel of Jupyter: training, answers and scores show themselves."""

import pathlib

import nbclient
import nbformat
import pytest

from tests import tiny_runs

CELLS = (
    "import paligemma_jax\nfrom paligemma_jax import api",
    "run = api.train('config.py', 'run')\nrun",
    "answers = paligemma_jax.load(run).predict('*.png', 'detect cat')\nanswers",
    "answers[0]",
    "answers.to_dataframe()",
    "answers.plot()",
    "api.evaluate(run)",
    "api.train('config.py', 'other', changes={'lrr': 1})",
)
CONFIG = """
from paligemma_jax.settings import presets


def get_config(arg=""):
    dims = dict(width=16, depth=1, mlp_dim=16, num_heads=2)
    c = presets.from_scratch(
        res=28, text_len=24, img=dims, llm={**dims, "num_kv_heads": 1, "head_dim": 8}
    )
    c.input.data.fname = "train.jsonl"
    c.input.batch_size = 4
    c.tokenizer = "tokenizer.model"
    c.total_steps = 2
    c.ckpt_steps = 0
    c.log_training_steps = 1
    c.evals.val = dict(fname="train.jsonl", max_new_tokens=4)
    return c
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> list:
    """The cells of the notebook, executed."""
    folder = tmp_path_factory.mktemp("notebook")
    tiny_runs.write_pictures(folder)
    (folder / "config.py").write_text(CONFIG)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS])
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(
        book, timeout=600, kernel_name="python3", allow_errors=True, resources=resources
    ).execute()
    nbformat.write(book, pathlib.Path(folder / "done.ipynb"))
    return book.cells


def shown(cell, kind: str) -> str:
    """Returns what a cell shows of a MIME type."""
    return "".join(one["data"].get(kind, "") for one in cell.outputs if "data" in one)


def printed(cell) -> str:
    return "".join(one["text"] for one in cell.outputs if one.output_type == "stream")


@pytest.mark.slow
def test_no_cell_but_the_wrong_one_fails_and_that_in_one_message(cells):
    errors = [[one for one in cell.outputs if one.output_type == "error"] for cell in cells]
    assert not any(errors[:-1]), errors
    ((error,),) = errors[-1:]
    assert error["ename"] == "ValueError" and "Did you mean 'lr'" in error["evalue"]
    assert len(error["traceback"]) == 1 and "Traceback" not in error["traceback"][0]


@pytest.mark.slow
def test_training_tells_its_steps_and_the_run_shows_its_scores(cells):
    assert "step 2/2" in printed(cells[1]) and "IProgress" not in printed(cells[1])
    assert "<table" in shown(cells[1], "text/html")


@pytest.mark.slow
def test_answers_show_pictures_and_tables(cells):
    for cell in cells[2:4]:
        assert "data:image/" in shown(cell, "text/html")
    assert "<table" in shown(cells[4], "text/html")
    assert shown(cells[5], "image/png")
    assert "<table" in shown(cells[6], "text/html")
