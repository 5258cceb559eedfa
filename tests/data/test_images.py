"""Images come out as tf.image.resize(antialias=True) and a cast make them, whatever the file."""

import io
import os
import pathlib
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from paligemma_jax.data import images


@pytest.fixture(scope="module")
def tf():
    return images.tensorflow()


def noise(height, width, channels=3) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode(pixels, file_format, **kwargs) -> bytes:
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, file_format, **kwargs)
    return file.getvalue()


def expected(tf, pixels, res) -> np.ndarray:
    """Returns what big_vision's resize gives: the oracle is TensorFlow's own."""
    resized = tf.image.resize(pixels, (res, res), method="bilinear", antialias=True)
    return tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8).numpy()


def load(tmp_path, data: bytes, res: int) -> np.ndarray:
    path = tmp_path / "image"
    path.write_bytes(data)
    return images.load(path, res=res)


@pytest.mark.slow
def test_tensorflow_starts_without_a_word_and_its_errors_are_heard():
    code = """
from paligemma_jax.data import images
tf = images.tensorflow()
tf.data.Dataset.range(2).map(lambda x: x + 1).batch(2).get_single_element()
images.load("gone.png", res=28)
"""
    told = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    ended = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True)
    assert ended.stderr.startswith("Traceback"), ended.stderr
    assert "cannot read image gone.png" in ended.stderr.splitlines()[-1]


def test_without_antialiasing_it_equals_tensorflows_resize_too(tf, tmp_path):
    pixels, path = noise(40, 90), tmp_path / "image"
    path.write_bytes(encode(pixels, "PNG"))
    plain = tf.image.resize(pixels, (28, 28), method="bilinear", antialias=False)
    found = images.load(path, res=28, resampling=images.ALIASED)
    assert np.array_equal(found, tf.cast(plain, tf.uint8).numpy())
    assert np.array_equal(images.resize(pixels, res=28, resampling=images.ALIASED), found)
    assert not np.array_equal(found, images.load(path, res=28))


@pytest.mark.parametrize("shape", [(28, 28), (40, 30), (17, 91), (9, 8), (300, 200), (1, 50)])
@pytest.mark.parametrize("res", [28, 56])
def test_a_resized_file_equals_tensorflows_resize(tf, tmp_path, shape, res):
    pixels = noise(*shape)
    image = load(tmp_path, encode(pixels, "PNG"), res)
    assert image.shape == (res, res, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected(tf, pixels, res))
    np.testing.assert_array_equal(images.resize(pixels, res=res), image)


@pytest.mark.parametrize("shape", [(28, 28), (40, 30)])
def test_resizing_truncates_and_does_not_round(tf, tmp_path, shape):
    pixels = noise(*shape)
    exact = tf.image.resize(pixels, (28, 28), antialias=True).numpy()
    difference = exact - load(tmp_path, encode(pixels, "PNG"), 28)
    assert difference.min() >= 0 and difference.max() < 1  # up to one gray level below the Colab's


def test_every_color_mode_becomes_three_channels(tf, tmp_path):
    rgba = noise(40, 30, 4)
    gray = rgba[..., 0]
    palette = PIL.Image.fromarray(rgba[..., :3]).convert("P")
    gray_rgb = np.repeat(gray[..., None], 3, axis=2)
    cases = [
        (encode(gray, "PNG"), gray_rgb),
        (encode(rgba, "PNG"), rgba[..., :3]),  # alpha is dropped, not blended
        (encode(PIL.Image.fromarray(gray).convert("LA"), "PNG"), gray_rgb),
        (encode(palette, "PNG"), np.asarray(palette.convert("RGB"))),
        (encode(PIL.Image.fromarray(gray > 127), "PNG"), np.where(gray_rgb > 127, 255, 0)),
        (encode(rgba[..., :3], "WEBP", lossless=True), rgba[..., :3]),
        (encode(rgba[..., :3], "BMP"), rgba[..., :3]),
    ]
    for data, pixels in cases:
        pixels = pixels.astype(np.uint8)
        np.testing.assert_array_equal(load(tmp_path, data, 28), expected(tf, pixels, 28))


def small_first_frame() -> bytes:
    """Returns a GIF of 40x30 pixels whose first frame has 8x6, on an empty canvas."""
    data = bytearray(encode(noise(6, 8), "GIF"))
    data[6:10] = (40).to_bytes(2, "little") + (30).to_bytes(2, "little")
    return bytes(data)


PALETTE = PIL.Image.fromarray(noise(40, 30)).quantize(16)
CLEAR = PALETTE.copy()
CLEAR.info["transparency"] = 3
FRAMES = [PIL.Image.fromarray(noise(40, 30)), PIL.Image.new("RGB", (30, 40))]


@pytest.mark.parametrize(
    "data",
    [
        encode(PALETTE, "BMP"),
        encode(PALETTE.convert("1"), "BMP"),
        encode(CLEAR, "GIF"),
        small_first_frame(),
        encode(noise(40, 30, 4), "WEBP", lossless=True),
        encode(FRAMES[0], "WEBP", lossless=True, save_all=True, append_images=FRAMES[1:]),
        encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    ],
    ids=["palette", "bits", "clear", "canvas", "webp alpha", "webp frames", "gif frames"],
)
def test_a_picture_is_what_pillow_sees_in_and_out_of_a_graph(tf, tmp_path, data):
    path = tmp_path / "image"
    path.write_bytes(data)
    with PIL.Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert images.measure(path) == pixels.shape[:2]
    np.testing.assert_array_equal(images.load(path, res=28), expected(tf, pixels, 28))
    files = tf.data.Dataset.from_tensors(str(path)).map(images.decode_op)
    np.testing.assert_array_equal(files.get_single_element().numpy(), pixels)


def test_lossy_webp_is_what_tensorflow_decodes(tf, tmp_path):
    data = encode(noise(40, 30), "WEBP", quality=80)
    pixels = tf.io.decode_image(data, channels=3, expand_animations=False).numpy()
    np.testing.assert_array_equal(load(tmp_path, data, 28), expected(tf, pixels, 28))


def test_an_array_is_resized_as_a_file_is(tmp_path):
    rgba = noise(40, 30, 4)
    gray = rgba[..., 0]
    for pixels in (rgba, gray, gray[..., None]):
        data = encode(pixels.squeeze(), "PNG")
        np.testing.assert_array_equal(images.resize(pixels, res=28), load(tmp_path, data, 28))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        "x.png",
    ],
)
def test_an_array_that_is_no_image_is_an_error(array):
    with pytest.raises(ValueError, match="expected an image uint8"):
        images.resize(array, res=28)


def test_of_16_bits_the_upper_8_are_kept(tf, tmp_path):
    deep = np.random.default_rng(0).integers(0, 1 << 16, (28, 28)).astype(np.uint16)
    image = load(tmp_path, encode(deep, "PNG"), 28)
    np.testing.assert_array_equal(image[..., 0], deep >> 8)


def test_exif_orientation_is_not_applied(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    pixels = noise(40, 30)
    plain = load(tmp_path, encode(pixels, "JPEG"), 28)
    turned = load(tmp_path, encode(pixels, "JPEG", exif=exif), 28)
    np.testing.assert_array_equal(plain, turned)


def test_a_jpeg_is_close_to_what_pillow_reads(tmp_path):
    y, x = np.mgrid[:64, :64]
    smooth = np.stack([2 * x, 2 * y, x + y], axis=2).astype(np.uint8)
    data = encode(smooth, "JPEG", quality=95)
    pillow = np.asarray(PIL.Image.open(io.BytesIO(data))).astype(int)
    assert np.abs(load(tmp_path, data, 64) - pillow).max() <= 4


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        encode(noise(40, 30), "JPEG")[:600],
        encode(noise(40, 30), "WEBP")[:300],
        encode(noise(40, 30), "TIFF"),
    ],
)
def test_a_bad_image_names_source_path_and_reason(tmp_path, data):
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        images.load(path, res=28, source="x.jsonl:12")
    message = str(error.value)
    assert message.startswith(f"x.jsonl:12: cannot read image {path}: ")
    assert "{{" not in message and "[Op" not in message and "\n" not in message


def test_a_missing_image_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read image .*nowhere.png: .*No such file"):
        images.load(tmp_path / "nowhere.png", res=28)


def test_tensorflow_sees_no_gpu(tf):
    assert tf.config.get_visible_devices("GPU") == []


# Images of models that see what Pillow makes of them.


def save_photo(folder, image, ending="png", **settings):
    path = folder / f"photo.{ending}"
    PIL.Image.fromarray(image).save(path, **settings)
    return path


@pytest.mark.parametrize("number", range(3))
def test_pillow_bicubic_equals_the_authors_of_moondream(number, tmp_path):
    with np.load(
        pathlib.Path(__file__).parents[1] / "reference" / "moondream" / "resized.npz"
    ) as file:
        image, some, total = (file[f"{name}{number}"] for name in ("image", "some", "sum"))
    path = save_photo(tmp_path, image)
    made = images.load(path, res=378, resampling="pillow_bicubic")
    assert np.array_equal(made[::27, ::27], some) and made.sum(dtype=np.int64) == total
    assert np.array_equal(images.resize(image, res=378, resampling="pillow_bicubic"), made)


@pytest.mark.parametrize(
    ("ending", "mode"), [("jpg", "RGB"), ("jpg", "L"), ("png", "RGBA"), ("png", "P"), ("gif", "P")]
)
def test_files_are_read_by_pillow_where_their_pixels_are_resized_by_it(tmp_path, ending, mode):
    rng = np.random.default_rng(0)
    path = tmp_path / f"photo.{ending}"
    PIL.Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).convert(mode).save(path)
    with PIL.Image.open(path) as image:
        expected = np.asarray(image.convert("RGB").resize((24, 24), PIL.Image.Resampling.BICUBIC))
    found = images.load(path, res=24, resampling="pillow_bicubic")
    assert np.array_equal(found, expected)
    tf = images.tensorflow()
    loaded = tf.data.Dataset.from_tensors(str(path)).map(
        lambda path: images.load_op(path, res=24, resampling="pillow_bicubic")
    )
    assert np.array_equal(next(loaded.as_numpy_iterator()), expected)


def test_a_file_that_pillow_cannot_read_is_an_error_too(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="rows:3: cannot read image"):
        images.load(path, res=24, resampling="pillow_bicubic", source="rows:3")
