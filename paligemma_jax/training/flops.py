"""Model FLOPs of a training step, and what chips can do: what MFU is the quotient of.

Convention: per matrix parameter and token 6 where it is trained, 4 where it is frozen and the
gradient of something before it passes through, 2 where none does; products of attention likewise
(forward, and twice that where gradients pass); padding included, the vocabulary at supervised
positions only; nothing for what rematerialization computes again, for embedding lookups, norms and
softmax. Low-rank factors count as the trained matrices that they are.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from paligemma_jax.models import family

# Dense bf16 FLOP/s (float16 for T4 and V100) of what jax counts as one device, by a part of its
# device_kind; the first that is found. Sources: NVIDIA's data sheets, without sparsity, and
# cloud.google.com/tpu/docs; a TPU v2 or v3 device is one of a chip's two cores.
PEAK_BF16 = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "T4": 65e12,
    "V100": 125e12,
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}


@dataclasses.dataclass(frozen=True)
class Work:
    """Model FLOPs of one example, and how many of them a step with remat does once more.

    Attributes:
      per_example: without the vocabulary.
      per_supervised_token: the vocabulary.
      again_per_example: the forward pass of layers whose backward pass keeps nothing of them.
    """

    per_example: float
    per_supervised_token: float
    again_per_example: float

    def of_step(self, *, batch_size: int, supervised: float) -> float:
        """Returns the model FLOPs of a step; `supervised` tokens per example."""
        return batch_size * (self.per_example + supervised * self.per_supervised_token)


def count(
    model: family.Model,
    shapes: Mapping[str, Any],
    *,
    text_len: int,
    max_images: int = 1,
    trainable: Collection[str],
    embeds_images: bool = True,
    repeats: float = 1.0,
) -> Work:
    """Returns the work of one example.

    Args:
      model: dimensions.
      shapes: name -> anything with a shape, of every parameter.
      text_len: text tokens that the model reads, padding included.
      max_images: image slots, unused ones included.
      trainable: names of the trained parameters.
      embeds_images: False where the vision tower does not run, its results being read.
      repeats: how often the backward pass computes a layer's forward pass again; 0 where it keeps
        the products.
    """
    parts = model.parts()
    of = {name: _part_of(name, parts) for name in (*shapes, *trainable)}
    first = min((of[name] for name in trainable), default=len(parts))
    tokens = {"images": max_images * model.num_image_tokens}
    tokens["sequence"] = tokens["images"] + text_len
    once, again, vocabulary = 0.0, 0.0, 0.0
    for name, x in shapes.items():
        part = parts[of[name]]
        if not _is_matrix(name, x, part) or (part.reads == "images" and not embeds_images):
            continue
        size, is_trained = math.prod(x.shape), name in trainable
        if part.reads == "vocabulary":
            vocabulary += (2 + 2 * bool(trainable) + 2 * is_trained) * size
            continue
        passes = 6 if is_trained else 4 if first <= of[name] else 2
        read = size * tokens[part.reads] * part.runs
        once += passes * read
        again += 2 * read * (passes > 2)
    squares = {
        "images": max_images * model.num_image_tokens**2,
        "sequence": tokens["sequence"] ** 2,
    }
    for number, part in enumerate(parts):
        if not part.attention or (part.reads == "images" and not embeds_images):
            continue
        forward = part.attention * squares[part.reads] * part.runs
        once += forward * (3 if first <= number else 1)
        again += forward * (first <= number)
    return Work(once, vocabulary, repeats * again)


def peak(device_kind: str) -> float | None:
    """Returns the dense bf16 FLOP/s of a device, None if it is not in the table."""
    return next((value for name, value in PEAK_BF16.items() if name in device_kind), None)


def _part_of(name: str, parts: Sequence[family.Part]) -> int:
    for number, part in enumerate(parts):
        if name.startswith(part.prefixes):
            return number
    raise ValueError(f"{name} belongs to no part of the model: {[part.prefixes for part in parts]}")


def _is_matrix(name: str, x: Any, part: family.Part) -> bool:
    return len(x.shape) >= 2 and not name.endswith(("/bias", "/scale", *part.added))
