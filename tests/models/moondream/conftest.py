"""A tiny Moondream2 with the authors' weights, and what their code makes of a batch."""

import pathlib
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from paligemma_jax.checkpoints import moondream_names
from paligemma_jax.models import family
from paligemma_jax.models.moondream import as_family, moondream

REFERENCE = pathlib.Path(__file__).parents[2] / "reference" / "moondream"
SPEC = family.Spec(
    img=family.TowerSpec("tiny/14"), llm=family.TowerSpec("tiny"), res=56, vocab_size=320
)


@pytest.fixture(scope="session")
def md() -> as_family.Model:
    return as_family.make(SPEC)


@pytest.fixture(scope="session")
def expected() -> dict[str, Any]:
    with np.load(REFERENCE / "expected.npz") as file:
        return dict(file)


def to_ours(tensors: dict[str, np.ndarray], shapes) -> dict[str, np.ndarray]:
    """Returns arrays of ours from the authors' tensors."""
    arrays = {name: np.empty(x.shape, np.float32) for name, x in shapes.items()}
    for piece in moondream_names.pieces(shapes):
        arrays[piece.ours][piece.index] = piece.to_ours(tensors[piece.theirs])
    return arrays


@pytest.fixture(scope="session")
def md_params(md) -> dict[str, np.ndarray]:
    tensors = safetensors.numpy.load_file(REFERENCE / "model.safetensors")
    return to_ours(tensors, moondream.shapes(md.dims))


@pytest.fixture(scope="session")
def batch(expected) -> dict[str, np.ndarray]:
    """Four examples with an image each; texts of 14, 9, 13 and 10 tokens."""
    given = {k.removeprefix("in/"): v for k, v in expected.items() if k.startswith("in/")}
    image = given.pop("image")[:, None]
    return {**given, "image": image, "mask_image": np.ones((len(image), 1), bool)}
