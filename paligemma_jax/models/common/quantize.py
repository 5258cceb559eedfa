"""Weights in 8 or 4 bits: int8, and NF4 with double quantization (QLoRA, arXiv:2305.14314).

Each block of 64 neighbouring numbers, in the order of memory, has a scale, its greatest magnitude.
int8 stores round(127 x / scale). NF4 stores which of 16 numbers, quantiles of a normal
distribution, is nearest to x / scale; and of 256 scales, less the mean of all, each in 8 bits
beside one scale of their own. That is 1.06 and 0.516 bytes a number. Values are those of
bitsandbytes' `quantize_4bit(blocksize=64, quant_type="nf4", compress_statistics=True)` (its CPU
code rounds a few scales the other way, its CUDA code does not).
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from paligemma_jax.params import names

KINDS = ("int8", "nf4")
BLOCK, SCALES_BLOCK = 64, 256
# arXiv:2305.14314, appendix E.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_MANY = 2**18  # blocks that the host has quantized at a time


@dataclasses.dataclass(frozen=True)
class Quantizable:
    """Which parameters of a family can be quantized.

    Attributes:
      weights: regex of those that meet an activation in `projections.project`, and of the table.
      table: the embedding, of which single rows are read; None: there is none.
      stacked: beginnings of the names of arrays with a weight per layer.
    """

    weights: str
    table: str | None = None
    stacked: tuple[str, ...] = ()

    def unit_of(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of one weight of a parameter: without the axis of the layers."""
        return tuple(shape[1:]) if name.startswith(self.stacked) else tuple(shape)

    def candidates(self, shapes: Mapping[str, Any]) -> list[str]:
        """Returns the names of the parameters that can be quantized, of anything with a shape.

        Those are the large ones whose weights are whole blocks; of the embedding, whose rows are.
        """
        chosen = names.select(self.weights, shapes, what="Quantizable.weights")
        return [
            name
            for name in chosen
            if not names.is_factor(name) and self._unbroken(name, shapes[name].shape) % BLOCK == 0
        ]

    def _unbroken(self, name: str, shape: tuple[int, ...]) -> int:
        """Returns how many numbers in a row must be whole blocks: a weight, of the table a row."""
        return math.prod(shape[1:] if name == self.table else self.unit_of(name, shape))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A weight, or a stack of L weights as a scan slices it: then every array begins with L.

    codes: of NF4 uint8[L, n, 32] for n blocks, two codes to a byte, the first in its high bits; of
      int8 int8[L, n, 64].
    scales: of NF4 uint8[L, n], of int8 float32[L, n].
    outer: what NF4's scales are multiplied by, float32[L, n / 256]; None for int8.
    offset: what is added to them then, float32[L]; None for int8.
    kind: one of `KINDS`.
    unit: shape of one weight.
    """

    codes: Any
    scales: Any
    outer: Any
    offset: Any
    kind: str = dataclasses.field(metadata={"static": True})
    unit: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the numbers that this stands for."""
        return (*self.codes.shape[:-2], *self.unit)

    @property
    def size(self) -> int:
        """How many numbers this stands for."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes that it takes."""
        return sum(part.nbytes for part in jax.tree.leaves(self))

    def astype(self, dtype: DTypeLike) -> jax.Array:
        """Returns the numbers themselves, `shape`."""
        is_stacked = self.codes.ndim > 2
        scales = jax.vmap(_decode_scales)(self) if is_stacked else _decode_scales(self)
        return _decode(self.codes, scales, kind=self.kind, dtype=dtype).reshape(self.shape)

    def rows(self, start: int | jax.Array, count: int, *, dtype: DTypeLike) -> jax.Array:
        """Returns `count` rows of an unstacked weight from `start` on, [count, *unit[1:]]."""
        codes, scales = (
            jax.lax.dynamic_slice_in_dim(x, start, count) for x in (self._codes(), self._scales())
        )
        return self._decode_rows(codes, scales, start + jnp.arange(count), dtype)

    def take(self, ids: jax.Array, *, dtype: DTypeLike) -> jax.Array:
        """Returns rows of an unstacked weight: int32[...] -> [..., *unit[1:]]."""
        ids = jnp.clip(ids, 0, self.unit[0] - 1)
        codes, scales = (jnp.take(x, ids, axis=0) for x in (self._codes(), self._scales()))
        return self._decode_rows(codes, scales, ids, dtype)

    @property
    def has_whole_rows(self) -> bool:
        """Whether no block reaches from one row of a weight into the next."""
        return math.prod(self.unit[1:]) % BLOCK == 0

    def _codes(self) -> jax.Array:
        return self.codes.reshape(self.unit[0], -1, self.codes.shape[-1])

    def _scales(self) -> jax.Array:
        return self.scales.reshape(self.unit[0], -1)

    def _decode_rows(self, codes: Any, scales: Any, ids: jax.Array, dtype: DTypeLike) -> jax.Array:
        if self.kind == "nf4":
            blocks = ids[..., None] * scales.shape[-1] + jnp.arange(scales.shape[-1])
            outer = self.outer[blocks // SCALES_BLOCK]
            scales = jnp.asarray(_scale_map())[scales] * outer + self.offset
        return _decode(codes, scales, kind=self.kind, dtype=dtype).reshape(
            *ids.shape, *self.unit[1:]
        )


def quantize(w: jax.Array, kind: str, *, unit: tuple[int, ...]) -> Quantized:
    """Returns a weight quantized, or every weight of a stack: [L, *unit] or unit, any float."""
    if w.shape != unit:
        return jax.vmap(functools.partial(quantize, kind=kind, unit=unit))(w)
    return _pack(*encode(w.reshape(-1, BLOCK), kind=kind), kind=kind, unit=unit)


def quantize_on_host(w: np.ndarray, kind: str, *, unit: tuple[int, ...]) -> Quantized:
    """As `quantize` of an array in the host's memory, with hardly any more of it."""
    if w.shape != unit:
        return _stack([quantize_on_host(one, kind, unit=unit) for one in w])
    blocks = w.reshape(-1, BLOCK)
    parts = [
        jax.device_get(_encode(blocks[at : at + _MANY], kind=kind))
        for at in range(0, len(blocks), _MANY)
    ]
    codes, scales = (np.concatenate(part) for part in zip(*parts, strict=True))
    return jax.device_get(_pack_jitted(codes, scales, kind=kind, unit=unit))


def encode(blocks: jax.Array, *, kind: str) -> tuple[jax.Array, jax.Array]:
    """Returns the codes of blocks [n, 64], and their scales float32[n]."""
    blocks = blocks.astype(jnp.float32)
    scales = jnp.max(jnp.abs(blocks), axis=1)
    scaled = jnp.clip(blocks * _inverse(scales)[:, None], -1.0, 1.0)
    if kind == "int8":
        return jnp.round(127.0 * scaled).astype(jnp.int8), scales
    # The nearest of 16, as the number of borders between them that lie below.
    values = np.asarray(NF4, np.float32)
    borders = (values[1:] + values[:-1]) / np.float32(2)
    codes: Any = sum((scaled > border).astype(jnp.uint8) for border in borders)
    return (codes[:, ::2] << 4) | codes[:, 1::2], scales


_encode = jax.jit(encode, static_argnames="kind")


def _pack(codes: jax.Array, scales: jax.Array, *, kind: str, unit: tuple[int, ...]) -> Quantized:
    if kind == "int8":
        return Quantized(codes, scales, None, None, kind, unit)
    offset = jnp.mean(scales)
    padded = jnp.pad(scales - offset, (0, -len(scales) % SCALES_BLOCK)).reshape(-1, SCALES_BLOCK)
    outer = jnp.max(jnp.abs(padded), axis=1)
    known = _scale_map()
    borders = (known[1:] + known[:-1]) / 2
    scaled = padded * _inverse(outer)[:, None]
    nearest = jnp.searchsorted(borders, scaled.reshape(-1)[: len(scales)])
    return Quantized(codes, nearest.astype(jnp.uint8), outer, offset, kind, unit)


_pack_jitted = jax.jit(_pack, static_argnames=("kind", "unit"))


def _inverse(scales: jax.Array) -> jax.Array:
    """Returns 1 / scales, finite where these are 0."""
    return 1.0 / jnp.maximum(scales, jnp.finfo(jnp.float32).tiny)


def _stack(weights: list[Quantized]) -> Quantized:
    return jax.tree.map(lambda *parts: np.stack(parts), *weights)


def _decode_scales(w: Quantized) -> jax.Array:
    """Returns the scales of one weight, float32[n]."""
    if w.kind == "int8":
        return w.scales
    outer = jnp.repeat(w.outer, SCALES_BLOCK)[: len(w.scales)]
    return jnp.asarray(_scale_map())[w.scales] * outer + w.offset


def _decode(codes: Any, scales: Any, *, kind: str, dtype: DTypeLike) -> jax.Array:
    """[..., bytes] and float32[...] -> [..., 64], computed in float32."""
    if kind == "int8":
        values = codes.astype(jnp.float32) * np.float32(1 / 127)
    else:
        pairs = jnp.stack([_look_up(codes >> 4), _look_up(codes & 15)], axis=-1)
        values = pairs.reshape(*codes.shape[:-1], BLOCK)
    return (values * scales[..., None]).astype(dtype)


def _look_up(codes: jax.Array) -> jax.Array:
    """Returns NF4[codes] by choices between two, which is twice as fast as indexing on a CPU."""
    values: list[Any] = [jnp.float32(value) for value in NF4]
    for bit in range(4):
        is_set = (codes >> bit) & 1 == 1
        pairs = zip(values[::2], values[1::2], strict=True)
        values = [jnp.where(is_set, high, low) for low, high in pairs]
    return values[0]


@functools.cache
def _scale_map() -> np.ndarray:
    """Returns the 256 numbers that scales are rounded to, sorted float32: dynamic 8 bit, signed.

    arXiv:2110.02861, 2.2: 0, 1, and of each decade [10^(k-1), 10^k] for k = 0, -1, ... -6 the
    middles of 2^(6+k) equal parts, on both sides of 0.
    """
    values = [np.zeros(1, np.float32), np.ones(1, np.float32)]
    for exponent in range(-6, 1):
        count = 2 ** (6 + exponent)
        # As torch.linspace rounds, from both ends: the numbers are bitsandbytes' to the last bit.
        start, step = np.float32(0.1), (np.float32(1) - np.float32(0.1)) / np.float32(count)
        i = np.arange(count + 1)
        edges = np.where(i < count // 2, start + np.float64(step) * i, 1 - step * (count - i))
        edges = edges.astype(np.float32)
        middles = np.float32(10.0**exponent) * ((edges[1:] + edges[:-1]) / np.float32(2))
        values += [middles, -middles]
    return np.sort(np.concatenate(values))
