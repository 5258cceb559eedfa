"""Random changes of training examples: what is decided, once per example, and what boxes become.

A `Draw` says which window of the image is seen, how it is flipped and how its colours change.
Pixels follow it in TensorFlow's threads (`load_op`); boxes move as numbers and are written as text
once, at the end. A draw is a function of (seed, position of the example in the run), so a resumed
run and any number of processes see the same examples.

What happens to boxes that a window cuts:

* A box is clipped to the window and kept if at least `min_visible` of its area is inside and it
  is not empty once rounded to bins; else it leaves the answer. The prompt stays as it is, so it
  may ask for something that is not there any more.
* A window that would leave nothing of an image that has objects is drawn again, WINDOW_TRIES times
  in all; then the whole image is seen. No answer is empty that was not empty before.

A window of pixels is resized as whole images are (`images.resize_op`: bilinear with antialias), by
the op that is behind tf.image.resize, in one step and without rounding the window to pixels. The
rest follows at the model's size. The whole window and factors of 1 give the bits of no
augmentation.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from paligemma_jax.data import images, index_sampler, prefix_lm
from paligemma_jax.data import objects as data_objects
from paligemma_jax.data import records as data_records
from paligemma_jax.tasks import box_text, geometry

WHOLE = (0.0, 0.0, 1.0, 1.0)
WINDOW_TRIES = 10
NUM_NUMBERS = 10  # of a Draw
# What may be asked for, ends included. Proportions and magnifications beyond these are mistakes.
LIMITS = {
    **dict.fromkeys(("flip_lr", "flip_ud", "min_visible"), (0, 1)),
    **dict.fromkeys(("brightness", "contrast", "saturation"), (0, 1)),
    "crop": (0.01, 1),
    "aspect": (1, 10),
    "scale": (0.1, 10),
    "jpeg_quality": (1, 100),
}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What may change, and how far. What each is by default, the settings say.

    Attributes:
      flip_lr, flip_ud: probability of a flip left to right, upside down.
      crop: least share of the image's area that a window keeps, the share being uniform between
        it and 1; None: no crops.
      aspect: up to what factor a window is wider or taller than the image in proportion, uniform
        on a log scale; what it shows is stretched by as much.
      scale: (least, most) magnification besides, uniform on a log scale; below 1 the image is
        shown smaller, on black. None: 1.
      min_visible: least share of its area that keeps a box in the answer.
      brightness, contrast, saturation: factors are uniform in 1 - x .. 1 + x.
      jpeg_quality: least quality of a JPEG compression, uniform between it and 100; None: none.
      shuffle_objects: whether an answer names its objects in random order.
    """

    flip_lr: float
    flip_ud: float
    crop: float | None
    aspect: float
    scale: Sequence[float] | None
    min_visible: float
    brightness: float
    contrast: float
    saturation: float
    jpeg_quality: int | None
    shuffle_objects: bool

    def __post_init__(self):
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            values = value if name == "scale" else (value,)
            if value is not None and not all(least <= x <= most for x in values):
                raise ValueError(f"augment.{name}={value}: expected {least} to {most}")
        if self.scale is not None and not (len(self.scale) == 2 and self.scale[0] <= self.scale[1]):
            raise ValueError(f"augment.scale={self.scale}: expected (least, most), as (0.5, 2)")

    @property
    def has_windows(self) -> bool:
        """Whether an image may be seen in part, stretched or smaller."""
        return self.crop is not None or self.aspect > 1 or self.scale is not None

    @property
    def moves_objects(self) -> bool:
        return self.has_windows or self.flip_lr > 0 or self.flip_ud > 0

    @property
    def changes_colors(self) -> bool:
        return self.brightness > 0 or self.contrast > 0 or self.saturation > 0

    @property
    def changes_pixels(self) -> bool:
        return self.moves_objects or self.changes_colors or self.jpeg_quality is not None


@dataclasses.dataclass(frozen=True)
class Draw:
    """What was decided for one example.

    Attributes:
      window_yxyx: what is seen of the image, in 0..1 of it; what lies outside of the image is
        black.
      flip_ud, flip_lr: of what is seen.
      brightness, contrast, saturation: factors, in this order; 1 changes nothing.
      jpeg_quality: 1 to 100.
    """

    window_yxyx: tuple[float, ...] = WHOLE
    flip_ud: bool = False
    flip_lr: bool = False
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    jpeg_quality: int = 100

    def to_array(self) -> np.ndarray:
        """Returns float32[NUM_NUMBERS], the attributes one after the other."""
        window, *others = dataclasses.astuple(self)
        return np.array([*window, *others], np.float32)

    def move(self, boxes_yxyx: np.ndarray) -> np.ndarray:
        """Returns float64[n, 4], where boxes in 0..1 of the image lie in what is seen of it."""
        top, left, bottom, right = self.window_yxyx
        moved = np.asarray(boxes_yxyx, np.float64).reshape(-1, 4) - [top, left, top, left]
        moved /= [bottom - top, right - left, bottom - top, right - left]
        if self.flip_ud:
            moved[:, [0, 2]] = 1 - moved[:, [2, 0]]
        if self.flip_lr:
            moved[:, [1, 3]] = 1 - moved[:, [3, 1]]
        return moved


@dataclasses.dataclass(frozen=True)
class Augmenter:
    """Changes the examples of one run.

    Attributes:
      settings: what may change.
      seed: of the run.
      convention: of the `<loc>` tokens in answers; None: answers hold no objects.
    """

    settings: Augmentation
    seed: int
    convention: str | None

    def draw(self, record: data_records.Record, position: int) -> Draw:
        """Returns what is decided for a record at a position of the run."""
        settings = self.settings
        numbers = index_sampler.uniforms(
            self.seed, index_sampler.AUGMENT, position, 6 + 5 * WINDOW_TRIES
        )
        ud, lr, brightness, contrast, saturation, quality = numbers[:6].tolist()
        least_quality = settings.jpeg_quality or 100
        draw = Draw(
            flip_ud=ud < settings.flip_ud,
            flip_lr=lr < settings.flip_lr,
            brightness=1 + settings.brightness * (2 * brightness - 1),
            contrast=1 + settings.contrast * (2 * contrast - 1),
            saturation=1 + settings.saturation * (2 * saturation - 1),
            jpeg_quality=round(least_quality + quality * (100 - least_quality)),
        )
        if not settings.has_windows:
            return draw
        objects = self._objects(record)
        for tried in numbers[6:].reshape(WINDOW_TRIES, 5).tolist():
            seen = dataclasses.replace(draw, window_yxyx=_choose_window(settings, *tried))
            if not len(objects) or self._keep(objects, seen)[1].any():
                return seen
        return draw

    def answer(self, record: data_records.Record, position: int) -> str:
        """Returns the suffix of a record as it is drawn at a position of the run."""
        settings, objects = self.settings, self._objects(record)
        if not len(objects) or not (settings.moves_objects or settings.shuffle_objects):
            return record.suffix or ""
        boxes, is_kept = self._keep(objects, self.draw(record, position))
        order = np.arange(len(objects))
        if settings.shuffle_objects:
            numbers = index_sampler.uniforms(
                self.seed, index_sampler.SHUFFLE_OBJECTS, position, len(objects)
            )
            order = np.argsort(numbers, kind="stable")
        order = order[is_kept[order]]
        kept = box_text.Detections(boxes[order], tuple(objects.labels[i] for i in order))
        return box_text.format(kept, convention=self._convention)

    def check(self, records: Sequence[data_records.Record]) -> None:
        """Raises a ValueError for the first record whose text would not follow its image."""
        settings = self.settings
        if settings.shuffle_objects and not self.convention:
            raise ValueError("augment.shuffle_objects: answers of this task are no boxes")
        for record in records if settings.moves_objects or settings.shuffle_objects else ():
            problem = self._cannot_move(record) if settings.moves_objects else None
            if problem or (problem := self._disagrees(record)):
                raise ValueError(f"{record.source}: {problem}")

    @property
    def _convention(self) -> str:
        return self.convention or geometry.DEFAULT_CONVENTION

    def _cannot_move(self, record: data_records.Record) -> str | None:
        """Returns why a record's text could not follow its image, or None."""
        remedy = "leave out flips, crop, aspect and scale; colours and jpeg_quality are possible"
        if self.convention and len(record.images) > 1:
            return f"{len(record.images)} images, and no word of which one has the boxes: {remedy}"
        if not self.convention and record.objects is not None:
            return f"an answer made of objects that only the task 'detection' writes anew: {remedy}"
        text = record.prefix if self.convention else f"{record.prefix}{record.suffix}"
        if "<loc" in text or "<seg" in text:
            return f"<loc> or <seg> tokens that no one can move, in {text!r:.60}: {remedy}"
        return None

    def _disagrees(self, record: data_records.Record) -> str | None:
        """Returns how a record's objects differ from its answer, or None."""
        if self.convention is None or record.objects is None:
            return None
        kept, written = record.objects.labels, self._written(record).labels
        return None if kept == written else f"objects {kept} are not those of the suffix: {written}"

    def _objects(self, record: data_records.Record) -> box_text.Detections:
        """Returns a record's boxes: those of its `objects`, which are exact, or its suffix's."""
        if self.convention is None:
            return NO_OBJECTS
        if record.objects is not None:
            return data_objects.to_detections(record.objects)
        return self._written(record)

    def _written(self, record: data_records.Record) -> box_text.Detections:
        return _parse(prefix_lm.clean("", record.suffix or "")[1], self._convention)

    def _keep(self, objects: box_text.Detections, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """Returns (float32[n, 4] boxes in what is seen, clipped; bool[n], which ones stay)."""
        moved = draw.move(objects.boxes_yxyx)
        clipped = np.clip(moved, 0, 1)
        visible = _area(clipped) / np.maximum(_area(moved), 1e-12)
        bins = geometry.to_bins(clipped, convention=self._convention)
        is_box = (bins[:, :2] < bins[:, 2:]).all(axis=1)
        return clipped.astype(np.float32), is_box & (visible >= self.settings.min_visible)


NO_OBJECTS = box_text.Detections(np.zeros((0, 4), np.float32), ())


# An example is looked at twice, by the reader of images and by that of texts, not far apart.
@functools.lru_cache(maxsize=4096)
def _parse(suffix: str, convention: str) -> box_text.Detections:
    return box_text.parse(suffix, convention=convention)


def _choose_window(
    settings: Augmentation, area: float, aspect: float, scale: float, y: float, x: float
) -> tuple[float, ...]:
    """Returns a window yxyx in 0..1 of the image, made of five numbers uniform in 0..1."""
    crop = settings.crop or 1.0
    share = crop + area * (1 - crop)
    ratio = settings.aspect ** (2 * aspect - 1)
    least, most = settings.scale or (1.0, 1.0)
    factor = least * (most / least) ** scale
    height = min(1.0, (share * ratio) ** 0.5) / factor
    width = min(1.0, (share / ratio) ** 0.5) / factor
    # A window inside of the image, or around it.
    top, left = y * (1 - height), x * (1 - width)
    return top, left, top + height, left + width


def _area(boxes_yxyx: np.ndarray) -> np.ndarray:
    return np.prod(np.clip(boxes_yxyx[:, 2:] - boxes_yxyx[:, :2], 0, None), axis=-1)


def load_op(
    path: Any, numbers: Any, *, res: int, settings: Augmentation, resampling: str = images.BILINEAR
) -> Any:
    """Returns tf.uint8 of `images.shape` of the file at `path`, changed as drawn.

    Args:
      path: tf.string scalar.
      numbers: tf.float32[NUM_NUMBERS], of `Draw.to_array`.
      res: side of the result in pixels.
      settings: what may be drawn; what may not costs nothing.
      resampling: one of `images.RESAMPLINGS`; windows are bilinear only.
    """
    image = images.decode_op(path, resampling=resampling)
    return apply_op(image, numbers, res=res, settings=settings, resampling=resampling)


def apply_op(
    image: Any, numbers: Any, *, res: int, settings: Augmentation, resampling: str = images.BILINEAR
) -> Any:
    """Returns tf.uint8 of `images.shape` of tf.uint8[H, W, 3]; see `load_op`."""
    tf = images.tensorflow()
    if settings.has_windows:
        image = _resize_window(image, numbers[:4], res=res)
    else:
        image = images.resize_op(image, res=res, resampling=resampling)
    if settings.flip_ud > 0:
        image = tf.where(numbers[4] > 0, tf.reverse(image, [0]), image)
    if settings.flip_lr > 0:
        image = tf.where(numbers[5] > 0, tf.reverse(image, [1]), image)
    if settings.changes_colors:
        image = _change_colors(image, numbers[6], numbers[7], numbers[8])
    if settings.jpeg_quality is not None:
        image = tf.image.adjust_jpeg_quality(image, tf.cast(numbers[9], tf.int32))
    return images.frame_op(image, res=res, resampling=resampling)


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
