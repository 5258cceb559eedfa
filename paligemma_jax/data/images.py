"""Image files to `uint8[R, R, 3]`, the same for training and for predictions.

What big_vision's trainer does (`decode|resize(R, antialias=True)`), through the same ops:

* JPEG, PNG, GIF, BMP and WebP, told by content and not by name; of an animation the first frame.
  JPEG and PNG are decoded by `tf.io.decode_image`, the others by Pillow: TensorFlow leaves out the
  canvas around a GIF's first frame, takes a BMP's palette for gray, and refuses WebP with alpha.
* Always three channels: gray is repeated, a palette is looked up, alpha is dropped (not blended).
  Of 16 bits the upper 8 are kept: a 12-bit X-ray in a 16-bit file comes out nearly black, so
  rescale such files beforehand.
* Pixels as they are stored: an EXIF orientation is not applied. Boxes of a tool that shows a photo
  upright do not fit the stored pixels then; rotate such files for good before labelling.
* Resized to a square without keeping the aspect ratio, bilinear with antialias, and cut to integers
  by truncation. The official Colab keeps the fraction: up to one gray level more. Some of the
  authors' transfers are made without antialias: the resampling "bilinear_aliased".

Models of some families have seen images that Pillow read and resized (bicubic): with the resampling
"pillow_bicubic" theirs are those, bit for bit. With "pillow_crops" an image from 512 px on (of a
model's 378) may be twice as high, twice as wide, or both, whatever is nearest to its proportions;
then a batch holds uint8[2R, 2R, 4], the image from its first pixel on, and 255 in the last channel
where there is image.

The accelerator normalizes; nothing here does. TensorFlow is imported by `tensorflow`, and nowhere
else in the package.
"""

import functools
import io
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from paligemma_jax.data import locations

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# How an image becomes a square: as big_vision's, with antialiasing and without, or as of
# torchvision's Resize of a Pillow image; for crops it becomes up to four squares.
BILINEAR, ALIASED = BY_TENSORFLOW = ("bilinear", "bilinear_aliased")
PILLOW_BICUBIC, PILLOW_CROPS = ("pillow_bicubic", "pillow_crops")
RESAMPLINGS = (*BY_TENSORFLOW, PILLOW_BICUBIC, PILLOW_CROPS)
# Smaller images are never more than one square: so many pixels at so many pixels of a square.
FROM_PIXELS, AT_RES = 512, 378
# What TensorFlow wraps around a message: the op and its place in a graph.
# How files begin that Pillow decodes, by its names of their formats.
BY_PILLOW = {"GIF": b"GIF8", "BMP": b"BM", "WEBP": b"RIFF"}
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
TF_DECORATION = re.compile(r"\{\{[^{}]*\}\}|\[Op:[^\]]*\](\s+name:)?")


@functools.cache
def tensorflow() -> Any:
    """Returns the tensorflow module, with its GPUs hidden so that they are left to JAX.

    It is kept from writing to the terminal anything but errors, unless TF_CPP_MIN_LOG_LEVEL and
    TF_ENABLE_ONEDNN_OPTS (which announces itself, and is of no use here) are set.

    Raises:
      ValueError: TensorFlow was started on a GPU before; then it is too late to hide it.
    """
    if os.environ.get(LOG_LEVEL, "1") == "1":  # jax sets 1 where nothing is set
        os.environ[LOG_LEVEL] = "2"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import tensorflow as tf

    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError:
        if tf.config.get_visible_devices("GPU"):
            raise ValueError(
                "TensorFlow already holds a GPU, which leaves less memory for JAX. Call "
                "tf.config.set_visible_devices([], 'GPU') before other uses of TensorFlow"
            ) from None
    return tf


def shape(res: int, resampling: str) -> tuple[int, int, int]:
    """Returns the shape of an image in a batch."""
    return (2 * res, 2 * res, 4) if resampling == PILLOW_CROPS else (res, res, 3)


def show(pixels: np.ndarray) -> np.ndarray:
    """Returns uint8[H, W, 3], the picture in an image of a batch."""
    if pixels.shape[-1] == 3:
        return pixels
    rows, columns = (pixels[:, 0, 3] > 0).sum(), (pixels[0, :, 3] > 0).sum()
    return pixels[:rows, :columns, :3]


def load(
    path: str | os.PathLike[str], *, res: int, resampling: str = BILINEAR, source: str = ""
) -> np.ndarray:
    """Returns an image file in the `shape` that batches have it in, uint8[res, res, 3] as a rule.

    Args:
      path: the file, or its address.
      res: side of the result in pixels.
      resampling: one of `RESAMPLINGS`.
      source: where the path is from ("file.jsonl:12"), for the error.

    Raises:
      ValueError: the file is missing, cannot be had or is no image.
    """
    pixels, _ = load_measured(path, res=res, resampling=resampling, source=source)
    return pixels


def load_measured(
    path: str | os.PathLike[str], *, res: int, resampling: str = BILINEAR, source: str = ""
) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns what `load` does, and (height, width) of the image as it is in its file."""

    def decode() -> tuple[np.ndarray, tuple[int, int]]:
        whole = _decode_now(path, resampling)
        height, width, _ = whole.shape
        resized = resize_op(whole, res=res, resampling=resampling)
        framed = frame_op(resized, res=res, resampling=resampling)
        return framed.numpy(), (int(height), int(width))

    return _read(decode, path, source)


def read_size(path: str) -> tuple[int, int] | None:
    """Returns (height, width) in pixels as a file's first bytes say; None where they do not.

    Nor is an image at an address asked for: it would be fetched once more.
    """
    if locations.is_address(path):
        return None
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except PILLOW_ERRORS:
        return None


def measure(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns (height, width) in pixels of an image file, after decoding all of it.

    Raises:
      ValueError: as `load`.
    """
    height, width, _ = _read(lambda: _decode_now(path).shape, path, "")
    return int(height), int(width)


def resize(image: np.ndarray, *, res: int, resampling: str = BILINEAR) -> np.ndarray:
    """Returns an image in memory (a video's frame) as `load` returns a file.

    Args:
      image: uint8[H, W, 3], or [H, W], [H, W, 1] for gray, or [H, W, 4], whose alpha is dropped.
      res: side of the result in pixels.
      resampling: one of `RESAMPLINGS`.

    Raises:
      ValueError: another shape or type.
    """
    image = np.asarray(image)
    pixels = image[..., None] if image.ndim == 2 else image
    is_image = pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4) and pixels.size > 0
    if image.dtype != np.uint8 or not is_image:
        raise ValueError(
            f"expected an image uint8[H, W, 3] (or [H, W], [H, W, 1], [H, W, 4]), "
            f"found {image.dtype}{list(image.shape)}"
        )
    pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[-1] == 1 else pixels[..., :3]
    resized = resize_op(tensorflow().constant(pixels), res=res, resampling=resampling)
    return frame_op(resized, res=res, resampling=resampling).numpy()


def load_op(path: Any, *, res: int, resampling: str = BILINEAR) -> Any:
    """Returns tf.uint8 of `shape` of the file at `path`, a tf.string scalar."""
    image = resize_op(decode_op(path, resampling=resampling), res=res, resampling=resampling)
    return frame_op(image, res=res, resampling=resampling)


def decode_op(path: Any, *, resampling: str = BILINEAR) -> Any:
    """Returns tf.uint8[H, W, 3] of the file at `path`, a tf.string scalar.

    Python reads what lies elsewhere (`locations`), TensorFlow itself what is on this machine.
    """
    tf = tensorflow()

    def fetch():
        data = tf.numpy_function(lambda path: locations.read(path.decode()), [path], tf.string)
        return tf.ensure_shape(data, [])

    def decode_by_pillow():
        decode = functools.partial(_decode_by_pillow, formats=_pillow_formats(resampling))
        pixels = tf.numpy_function(decode, [data], tf.uint8)
        return tf.ensure_shape(pixels, [None, None, 3])

    is_address = tf.strings.regex_full_match(path, locations.pattern())
    data = tf.cond(is_address, fetch, lambda: tf.io.read_file(path))
    if resampling not in BY_TENSORFLOW:
        return decode_by_pillow()
    heads = [tf.strings.substr(data, 0, len(head)) == head for head in BY_PILLOW.values()]
    return tf.cond(tf.reduce_any(heads), decode_by_pillow, lambda: _decode_by_tensorflow(data))


def _decode_now(path: str | os.PathLike[str], resampling: str = BILINEAR) -> Any:
    """As `decode_op`, outside of a graph: errors are Python's own."""
    path = os.fspath(path)
    tf = tensorflow()
    data = locations.read(path) if locations.is_address(path) else tf.io.read_file(path).numpy()
    if resampling not in BY_TENSORFLOW or data.startswith(tuple(BY_PILLOW.values())):
        return tf.constant(_decode_by_pillow(data, formats=_pillow_formats(resampling)))
    return _decode_by_tensorflow(data)


def _decode_by_tensorflow(data: Any) -> Any:
    tf = tensorflow()
    pixels = tf.io.decode_image(data, channels=3, expand_animations=False)
    return tf.ensure_shape(pixels, [None, None, 3])


def _pillow_formats(resampling: str) -> tuple[str, ...]:
    """Returns the formats that Pillow decodes, by its names."""
    return (*BY_PILLOW, "JPEG", "PNG") if resampling not in BY_TENSORFLOW else tuple(BY_PILLOW)


def _decode_by_pillow(data: bytes, *, formats: tuple[str, ...]) -> np.ndarray:
    """Returns uint8[H, W, 3] of the first frame, on the whole canvas."""
    with Image.open(io.BytesIO(data), formats=formats) as image:
        return np.asarray(image.convert("RGB"))


def resize_op(image: Any, *, res: int, resampling: str = BILINEAR) -> Any:
    """Returns tf.uint8[res, res, 3] of tf.uint8[H, W, 3]; for crops each side may be 2 * res."""
    tf = tensorflow()
    if resampling in BY_TENSORFLOW:
        antialias = resampling == BILINEAR
        return to_uint8(tf.image.resize(image, (res, res), method="bilinear", antialias=antialias))
    side = res if resampling == PILLOW_BICUBIC else None
    resize = functools.partial(_resize_by_pillow, res=res, has_crops=side is None)
    return tf.ensure_shape(tf.numpy_function(resize, [image], tf.uint8), (side, side, 3))


def frame_op(image: Any, *, res: int, resampling: str = BILINEAR) -> Any:
    """Returns a resized image as tf.uint8 of `shape`."""
    tf = tensorflow()
    if resampling == PILLOW_CROPS:
        opaque = tf.fill(tf.concat([tf.shape(image)[:2], [1]], 0), tf.constant(255, tf.uint8))
        image = tf.concat([image, opaque], 2)
        missing = 2 * res - tf.shape(image)[:2]
        image = tf.pad(image, [[0, missing[0]], [0, missing[1]], [0, 0]])
    return tf.ensure_shape(image, shape(res, resampling))


def _resize_by_pillow(pixels: np.ndarray, *, res: int, has_crops: bool) -> np.ndarray:
    height, width = choose_size(*pixels.shape[:2], res=res) if has_crops else (res, res)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def choose_size(height: int, width: int, *, res: int) -> tuple[int, int]:
    """Returns (height, width) of an image before it is cut into crops.

    Of sizes equally near to its proportions it is the nearest to its size, its width being compared
    with the height and the other way round: so do the authors of Moondream2.
    """
    if max(height, width) < FROM_PIXELS * res // AT_RES:
        return res, res
    sizes = [(res, res), (res, 2 * res), (2 * res, res), (2 * res, 2 * res)]
    proportions = width / height

    def distance(size: tuple[int, int]) -> tuple[float, int]:
        return abs(size[1] / size[0] - proportions), abs(size[0] - width) + abs(size[1] - height)

    return min(sizes, key=distance)


def to_uint8(resized: Any) -> Any:
    """Returns tf.uint8 of tf.float32 gray levels, truncated."""
    tf = tensorflow()
    # Rounding can leave the range by a hair, and a cast would wrap around.
    return tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8)


def _message(error: Exception) -> str:
    if isinstance(error, PILLOW_ERRORS):
        return str(error)
    return TF_DECORATION.sub("", getattr(error, "message", str(error))).strip()


def _read(function: Callable[[], Any], path: str | os.PathLike[str], source: str) -> Any:
    """Returns function(), which reads `path`; what a decoder raises becomes a ValueError."""
    tf = tensorflow()
    where = f"{source}: " if source else ""
    try:
        return function()
    except locations.RemoteError as error:
        raise ValueError(f"{where}cannot read image {error}") from error
    except (tf.errors.OpError, *PILLOW_ERRORS) as error:
        what = locations.describe_file(path)
        reason = f"it is {what}" if what else _message(error)
        raise ValueError(f"{where}cannot read image {os.fspath(path)}: {reason}") from error
