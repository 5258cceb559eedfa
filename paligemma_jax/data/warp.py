"""Pixels as an `augment.Draw` says: window, flips, colours, JPEG; in TensorFlow's threads.

A window is resized as whole images are (`images.resize_op`: bilinear with antialias), by the op
that is behind tf.image.resize, in one step and without rounding the window to pixels. The rest
follows at the model's size. The whole window and factors of 1 give the bits of no augmentation.
"""

from typing import Any

from paligemma_jax.data import augment, images


def load_op(path: Any, numbers: Any, *, res: int, settings: augment.Augmentation) -> Any:
    """Returns tf.uint8[res, res, 3] of the file at `path`, changed as drawn.

    Args:
      path: tf.string scalar.
      numbers: tf.float32[NUM_NUMBERS], of `Draw.to_array`.
      res: side of the result in pixels.
      settings: what may be drawn; what may not costs nothing.
    """
    return apply_op(images.decode_op(path), numbers, res=res, settings=settings)


def apply_op(image: Any, numbers: Any, *, res: int, settings: augment.Augmentation) -> Any:
    """Returns tf.uint8[res, res, 3] of tf.uint8[H, W, 3]; see `load_op`."""
    tf = images.tensorflow()
    if settings.has_windows:
        image = _resize_window(image, numbers[:4], res=res)
    else:
        image = images.resize_op(image, res=res)
    if settings.flip_ud > 0:
        image = tf.where(numbers[4] > 0, tf.reverse(image, [0]), image)
    if settings.flip_lr > 0:
        image = tf.where(numbers[5] > 0, tf.reverse(image, [1]), image)
    if settings.changes_colors:
        image = _change_colors(image, numbers[6], numbers[7], numbers[8])
    if settings.jpeg_quality is not None:
        image = tf.image.adjust_jpeg_quality(image, tf.cast(numbers[9], tf.int32))
    return tf.ensure_shape(image, (res, res, 3))


def _resize_window(image: Any, window: Any, *, res: int) -> Any:
    """Returns tf.uint8[res, res, 3] of what is in a window, tf.float32[4] yxyx in 0..1."""
    tf = images.tensorflow()
    extent = window[2:] - window[:2]
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    resized = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=(res, res),
        scale=float(res) / (size * extent),
        translation=float(res) * -window[:2] / extent,
        kernel_type="triangle",
        antialias=True,
    )
    return images.to_uint8(resized[0])


def _change_colors(image: Any, brightness: Any, contrast: Any, saturation: Any) -> Any:
    """Returns tf.uint8[R, R, 3]: each factor mixes the image with black, its mean gray, its gray.

    As torchvision's ColorJitter defines them, in this order.
    """
    tf = images.tensorflow()

    def mix(factor, image, other):
        return tf.clip_by_value(other + factor * (image - other), 0, 255)

    pixels = mix(brightness, tf.cast(image, tf.float32), 0.0)
    pixels = mix(contrast, pixels, tf.reduce_mean(tf.image.rgb_to_grayscale(pixels)))
    pixels = mix(saturation, pixels, tf.image.rgb_to_grayscale(pixels))
    return tf.cast(tf.round(pixels), tf.uint8)
