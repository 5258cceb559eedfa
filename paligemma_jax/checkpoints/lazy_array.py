"""Arrays that are computed when they are written, so that only one at a time is in memory."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

CHUNK_ELEMENTS = 2**22


@dataclasses.dataclass(frozen=True)
class Deferred:
    """An array with known shape and dtype; `make` is called whenever numpy asks for the numbers.

    `npz.write` takes it in place of an array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # What `make` returns belongs to nobody else.
        made = self.make()
        if (made.shape, made.dtype) != (self.shape, self.dtype):
            raise ValueError(f"made {made.dtype}{made.shape}, promised {self.dtype}{self.shape}")
        return made if dtype is None else made.astype(dtype, copy=False)


def cast(array: np.ndarray, dtype: Any, *, name: str) -> np.ndarray:
    """Returns an array in another dtype, itself if it has it already.

    Raises:
      ValueError: finite numbers that the dtype cannot hold. float16 ends at 65504, and a weight
        that became infinite would be noticed much later.
    """
    dtype = jnp.dtype(dtype)
    if array.dtype == dtype:
        return array
    source = array.reshape(-1)
    made = np.empty(source.shape, dtype)
    for at in range(0, source.size, CHUNK_ELEMENTS):
        part = slice(at, at + CHUNK_ELEMENTS)
        require_held(put(made[part], source[part]), dtype, name=name)
    return made.reshape(array.shape)


def put(made: np.ndarray, source: np.ndarray) -> float:
    """Writes numbers into an array of another dtype.

    Returns:
      the largest of them if that dtype cannot hold all of them, else 0.
    """
    with np.errstate(over="ignore"):  # told by what is returned
        made[:] = source
    if np.isfinite(made).all() or np.array_equal(np.isfinite(made), np.isfinite(source)):
        return 0.0
    return float(np.abs(source.astype(np.float64)).max())


def require_held(largest: float, dtype: np.dtype, *, name: str) -> None:
    """Raises a ValueError if `put` has told of a number of an array that a dtype cannot hold."""
    if largest:
        raise ValueError(
            f"'{name}' holds numbers up to {largest:.4g}, {dtype} ends at "
            f"{float(jnp.finfo(dtype).max):.4g}: choose bfloat16 or float32"
        )
