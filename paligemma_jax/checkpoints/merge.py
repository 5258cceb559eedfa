"""Weights with their low-rank factors added in: what serving without LoRA needs."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from paligemma_jax.checkpoints import huggingface_names, npz, partial_weights
from paligemma_jax.params import lora as lora_lib
from paligemma_jax.params import names as parameter_names

# Metadata: how the factors of a file act, as the attributes of `lora.Lora`.
LORA = "lora"


@dataclasses.dataclass(frozen=True)
class Merged:
    """Weights that are read as w + scale A B; read and described as `partial_weights.Weights` are.

    Attributes:
      weights: with factors.
      factors: all of them, in memory.
      lora: how they act: scale and targets.
    """

    weights: partial_weights.Weights
    factors: Mapping[str, np.ndarray]
    lora: lora_lib.Lora

    @property
    def path(self) -> pathlib.Path:
        """The file."""
        return self.weights.path

    @property
    def files(self) -> list[pathlib.Path]:
        """The file, its base, the base's base, and so on."""
        return self.weights.files

    @functools.cached_property
    def arrays(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and type of all arrays by name: those of the base."""
        arrays = self.weights.arrays
        return {name: x for name, x in arrays.items() if not parameter_names.is_factor(name)}

    @property
    def metadata(self) -> dict[str, Any]:
        """The file's metadata, without what describes its factors."""
        return {key: value for key, value in self.weights.metadata.items() if key != LORA}

    def read(
        self,
        names: Iterable[str] | None = None,
        *,
        transform: npz.Transform | None = None,
        place: npz.Place | None = None,
        progress: npz.Progress | None = None,
    ) -> dict[str, Any]:
        """Returns arrays by name: as `npz.read`. The factors are added before `transform`."""
        pairs = lora_lib.pairs(self.factors)
        layers = huggingface_names.pieces_with_factors({**self.arrays, **self.factors})

        def merge(name: str, array: np.ndarray) -> Any:
            if name in pairs:
                a, b = (self.factors[factor] for factor in pairs[name])
                array = huggingface_names.merge_factors(
                    array, a, b, layers=layers[name], scale=self.lora.scale
                )
            return transform(name, array) if transform else array

        chosen = list(self.arrays if names is None else names)
        return self.weights.read(chosen, transform=merge, place=place, progress=progress)


def merge(weights: partial_weights.Weights) -> Merged:
    """Returns weights with their factors added in. Weights without any are a ValueError."""
    lora = describe(weights)
    if lora is None:
        raise ValueError(f"{weights.path}: no LoRA factors, nothing to merge")
    return Merged(weights, weights.read(filter(parameter_names.is_factor, weights.arrays)), lora)


def describe(weights: partial_weights.Weights | Merged) -> lora_lib.Lora | None:
    """Returns how the factors of weights act, None where there are none.

    Raises:
      ValueError: there are some, but the file does not say.
    """
    if not any(map(parameter_names.is_factor, weights.arrays)):
        return None
    if LORA not in weights.metadata:
        raise ValueError(
            f"{weights.path}: has LoRA factors, but its metadata does not say how they act "
            f"('{LORA}': targets, rank, alpha, dropout, rank_stabilized)"
        )
    lora_settings = weights.metadata[LORA]
    try:
        return lora_lib.Lora(**lora_settings)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{weights.path}: its metadata says {LORA}={lora_settings!r:.60}, expected "
            f"targets, rank, alpha, dropout and rank_stabilized ({error})"
        ) from error
