"""Which of transformers' tensors is which part of which of our arrays, and how its axes lie.

transformers has one tensor for each layer and projection where big_vision stacks all layers, and
its linear layers are [out, in]. Names here are those of the released files on the Hub, which every
version of transformers reads; `hub_name` understands two more spellings:

  Hub, 4.x      vision_tower.vision_model.*  language_model.model.*  multi_modal_projector.*
  saved by 5.x  vision_tower.*               language_model.model.*  multi_modal_projector.*
  in 5.x        model.vision_tower.*         model.language_model.*  model.multi_modal_projector.*

Low-rank factors follow from that: a linear layer of theirs is [out, in]; its factors, as PEFT has
them, are A [r, in] and B [out, r].
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import einops
import jax
import numpy as np

from paligemma_jax.params import lora

# transformers' embedding has more rows: `<image>`, and padding to a multiple of 64.
EXTRA_ROWS = 64
EMBEDDING = "llm/embedder/input_embedding"
POST_NORM = "llm/layers/post_attention_norm/scale"
# Spellings of the head, which is the embedding once more.
HEADS = ("lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight")

# (our prefix, their prefix, is it stacked?): [(our name, index behind that of the layer, their
# name, our axes -> their axes)]. Axes are named by CONVENTIONS' letters, I and O are in and out.
Row = tuple[str, tuple[int, ...], str, str]
TABLE: dict[tuple[str, str, bool], list[Row]] = {
    ("img/", "vision_tower.vision_model.", False): [
        ("embedding/kernel", (), "embeddings.patch_embedding.weight", "h w C O -> O C h w"),
        ("embedding/bias", (), "embeddings.patch_embedding.bias", "O -> O"),
        ("pos_embedding", (0,), "embeddings.position_embedding.weight", "P D -> P D"),
        ("Transformer/encoder_norm/scale", (), "post_layernorm.weight", "D -> D"),
        ("Transformer/encoder_norm/bias", (), "post_layernorm.bias", "D -> D"),
    ],
    ("img/Transformer/encoderblock/", "vision_tower.vision_model.encoder.layers.{}.", True): [
        ("LayerNorm_0/scale", (), "layer_norm1.weight", "D -> D"),
        ("LayerNorm_0/bias", (), "layer_norm1.bias", "D -> D"),
        ("LayerNorm_1/scale", (), "layer_norm2.weight", "D -> D"),
        ("LayerNorm_1/bias", (), "layer_norm2.bias", "D -> D"),
        ("MlpBlock_0/Dense_0/kernel", (), "mlp.fc1.weight", "D F -> F D"),
        ("MlpBlock_0/Dense_0/bias", (), "mlp.fc1.bias", "F -> F"),
        ("MlpBlock_0/Dense_1/kernel", (), "mlp.fc2.weight", "F D -> D F"),
        ("MlpBlock_0/Dense_1/bias", (), "mlp.fc2.bias", "D -> D"),
    ],
    (
        "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/",
        "vision_tower.vision_model.encoder.layers.{}.self_attn.",
        True,
    ): [
        ("query/kernel", (), "q_proj.weight", "D N H -> (N H) D"),
        ("query/bias", (), "q_proj.bias", "N H -> (N H)"),
        ("key/kernel", (), "k_proj.weight", "D N H -> (N H) D"),
        ("key/bias", (), "k_proj.bias", "N H -> (N H)"),
        ("value/kernel", (), "v_proj.weight", "D N H -> (N H) D"),
        ("value/bias", (), "v_proj.bias", "N H -> (N H)"),
        ("out/kernel", (), "out_proj.weight", "N H D -> D (N H)"),
        ("out/bias", (), "out_proj.bias", "D -> D"),
    ],
    ("img/head/", "multi_modal_projector.linear.", False): [
        ("kernel", (), "weight", "I O -> O I"),
        ("bias", (), "bias", "O -> O"),
    ],
    ("llm/", "language_model.model.", False): [
        ("embedder/input_embedding", (), "embed_tokens.weight", "V D -> V D"),
        ("final_norm/scale", (), "norm.weight", "D -> D"),
    ],
    ("llm/layers/attn/", "language_model.model.layers.{}.self_attn.", True): [
        ("q_einsum/w", (), "q_proj.weight", "N D H -> (N H) D"),
        ("kv_einsum/w", (0,), "k_proj.weight", "K D H -> (K H) D"),
        ("kv_einsum/w", (1,), "v_proj.weight", "K D H -> (K H) D"),
        ("qkv_einsum/w", (0,), "q_proj.weight", "N D H -> (N H) D"),
        ("qkv_einsum/w", (1,), "k_proj.weight", "N D H -> (N H) D"),
        ("qkv_einsum/w", (2,), "v_proj.weight", "N D H -> (N H) D"),
        ("attn_vec_einsum/w", (), "o_proj.weight", "N H D -> D (N H)"),
    ],
    ("llm/layers/", "language_model.model.layers.{}.", True): [
        ("mlp/gating_einsum", (0,), "mlp.gate_proj.weight", "D F -> F D"),
        ("mlp/gating_einsum", (1,), "mlp.up_proj.weight", "D F -> F D"),
        ("mlp/linear", (), "mlp.down_proj.weight", "F D -> D F"),
        ("pre_attention_norm/scale", (), "input_layernorm.weight", "D -> D"),
        ("pre_ffw_norm/scale", (), "pre_feedforward_layernorm.weight", "D -> D"),
        ("post_attention_norm/scale", (), "post_attention_layernorm.weight", "D -> D"),
        ("post_ffw_norm/scale", (), "post_feedforward_layernorm.weight", "D -> D"),
    ],
}
# Gemma 1 has one norm behind attention and its file names it so; it is the one before the MLP.
GEMMA_1 = {"pre_feedforward_layernorm.weight": "post_attention_layernorm.weight"}


@dataclasses.dataclass(frozen=True)
class Piece:
    """One of their tensors: `ours[index]`, its axes rearranged.

    Attributes:
      ours: name of our array.
      index: which part of it.
      theirs: the tensor's name.
      shape: of the tensor, the embedding without its extra rows.
      pattern: our axes -> their axes, as einops reads it.
      axes: length of each of our axes.
    """

    ours: str
    index: tuple[int, ...]
    theirs: str
    shape: tuple[int, ...]
    pattern: str
    axes: Mapping[str, int]

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """Returns this tensor from the whole of our array."""
        return einops.rearrange(array[self.index], self.pattern)

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """Returns what belongs at `index` of our array."""
        ours, theirs = self.pattern.split(" -> ")
        return einops.rearrange(tensor, f"{theirs} -> {ours}", **self.axes)


def pieces(shapes: Mapping[str, jax.ShapeDtypeStruct]) -> list[Piece]:
    """Returns all tensors that transformers keeps of parameters with these names and shapes.

    A name that it has no place for is a ValueError.
    """
    is_gemma_1 = POST_NORM not in shapes
    return cut(shapes, TABLE, renamed=GEMMA_1 if is_gemma_1 else {}, what="transformers' PaliGemma")


def cut(
    shapes: Mapping[str, Any],
    table: Mapping[tuple[str, str, bool], Sequence[Row]],
    *,
    renamed: Mapping[str, str],
    what: str,
) -> list[Piece]:
    """Returns all tensors that a table knows of parameters with these names and shapes.

    Args:
      shapes: our names -> anything with a shape.
      table: as `TABLE`.
      renamed: their name in the table -> another one.
      what: whose tensors they are, for the message on a name that the table does not have.
    """
    all_pieces: list[Piece] = []
    for (our_prefix, their_prefix, is_stacked), rows in table.items():
        for name, index, their_name, pattern in rows:
            ours = our_prefix + name
            if ours not in shapes:
                continue
            their_name = renamed.get(their_name, their_name)
            letters = pattern.partition(" -> ")[0].split()
            sizes = shapes[ours].shape[-len(letters) :]
            axes = dict(zip(letters, sizes, strict=True))
            # A view of one byte has the shape of the tensor and none of its size.
            shape = einops.rearrange(np.broadcast_to(np.uint8(0), sizes), pattern).shape
            for layer in range(shapes[ours].shape[0]) if is_stacked else [None]:
                theirs = their_prefix.format(layer) + their_name
                where = index if layer is None else (layer, *index)
                all_pieces.append(Piece(ours, where, theirs, shape, pattern, axes))
    if unknown := sorted(shapes.keys() - {piece.ours for piece in all_pieces}):
        raise ValueError(f"{what} has no place for {unknown}")
    return all_pieces


def hub_name(name: str) -> str:
    """Returns a tensor's name in the Hub's spelling, from any of the three."""
    name = re.sub(r"^model\.(?=vision_tower|language_model|multi_modal)", "", name)
    name = re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)
    return re.sub(r"^language_model\.(?!model\.|lm_head)", "language_model.model.", name)


_LINEAR = re.compile(r"(\(.*?\)|\w+) (\(.*?\)|\w+)")


def pieces_with_factors(
    arrays: Mapping[str, Any], cut_all: Callable[[Mapping[str, Any]], list[Piece]] = pieces
) -> dict[str, list[Piece]]:
    """Returns base weight -> its linear layers, of every weight that has factors.

    Args:
      arrays: factors and at least the weights that they stand beside, or their shapes.
      cut_all: `pieces`, or that of another family.
    """
    pieces_of: dict[str, list[Piece]] = {base: [] for base in lora.pairs(arrays)}
    for piece in cut_all({base: arrays[base] for base in pieces_of}):
        pieces_of[piece.ours].append(piece)
    return pieces_of


def is_linear(piece: Piece) -> bool:
    """Whether a tensor is the weight of a linear layer, which can have factors."""
    ours, _, theirs = piece.pattern.partition(" -> ")
    # An embedding's rows are no outputs: its axes stay as they are.
    return bool(_LINEAR.fullmatch(theirs)) and ours != theirs


def factors_to_theirs(piece: Piece, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns A [r, in] and B [out, r] of one linear layer, from the whole of our factors."""
    outputs, inputs = _axes(piece)
    return (
        einops.rearrange(a[piece.index], f"{inputs} r -> r ({inputs})"),
        einops.rearrange(b[piece.index], f"r {outputs} -> ({outputs}) r"),
    )


def factors_to_ours(piece: Piece, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what belongs at `piece.index` of our factors, from A [r, in] and B [out, r]."""
    outputs, inputs = _axes(piece)
    sizes = [{axis: piece.axes[axis] for axis in axes.split()} for axes in (inputs, outputs)]
    return (
        einops.rearrange(a, f"r ({inputs}) -> {inputs} r", **sizes[0]),
        einops.rearrange(b, f"({outputs}) r -> r {outputs}", **sizes[1]),
    )


def merge_factors(
    weight: np.ndarray, a: np.ndarray, b: np.ndarray, *, layers: Sequence[Piece], scale: float
) -> np.ndarray:
    """Returns w + scale A B in the type of w; the sum is float32, one linear layer at a time."""
    merged = np.array(weight)
    for piece in layers:
        their_a, their_b = (x.astype(np.float32) for x in factors_to_theirs(piece, a, b))
        delta = piece.to_ours(scale * (their_b @ their_a))
        merged[piece.index] = (weight[piece.index].astype(np.float32) + delta).astype(weight.dtype)
    return merged


def _axes(piece: Piece) -> tuple[str, str]:
    """Returns our axes that are the outputs and the inputs of a linear layer: "N H" and "D"."""
    matched = _LINEAR.fullmatch(piece.pattern.partition(" -> ")[2])
    assert matched is not None  # weights with factors are matrices to transformers
    return matched[1].strip("()"), matched[2].strip("()")
