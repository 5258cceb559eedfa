"""What `python -m paligemma_jax` says."""

import pathlib
import sys

import pytest

from paligemma_jax import __main__


def test_every_command_is_listed(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["paligemma_jax"])
    __main__.main()
    files = pathlib.Path(__main__.__file__).parent.glob("[a-z]*.py")
    listed = capsys.readouterr().out
    assert all(f"paligemma_jax.{file.stem}" in listed for file in files)


def test_a_space_in_place_of_the_dot_is_explained(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["paligemma_jax", "train"])
    with pytest.raises(SystemExit, match=r"write a dot, as python -m paligemma_jax.train"):
        __main__.main()
