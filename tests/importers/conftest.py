"""What the importers' tests share: pictures on disk, a tally, and a reader of any format."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from paligemma_jax.importers import example, formats

DATASETS = pathlib.Path(__file__).parents[1] / "reference" / "datasets"
SIZE = (64, 48)


@pytest.fixture
def datasets():
    """The folder of small data sets that other tools wrote (reference/make_datasets.py)."""
    return DATASETS


@pytest.fixture
def picture(tmp_path):
    """Returns a function that writes a picture below tmp_path: name, size, other arguments."""

    def write(name, size=SIZE, color=90, **save):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size[1], size[0], 3), color, np.uint8)).save(path, **save)
        return path

    return write


@pytest.fixture
def read():
    """Returns a function that reads a path as a format: (classes, examples, tally)."""

    def read(name, path, task="detection", **request):
        tally, done = example.Tally(), []
        asked = example.Request(str(path), task, **request)
        data = formats.FORMATS[name].read(asked, tally, lambda *counts: done.append(counts))
        return data.classes, list(data.examples), tally

    return read


@pytest.fixture
def drops():
    """Returns a function that gives a tally's drops as {(what, reason): [source: detail]}."""

    def drops(tally):
        dropped = {}
        for drop in tally.drops:
            dropped.setdefault((drop.what, drop.reason), []).append(f"{drop.source}: {drop.detail}")
        return dropped

    return drops
