import functools
import pathlib

import jax
import ml_dtypes
import numpy as np
import pytest

from paligemma_jax.models.common import layers
from paligemma_jax.models.paligemma import paligemma, siglip, variants

REFERENCE = pathlib.Path(__file__).parents[2] / "reference"


def test_image_tokens_equal_big_vision(load_reference, params, inputs, model):
    _, _, out = load_reference("forward_pg1")
    compute = paligemma.Compute(remat="none")
    embed = jax.jit(functools.partial(paligemma.embed_images, model=model, compute=compute))
    found = embed(params, inputs.image)[:, 0]
    np.testing.assert_allclose(found, out["zimg"], rtol=0, atol=1e-5)


def test_pixels_become_minus_one_to_one():
    pixels = np.array([0, 51, 255], np.uint8)
    np.testing.assert_allclose(layers.normalize_pixels(pixels), [-1, -0.6, 1], rtol=0, atol=1e-7)


@pytest.fixture(scope="module")
def posemb():
    """(rows of the old grid, of the new one) -> (embedding before, after), by big_vision."""
    arrays = dict(np.load(REFERENCE / "posemb.npz"))
    sizes = sorted({name.split("/")[0] for name in arrays})
    return {
        tuple(map(int, size.split("to"))): (arrays[f"{size}/in"], arrays[f"{size}/out"])
        for size in sizes
    }


def test_position_embeddings_are_resampled_as_in_big_vision(posemb):
    assert len(posemb) == 6
    for (_, rows), (old, expected) in posemb.items():
        found = siglip.resample_position_embedding(old, round(rows**0.5))
        assert found.dtype == old.dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_16_bit_position_embeddings_are_resampled_in_float32(posemb, dtype):
    old, _ = posemb[16, 64]
    found = siglip.resample_position_embedding(old.astype(dtype), 8)
    expected = siglip.resample_position_embedding(old.astype(dtype).astype(np.float32), 8)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected.astype(dtype))


def test_another_grid_is_an_error_unless_resampling_is_wanted():
    model = variants.released("paligemma1-3b", res=224)
    check = functools.partial(siglip.check_position_embedding, model=model, where="pt_448.npz")
    check((1, 256, 1152), resample=False)
    check((1, 1024, 1152), resample=True)
    message = (
        r"pt_448.npz: checkpoint grid 32x32 \(448 px\) but res=224 \(16x16\): "
        r"set model.img.resample_posemb=True or res=448"
    )
    with pytest.raises(ValueError, match=message):
        check((1, 1024, 1152), resample=False)
    with pytest.raises(ValueError, match=r"pt_448.npz: .* expected \[1, grid \* grid, D\]"):
        check((1, 257, 1152), resample=True)


def test_sine_positions_are_sines_of_x_then_y():
    # A 2x2 grid of width 8: frequencies 1 and 1/10000; rows are (y, x) = 00, 01, 10, 11.
    found = siglip.init_sine_positions(jax.random.key(0), (1, 4, 8))
    sin, cos, slow = np.sin(1.0), np.cos(1.0), 1e-4
    zero, one = [0, 0, 1, 1], [sin, slow, cos, 1]
    expected = [zero + zero, one + zero, zero + one, one + one]
    np.testing.assert_allclose(found, [expected], atol=1e-6)
    with pytest.raises(ValueError, match="found 6"):
        siglip.init_sine_positions(jax.random.key(0), (1, 4, 6))
