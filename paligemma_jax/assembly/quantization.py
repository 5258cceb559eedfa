"""Which weights are held in 4 or 8 bits, as the key `quantize` says."""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.checkpoints import lazy_array, partial_weights
from paligemma_jax.models.common import quantize
from paligemma_jax.params import names, sharding
from paligemma_jax.settings import schema

WHAT = "quantize"
# Type in which quantized weights are written where a file is to hold all weights.
WRITTEN = "bfloat16"


def choose(
    settings: schema.Settings,
    shapes: Mapping[str, Any],
    quantizable: quantize.Quantizable | None,
    *,
    trainable: Collection[str],
    stored: partial_weights.Weights | None,
) -> dict[str, str]:
    """Returns which weights are quantized, and how: name -> one of `quantize.KINDS`.

    A single kind is meant for all weights that can have it and do not train; nor what a file of
    trained arrays holds itself, which was trained beside quantized ones.

    Args:
      settings: of the run.
      shapes: of all parameters.
      quantizable: which of them can be quantized; None: none.
      trainable: their names.
      stored: the weights to be read; None: random ones.

    Raises:
      ValueError: a rule that names a trainable weight or none that can be quantized; nothing left
        to quantize; a weight whose place is given axis by axis, which blocks do not have.
    """
    asked = settings.quantize
    if asked is None:
        return {}
    if quantizable is None:
        raise ValueError(f"{WHAT}: no weight of a {settings.model.family} can be quantized")
    possible = quantizable.candidates(shapes)
    if isinstance(asked, str):
        kept = {*trainable, *(stored.own if stored and stored.base else ())}
        kinds = dict.fromkeys((name for name in possible if name not in kept), asked)
        if not kinds:
            raise ValueError(
                f"{WHAT}='{asked}': every weight that can be quantized trains. Train less of the "
                f"base: set lora.targets='llm', or trainable, or {WHAT}=None"
            )
    else:
        rules = [(str(regex), kind) for regex, kind in asked]
        matched = names.match(rules, possible, what=WHAT, default=None)
        kinds = {name: kind for name, kind in matched.items() if kind is not None}
    if trained := sorted(kinds.keys() & set(trainable)):
        raise ValueError(
            f"{WHAT}: '{trained[0]}' is trained, and only frozen weights can be quantized "
            f"({len(trained)} such). Put ('{trained[0]}', None) before its rule, or freeze it"
        )
    _check_places(settings, shapes, kinds)
    return kinds


def shrink(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    kinds: Mapping[str, str],
    quantizable: quantize.Quantizable | None,
) -> dict[str, Any]:
    """Returns shapes and types in memory, of quantized weights as `quantize.Quantized` of these."""

    def one(name: str, x: jax.ShapeDtypeStruct) -> Any:
        if quantizable is None or name not in kinds:
            return x
        unit = quantizable.unit_of(name, x.shape)
        return jax.eval_shape(functools.partial(quantize.quantize, kind=kinds[name], unit=unit), x)

    return {name: one(name, x) for name, x in shapes.items()}


def fit(array: jax.Array, wanted: Any) -> Any:
    """Returns an array in the type of `wanted`, or quantized as it is."""
    if isinstance(wanted, quantize.Quantized):
        return quantize.quantize(array, wanted.kind, unit=wanted.unit)
    return array.astype(wanted.dtype)


def fit_on_host(array: np.ndarray, wanted: Any) -> Any:
    """As `fit`, of an array in the host's memory and with hardly any more of it."""
    if isinstance(wanted, quantize.Quantized):
        return quantize.quantize_on_host(array, wanted.kind, unit=wanted.unit)
    return array if array.dtype == wanted.dtype else array.astype(wanted.dtype)


def to_write(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters that a file can hold: quantized ones as the numbers they stand for."""

    def one(array: Any) -> Any:
        if not isinstance(array, quantize.Quantized):
            return array
        return lazy_array.Deferred(
            array.shape,
            jnp.dtype(WRITTEN),
            lambda: np.asarray(jax.jit(lambda x: x.astype(WRITTEN))(array)),
        )

    return {name: one(array) for name, array in params.items()}


def kind_of(array: Any) -> str:
    """Returns "nf4", or the type of an array that is not quantized."""
    return array.kind if isinstance(array, quantize.Quantized) else str(array.dtype)


def describe(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Returns {"quantized": "9 x nf4"} of arrays or their shapes, {} where none is quantized."""
    kinds = [x.kind for x in arrays.values() if isinstance(x, quantize.Quantized)]
    counts = [f"{kinds.count(kind)} x {kind}" for kind in sorted(set(kinds))]
    return {"quantized": ", ".join(counts)} if counts else {}


def _check_places(
    settings: schema.Settings, shapes: Mapping[str, Any], kinds: Mapping[str, str]
) -> None:
    rules = [(str(regex), tactic) for regex, tactic in settings.sharding_strategy]
    tactics = names.match(rules, shapes, what=sharding.WHAT)
    for name in kinds:
        if sharding.names_dimensions(tactics[name]):
            raise ValueError(
                f"{sharding.WHAT}: {tactics[name]} gives a place to each axis of '{name}', which "
                f"is quantized and stored as blocks: give it 'fsdp' or 'replicate'"
            )
