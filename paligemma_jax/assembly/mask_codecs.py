"""From a file of weights to the two functions that segmentation needs of a mask codec."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from paligemma_jax.assembly import weights
from paligemma_jax.checkpoints import npz
from paligemma_jax.models import mask_codec
from paligemma_jax.settings import schema

OWN = "experiments/mask_codec/codec.npz"
PUBLISHED = schema.Settings().mask_codec


@dataclasses.dataclass(frozen=True)
class MaskCodec:
    """A mask codec on its weights, for any number of masks.

    Attributes:
      encode: float32[n, 64, 64] in 0..1 -> int32[n, 16].
      decode: int[n, 16] -> float32[n, 64, 64], above 0 inside.
      path: of its weights.
    """

    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    path: pathlib.Path


@functools.cache
def load(source: str) -> MaskCodec:
    """Returns the codec of an address or a path; read once.

    Raises:
      ValueError: the file is no mask codec. FileNotFoundError, download.DownloadError: no file.
    """
    path = weights.fetch(source)
    shapes = {name: array.shape for name, array in npz.read_header(path).arrays.items()}
    mask_codec.check(shapes, where=str(path))
    params = npz.read(path)
    return MaskCodec(
        encode=_in_few_sizes(jax.jit(functools.partial(mask_codec.encode, params))),
        decode=_in_few_sizes(jax.jit(functools.partial(mask_codec.decode, params))),
        path=path,
    )


def for_task(source: str) -> MaskCodec:
    """Returns the codec that the config key mask_codec names; errors as of `load`."""
    hint = f"For data converted with this project's own codec: --config.mask_codec={OWN}"
    with weights.named_by("mask_codec", source, hint):
        return load(source)


def _in_few_sizes(function: Callable[..., jax.Array]) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function on batches padded to a power of two, so that few sizes are compiled."""

    def call(batch: np.ndarray) -> np.ndarray:
        count = len(batch)
        size = 1 << max(count - 1, 0).bit_length()
        padded = np.pad(batch, ((0, size - count), *((0, 0),) * (batch.ndim - 1)))
        return np.asarray(function(padded))[:count]

    return call
