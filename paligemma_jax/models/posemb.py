"""Position embeddings of the vision tower at another resolution than they were trained for."""

import math
from collections.abc import Sequence

import numpy as np
import scipy.ndimage

from paligemma_jax.params import variants

NAME = "img/pos_embedding"


def resample_position_embedding(old: np.ndarray, grid: int) -> np.ndarray:
    """Interpolates position embeddings linearly to another grid, corners kept on corners.

    Equals big_vision's `resample_posemb`, which however fails on bfloat16.

    Args:
      old: [1, old_grid**2, D], any float dtype.
      grid: patches along one side of the new image.

    Returns:
      [1, grid**2, D] in the dtype of `old`, computed in float32.
    """
    old = np.asarray(old)
    old_grid = _grid_of(old.shape)
    if old_grid == grid:
        return old
    square = old.reshape(old_grid, old_grid, -1).astype(np.float32)
    zoom = (grid / old_grid, grid / old_grid, 1)
    return scipy.ndimage.zoom(square, zoom, order=1).reshape(1, grid**2, -1).astype(old.dtype)


def check_grid(shape: Sequence[int], model: variants.PaliGemma) -> None:
    """Raises a ValueError if a checkpoint's `img/pos_embedding` is for another resolution."""
    grid = _grid_of(shape)
    if grid != model.grid:
        res = grid * model.img.patch_size
        raise ValueError(
            f"checkpoint grid {grid}x{grid} ({res} px) but res={model.res} "
            f"({model.grid}x{model.grid}): set model.img.resample_posemb=True or res={res}"
        )


def _grid_of(shape: Sequence[int]) -> int:
    grid = math.isqrt(shape[1]) if len(shape) == 3 else 0
    if not grid or grid**2 != shape[1]:
        raise ValueError(f"{NAME} has shape {tuple(shape)}, expected [1, grid * grid, D]")
    return grid
