"""Boxes and masks: the bins that `<loc>` tokens name, and masks of 64x64 in a box.

The one home of the order and the scale of boxes, and of how masks in boxes become an image's.

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

import base64
import dataclasses

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


# Masks of 64x64 in a box, and masks of a whole image: the one home of how one becomes the other.
#
# The pixels of a box are those of big_vision: `round(side * x)` where a mask is cut out to be
# encoded (its `refcoco_mask2str`), `floor` where a decoded one is pasted (its segmentation
# evaluator). Resizing is linear with antialiasing, as tf.image.resize(antialias=True) and Pillow's
# BILINEAR.

MASK_SIDE = 64  # px of a mask in its box, both ways
ROUNDING = 4e-4  # px: more than float32 loses up to 4096 px, less than the 1/1023 between two bins

PixelBox = tuple[int, int, int, int]  # y1, x1, y2, x2


@dataclasses.dataclass(frozen=True, eq=False)
class Regions:
    """The outlined objects of one image.

    Attributes:
      boxes_yxyx: float32[n, 4] in 0..1 of the image.
      labels: n texts.
      masks: bool[n, H, W].
    """

    boxes_yxyx: np.ndarray
    labels: tuple[str, ...]
    masks: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def find_box(mask: np.ndarray) -> np.ndarray | None:
    """Returns float32[4], yxyx in 0..1, the smallest box around bool[H, W]; None if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    H, W = mask.shape
    return np.array(
        [rows[0] / H, columns[0] / W, (rows[-1] + 1) / H, (columns[-1] + 1) / W], np.float32
    )


def crop_mask(mask: np.ndarray, box_yxyx: np.ndarray) -> np.ndarray:
    """Returns what of bool[H, W] lies in a box, maybe no pixel at all."""
    sides = np.array([*mask.shape, *mask.shape], np.float32)
    pixels = np.rint(np.asarray(box_yxyx, np.float32) * sides).astype(int)
    y1, x1, y2, x2 = np.clip(pixels, 0, sides.astype(int)).tolist()
    return mask[y1:y2, x1:x2]


def cut_mask(mask: np.ndarray, box_yxyx: np.ndarray) -> np.ndarray:
    """Returns float32[64, 64] in 0..1: what of bool[H, W] lies in a box, ready to be encoded.

    Raises:
      ValueError: the box covers no pixel.
    """
    inside = crop_mask(mask, box_yxyx)
    if not inside.size:
        raise ValueError(
            f"box {np.round(box_yxyx, 4).tolist()} (y1 x1 y2 x2) covers no pixel of "
            f"{mask.shape[1]}x{mask.shape[0]}: leave such objects out"
        )
    return resize_linear(inside, MASK_SIDE, MASK_SIDE)


def fit_mask(
    mask: np.ndarray, box_yxyx: np.ndarray, height: int, width: int
) -> tuple[PixelBox, np.ndarray]:
    """Returns a decoded mask in the pixels of its box: (y1 x1 y2 x2, bool[y2 - y1, x2 - x1]).

    Args:
      mask: float32[64, 64], above 0 inside.
      box_yxyx: float[4] in 0..1 of the image.
      height, width: of the image. A box without a pixel gives an empty mask.
    """
    # A bin that names a whole pixel must not end below it for a rounding of float32.
    sides = np.array([height, width, height, width])
    y1, x1, y2, x2 = np.floor(np.float64(box_yxyx) * sides + ROUNDING).astype(int).tolist()
    if y2 <= y1 or x2 <= x1:
        return (y1, x1, y1, x1), np.zeros((0, 0), bool)
    return (y1, x1, y2, x2), resize_linear(mask, y2 - y1, x2 - x1) > 0


def paste_mask(mask: np.ndarray, box_yxyx: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns bool[height, width], a decoded mask in its place in the image; see `fit_mask`."""
    image = np.zeros((height, width), bool)
    (y1, x1, y2, x2), inside = fit_mask(mask, box_yxyx, height, width)
    image[y1:y2, x1:x2] = inside
    return image


def resize_linear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns float32[height, width] of an array [H, W]: linear, antialiased where it shrinks."""
    rows, columns = (
        _weights(old, new) for old, new in zip(image.shape, (height, width), strict=True)
    )
    return rows @ np.asarray(image, np.float32) @ columns.T


def pack_mask(mask: np.ndarray) -> str:
    """Returns bool[64, 64] as base64 of its bits, row by row, eight to a byte: 684 letters."""
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def unpack_mask(text: str) -> np.ndarray:
    """Returns the bool[64, 64] that `pack_mask` wrote."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8))
    return bits.reshape(MASK_SIDE, MASK_SIDE).astype(bool)


def _weights(old: int, new: int) -> np.ndarray:
    """Returns float32[new, old]: how much of each old pixel a new one takes, as a triangle."""
    step = old / new
    centers = (np.arange(new) + 0.5) * step
    distance = np.abs(np.arange(old) + 0.5 - centers[:, None]) / max(step, 1.0)
    weights = np.clip(1 - distance, 0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
