"""Which of the tensors of Moondream2's authors is which part of our arrays, as `huggingface_names`.

They keep queries, keys and values as one linear layer, as we do, and one tensor for each layer.
"""

from collections.abc import Mapping
from typing import Any

from paligemma_jax.checkpoints import huggingface_names

VISION = "vision_encoder.encoder.model.visual."
TEXT = "text_model."
TABLE: dict[tuple[str, str, bool], list[huggingface_names.Row]] = {
    ("img/", VISION, False): [
        ("embedding/kernel", (), "patch_embed.linear.weight", "h w C O -> O (C h w)"),
        ("embedding/bias", (), "patch_embed.linear.bias", "O -> O"),
        ("pos_embedding", (), "pos_embed", "B P D -> B P D"),
        ("norm/scale", (), "norm.weight", "D -> D"),
        ("norm/bias", (), "norm.bias", "D -> D"),
    ],
    ("img/blocks/", VISION + "blocks.{}.", True): [
        ("attn/qkv/kernel", (), "attn.qkv.weight", "D c N H -> (c N H) D"),
        ("attn/qkv/bias", (), "attn.qkv.bias", "c N H -> (c N H)"),
        ("attn/proj/kernel", (), "attn.proj.weight", "N H D -> D (N H)"),
        ("attn/proj/bias", (), "attn.proj.bias", "D -> D"),
        ("mlp/fc1/kernel", (), "mlp.fc1.weight", "D F -> F D"),
        ("mlp/fc1/bias", (), "mlp.fc1.bias", "F -> F"),
        ("mlp/fc2/kernel", (), "mlp.fc2.weight", "F D -> D F"),
        ("mlp/fc2/bias", (), "mlp.fc2.bias", "D -> D"),
        ("norm1/scale", (), "norm1.weight", "D -> D"),
        ("norm1/bias", (), "norm1.bias", "D -> D"),
        ("norm2/scale", (), "norm2.weight", "D -> D"),
        ("norm2/bias", (), "norm2.bias", "D -> D"),
    ],
    ("img/projection/", "vision_encoder.projection.mlp.", False): [
        ("fc1/kernel", (), "fc1.weight", "D F -> F D"),
        ("fc1/bias", (), "fc1.bias", "F -> F"),
        ("fc2/kernel", (), "fc2.weight", "F D -> D F"),
        ("fc2/bias", (), "fc2.bias", "D -> D"),
    ],
    ("text/", TEXT, False): [
        ("embedder/input_embedding", (), "transformer.embd.wte.weight", "V D -> V D"),
        ("final_norm/scale", (), "lm_head.ln.weight", "D -> D"),
        ("final_norm/bias", (), "lm_head.ln.bias", "D -> D"),
        ("head/kernel", (), "lm_head.linear.weight", "V D -> V D"),
        ("head/bias", (), "lm_head.linear.bias", "V -> V"),
    ],
    ("text/layers/", TEXT + "transformer.h.{}.", True): [
        ("norm/scale", (), "ln.weight", "D -> D"),
        ("norm/bias", (), "ln.bias", "D -> D"),
        ("attn/qkv/kernel", (), "mixer.Wqkv.weight", "D c N H -> (c N H) D"),
        ("attn/qkv/bias", (), "mixer.Wqkv.bias", "c N H -> (c N H)"),
        ("attn/out/kernel", (), "mixer.out_proj.weight", "N H D -> D (N H)"),
        ("attn/out/bias", (), "mixer.out_proj.bias", "D -> D"),
        ("mlp/fc1/kernel", (), "mlp.fc1.weight", "D F -> F D"),
        ("mlp/fc1/bias", (), "mlp.fc1.bias", "F -> F"),
        ("mlp/fc2/kernel", (), "mlp.fc2.weight", "F D -> D F"),
        ("mlp/fc2/bias", (), "mlp.fc2.bias", "D -> D"),
    ],
}


def pieces(shapes: Mapping[str, Any]) -> list[huggingface_names.Piece]:
    """Returns all tensors that the authors keep of parameters with these names and shapes.

    A name that they have no place for is a ValueError.
    """
    return huggingface_names.cut(shapes, TABLE, renamed={}, what="the authors' Moondream2")
