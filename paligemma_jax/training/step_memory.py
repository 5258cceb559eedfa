"""What a step will need of a device, before any weight is loaded."""

import dataclasses
import math
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device. All are known from shapes but `temporary`, which the compiler tells.

    Attributes:
      trained: trainable parameters, float32.
      frozen: the others, as they are stored.
      optimizer: the optimizer's state.
      batch: the arrays of a batch.
      temporary: gradients, activations and logits, at the moment when they are most.
      logits: of these, the logits of one chunk of positions.
      evaluation: what an evaluation needs beside parameters and optimizer, from shapes: the cache,
        the blocks once more, as decoding reads them, and the logits of a token. 0: none decodes.
      quantized: of the frozen ones, those in 4 or 8 bits.
    """

    trained: int
    frozen: int
    optimizer: int
    batch: int
    temporary: int
    logits: int
    evaluation: int = 0
    quantized: int = 0

    @property
    def resident(self) -> int:
        """What is there all the time."""
        return self.trained + self.frozen + self.optimizer

    @property
    def peak(self) -> int:
        """The most that is needed at any time."""
        return self.resident + max(self.batch + self.temporary, self.evaluation)


def bytes_of(tree: Any) -> int:
    """Returns the bytes of a tree's arrays, or of their shapes, on one device."""
    return sum(_bytes_of_array(x) for x in jax.tree.leaves(tree))


def temporary_bytes(compiled: Any) -> int:
    """Returns what a compiled step needs beside its arguments, and results without their memory."""
    analysis = compiled.memory_analysis()
    not_in_place = max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes)
    return analysis.temp_size_in_bytes + not_in_place


def _bytes_of_array(x: Any) -> int:
    shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    return math.prod(shape) * x.dtype.itemsize
