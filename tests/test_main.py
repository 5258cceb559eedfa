"""What the console command `paligemma-jax` does: it lists the commands and calls them."""

import pathlib
import tomllib

import pytest

import paligemma_jax
from paligemma_jax import __main__

ROOT = pathlib.Path(__main__.__file__).parents[1]


def test_every_command_is_listed(capsys):
    __main__.main([])
    files = {file.stem for file in pathlib.Path(__main__.__file__).parent.glob("[a-z]*.py")}
    listed = capsys.readouterr().out
    # The Python door has the same commands as functions.
    assert all(f"paligemma-jax {name} " in listed for name in files - {"api"})


def test_the_version_is_said_and_is_the_packages(capsys):
    __main__.main(["--version"])
    assert capsys.readouterr().out == f"paligemma-jax {paligemma_jax.__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["version"]["path"] == "paligemma_jax/__init__.py"
    assert project["project"]["scripts"]["paligemma-jax"] == "paligemma_jax.__main__:main"


def test_a_command_gets_its_words_and_its_name(capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main(["import-data", "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: paligemma-jax import_data [-h]")


def test_a_command_that_is_none_shows_the_nearest():
    with pytest.raises(SystemExit, match=r"'evaluat' is no command. Did you mean 'evaluate'"):
        __main__.main(["evaluat"])
