"""Boxes and the bins that `<loc>` tokens name: the one home of the box order and of the scale.

Order: a box is "yxyx", `y1 x1 y2 x2`, top left corner first, in 0..1 of the image's height and
width. The four tokens of its text stand in the same order.

Scale: 1024 tokens `<loc0000>` .. `<loc1023>` share the side of an image, and two readings of them
are in use:

  "1023"  bin = round(x * 1023), x = bin / 1023   big_vision: both edges of the image are exact
  "1024"  bin = round(x * 1024), x = bin / 1024   transformers' guide, supervision: the far edge
                                                  reads back as 1023/1024

They differ by at most 1/1024 of the side, so a model trained with one reads almost right with the
other. Say which one a checkpoint was trained with: callers store the name in its metadata.
"""

import numpy as np

NUM_BINS = 1024
CONVENTIONS = {"1023": 1023, "1024": 1024}
DEFAULT_CONVENTION = "1023"


def to_bins(boxes_yxyx: np.ndarray, *, convention: str = DEFAULT_CONVENTION) -> np.ndarray:
    """Returns int32[n, 4], the nearest bin of each coordinate, for float[n, 4] in 0..1.

    Halves go to the even bin, as tf.round and np.rint do. Coordinates outside 0..1 and in the last
    half bin of "1024" get the nearest bin that has a token.
    """
    scaled = np.asarray(boxes_yxyx, np.float32) * np.float32(scale(convention))
    return np.clip(np.rint(scaled), 0, NUM_BINS - 1).astype(np.int32).reshape(-1, 4)


def from_bins(bins: np.ndarray, *, convention: str = DEFAULT_CONVENTION) -> np.ndarray:
    """Returns float32[n, 4] in 0..1 for int[n, 4] in 0..1023: undoes `to_bins` to half a bin."""
    bins = np.asarray(bins, np.float32).reshape(-1, 4)
    return bins / np.float32(scale(convention))


def iou(first_yxyx: np.ndarray, second_yxyx: np.ndarray) -> np.ndarray:
    """Returns float64[n, m], intersection over union of every pair; 0 where both boxes are empty.

    Args:
      first_yxyx: float[n, 4].
      second_yxyx: float[m, 4], in the same unit.
    """
    first = np.asarray(first_yxyx, np.float64).reshape(-1, 1, 4)
    second = np.asarray(second_yxyx, np.float64).reshape(1, -1, 4)
    top_left = np.maximum(first[..., :2], second[..., :2])
    bottom_right = np.minimum(first[..., 2:], second[..., 2:])
    shared = np.prod(np.clip(bottom_right - top_left, 0, None), axis=-1)
    union = _area(first) + _area(second) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _area(boxes_yxyx: np.ndarray) -> np.ndarray:
    return np.prod(np.clip(boxes_yxyx[..., 2:] - boxes_yxyx[..., :2], 0, None), axis=-1)


def scale(convention: str) -> int:
    """Returns how many bins one side of the image measures; an unknown name is a ValueError."""
    if convention not in CONVENTIONS:
        raise ValueError(
            f"<loc> convention '{convention}' is unknown; expected one of {sorted(CONVENTIONS)}"
        )
    return CONVENTIONS[convention]
