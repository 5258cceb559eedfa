"""Low-rank factors (LoRA) as transformers' linear layers have them, and merged into weights.

A linear layer of theirs is [out, in]; its factors, as PEFT has them, are A [r, in] and B [out, r].
Which part of which of our arrays it is, `huggingface_names` knows.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import einops
import numpy as np

from paligemma_jax.checkpoints import huggingface_names
from paligemma_jax.params import lora

Piece = huggingface_names.Piece

_LINEAR = re.compile(r"(\(.*?\)|\w+) (\(.*?\)|\w+)")


def pieces(arrays: Mapping[str, Any]) -> dict[str, list[Piece]]:
    """Returns base weight -> its linear layers, of every weight that has factors.

    Args:
      arrays: factors and at least the weights that they stand beside, or their shapes.
    """
    pieces_of: dict[str, list[Piece]] = {base: [] for base in lora.pairs(arrays)}
    for piece in huggingface_names.pieces({base: arrays[base] for base in pieces_of}):
        pieces_of[piece.ours].append(piece)
    return pieces_of


def is_linear(piece: Piece) -> bool:
    """Whether a tensor is the weight of a linear layer, which can have factors."""
    ours, _, theirs = piece.pattern.partition(" -> ")
    # An embedding's rows are no outputs: its axes stay as they are.
    return bool(_LINEAR.fullmatch(theirs)) and ours != theirs


def to_theirs(piece: Piece, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns A [r, in] and B [out, r] of one linear layer, from the whole of our factors."""
    outputs, inputs = _axes(piece)
    return (
        einops.rearrange(a[piece.index], f"{inputs} r -> r ({inputs})"),
        einops.rearrange(b[piece.index], f"r {outputs} -> ({outputs}) r"),
    )


def to_ours(piece: Piece, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what belongs at `piece.index` of our factors, from A [r, in] and B [out, r]."""
    outputs, inputs = _axes(piece)
    sizes = [{axis: piece.axes[axis] for axis in axes.split()} for axes in (inputs, outputs)]
    return (
        einops.rearrange(a, f"r ({inputs}) -> {inputs} r", **sizes[0]),
        einops.rearrange(b, f"({outputs}) r -> r {outputs}", **sizes[1]),
    )


def merge(
    weight: np.ndarray, a: np.ndarray, b: np.ndarray, *, layers: Sequence[Piece], scale: float
) -> np.ndarray:
    """Returns w + scale A B in the type of w; the sum is float32, one linear layer at a time."""
    merged = np.array(weight)
    for piece in layers:
        their_a, their_b = (x.astype(np.float32) for x in to_theirs(piece, a, b))
        delta = piece.to_ours(scale * (their_b @ their_a))
        merged[piece.index] = (weight[piece.index].astype(np.float32) + delta).astype(weight.dtype)
    return merged


def _axes(piece: Piece) -> tuple[str, str]:
    """Returns our axes that are the outputs and the inputs of a linear layer: "N H" and "D"."""
    matched = _LINEAR.fullmatch(piece.pattern.partition(" -> ")[2])
    assert matched is not None  # weights with factors are matrices to transformers
    return matched[1].strip("()"), matched[2].strip("()")
