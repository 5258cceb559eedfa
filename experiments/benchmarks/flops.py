"""Model FLOPs of a training step, for MFU.

Convention: 6 per parameter and token for trained matrices, 4 for frozen ones that gradients pass
through, 2 for those that none does; attention products included (times 3 where gradients pass); no
rematerialization; the vocabulary at supervised positions only; embedding lookups, norms and
softmax are not counted.
"""

import math
from collections.abc import Collection

from paligemma_jax.models import paligemma
from paligemma_jax.params import variants

PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "T4": 65e12}


def of_step(
    model: variants.PaliGemma,
    *,
    batch_size: int,
    text_len: int,
    supervised: int,
    trainable: Collection[str],
) -> float:
    """Returns the FLOPs of one step.

    Args:
      model: dimensions.
      batch_size: examples.
      text_len: text tokens that the model reads, padding included.
      supervised: supervised tokens per example.
      trainable: names of the trained parameters.
    """
    trains_img = any(name.startswith("img/") for name in trainable)
    patches, sequence = model.num_image_tokens, model.num_image_tokens + text_len
    total = 0.0
    for name, shape in paligemma.shapes(model).items():
        if len(shape.shape) < 2 or name.endswith(("/bias", "/scale", "pos_embedding")):
            continue
        if name == "llm/embedder/input_embedding":
            tokens, passes = supervised, 6 if name in trainable else 4
        elif name.startswith("img/"):
            tokens, passes = patches, 2 + (trains_img and 2) + (name in trainable and 2)
        else:
            tokens, passes = sequence, 6 if name in trainable else 4
        total += passes * math.prod(shape.shape) * tokens
    total += (3 if trains_img else 1) * model.img.depth * 4 * patches**2 * model.img.width
    total += 3 * model.llm.depth * 4 * sequence**2 * model.llm.num_heads * model.llm.head_dim
    return batch_size * total


def peak(device_kind: str) -> float | None:
    """Returns the dense bf16 FLOP/s of a chip, None if it is not in the table."""
    return next((value for name, value in PEAK_BF16.items() if name in device_kind), None)
