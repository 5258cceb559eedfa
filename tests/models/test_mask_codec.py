import jax
import numpy as np
import pytest

from paligemma_jax.models import mask_codec


@pytest.fixture(scope="module")
def weights(reference_arrays):
    """The reference codec: random weights in the published shapes."""
    return reference_arrays("seg_weights")


@pytest.fixture(scope="module")
def cases(reference_arrays):
    return reference_arrays("seg_cases")


def test_tokens_equal_big_visions(weights, cases):
    tokens = jax.jit(mask_codec.encode)(weights, cases["enc/masks"][..., 0])
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, cases["enc/indices"])


def test_masks_equal_big_visions(weights, cases):
    masks = jax.jit(mask_codec.decode)(weights, cases["dec/indices"])
    expected = cases["dec/masks"][..., 0]
    np.testing.assert_allclose(masks, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_published_shapes_are_the_default(weights):
    assert mask_codec.shapes() == {name: array.shape for name, array in weights.items()}
    mask_codec.check(mask_codec.shapes(), where="here")


def test_averages_that_training_left_behind_are_no_error():
    extra = dict.fromkeys(mask_codec.TRAINING_ONLY, (128, 512))
    mask_codec.check({**mask_codec.shapes(), **extra}, where="here")


def test_a_narrow_codec_has_the_same_architecture():
    made = jax.eval_shape(lambda rng: mask_codec.init(rng, width=16, code_dim=8), jax.random.key(0))
    assert {name: array.shape for name, array in made.items()} == mask_codec.shapes(16, 8)
    mask_codec.check(mask_codec.shapes(16, 8), where="here")


def test_the_codes_that_the_encoder_names_are_those_that_the_decoder_paints():
    rng = np.random.default_rng(0)
    params = {n: rng.normal(size=s).astype("float32") for n, s in mask_codec.shapes(8, 4).items()}

    @jax.jit
    def run(masks):
        tokens = mask_codec.encode(params, masks)
        codes = jax.numpy.asarray(params[mask_codec.EMBEDDING])[tokens].reshape(-1, 4, 4, 4)
        return mask_codec.decode(params, tokens), mask_codec.paint(params, codes)

    decoded, painted = run(rng.random((2, 64, 64), np.float32))
    np.testing.assert_array_equal(decoded, painted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder.0.bias": (3,)}, r"'decoder.0.bias': found \(3,\), expected \(128,\)"),
        ({"decoder.99.bias": (3,)}, r"1 arrays .* 'decoder.99.bias': found \(3,\), expected nothi"),
        ({"encoder.10.weight": (512, 3, 1, 1)}, "is no mask codec"),
    ],
)
def test_other_files_are_named_with_what_is_wrong(changes, message):
    with pytest.raises(ValueError, match=message):
        mask_codec.check({**mask_codec.shapes(), **changes}, where="other.npz")
    with pytest.raises(ValueError, match="47 arrays are missing"):
        mask_codec.check({}, where="other.npz")


def test_masks_of_another_size_are_refused(weights):
    with pytest.raises(ValueError, match=r"float\[B, 64, 64\]; found \(1, 32, 32\)"):
        mask_codec.encode(weights, np.zeros((1, 32, 32), np.float32))
