"""A file of weights is compared with the model before it is read."""

import numpy as np
import pytest

from paligemma_jax.assembly import model_functions, weights
from paligemma_jax.checkpoints import npz, partial_weights
from paligemma_jax.settings import load

POSITIONS = "img/pos_embedding"


def test_position_embedding_of_another_width_is_listed(config, tmp_path):
    config.model.img.resample_posemb = True
    small = model_functions.describe(load.typed(config), vocab_size=50)
    params = {name: np.zeros(shape.shape, np.float16) for name, shape in small.shapes().items()}
    npz.write(tmp_path / "good.npz", params | {POSITIONS: np.zeros((1, 4, 8), np.float16)})
    weights.check(load.typed(config), partial_weights.find(tmp_path / "good.npz"), small)
    npz.write(tmp_path / "bad.npz", params | {POSITIONS: np.zeros((1, 4, 7), np.float16)})
    with pytest.raises(ValueError, match=rf"shape: {POSITIONS} is \(1, 1, 7\)"):
        weights.check(load.typed(config), partial_weights.find(tmp_path / "bad.npz"), small)
