"""The releases with crops against the authors' code: tests/reference/make_moondream_crops.py."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy

from paligemma_jax.data import images
from paligemma_jax.models import family
from paligemma_jax.models.moondream import as_family, moondream, variants, vit
from tests.models.moondream import conftest, training_steps

RELEASES = "2024-05-20", "2024-08-26"
SPEC = dataclasses.replace(conftest.SPEC, img=family.TowerSpec("tiny/14_crops"))
PROJECTION = "vision_encoder.projection.mlp.fc1.weight"
CROPS = "pillow_crops"


@pytest.fixture(scope="module")
def numbers() -> dict[str, np.ndarray]:
    with np.load(conftest.REFERENCE / "crops.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def cropping() -> as_family.Model:
    return as_family.make(SPEC)


@pytest.fixture(scope="module")
def params(cropping, numbers):
    tensors = safetensors.numpy.load_file(conftest.REFERENCE / "model.safetensors")
    tensors[PROJECTION] = numbers["projection"]
    return conftest.to_ours(tensors, moondream.shapes(cropping.dims))


@pytest.fixture(scope="module")
def crops(numbers, batch):
    """Four examples, whose images become one, two, two and four squares."""
    pixels = [images.resize(numbers[f"image{i}"], res=56, resampling=CROPS) for i in range(4)]
    assert [images.show(x).shape[:2] for x in pixels] == [
        (56, 56),
        (56, 112),
        (112, 56),
        (112, 112),
    ]
    return {**batch, "image": np.stack(pixels)[:, None]}


def run_logits(model, params, batch) -> np.ndarray:
    run = model.functions(family.Compute(remat="none"), cache_dtype="float32")
    logits = jax.jit(lambda params, batch: run.logits(params, run.apply(params, batch)))
    return np.asarray(logits(params, batch))


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("number", range(7))
def test_photos_become_what_the_authors_make_of_them(numbers, release, number):
    expected = {name: numbers[f"{release}/{name}{number}"] for name in ("size", "some", "sum")}
    framed = images.resize(numbers[f"photo{number}"], res=378, resampling=CROPS)
    made = images.show(framed)
    assert made.shape[:2] == tuple(expected["size"])
    assert np.array_equal(made[::27, ::27], expected["some"])
    assert made.sum(dtype=np.int64) == expected["sum"]
    outside = framed.copy()
    outside[: made.shape[0], : made.shape[1]] = 0
    assert framed.shape == (756, 756, 4) and not outside.any()


@pytest.mark.parametrize("release", RELEASES)
def test_image_tokens_logits_and_greedy_tokens_equal_the_authors(
    cropping, params, crops, numbers, release
):
    run = cropping.functions(family.Compute(remat="none"), cache_dtype="float32")
    tokens = jax.jit(run.embed)(params, crops["image"])[:, 0]
    np.testing.assert_allclose(tokens, numbers[f"{release}/image_tokens"], rtol=0, atol=2e-5)
    seen = crops["mask_input"][:, 1:]
    logits = run_logits(cropping, params, crops)[:, 1:][seen]
    np.testing.assert_allclose(logits, numbers[f"{release}/logits"][seen], rtol=0, atol=1e-4)
    expected = numbers[f"{release}/greedy"]
    made = training_steps.greedy(cropping, params, crops, count=expected.shape[1])
    np.testing.assert_array_equal(made, expected)


@pytest.mark.slow
def test_losses_and_gradients_of_ten_steps_equal_the_authors(cropping, params, crops, numbers):
    expected = {name: numbers[f"{RELEASES[0]}/{name}"] for name in ("losses", "norms", "names")}
    count = len(expected["losses"])
    made = training_steps.run(cropping, params, crops, count=count, eps=1e-6)
    np.testing.assert_allclose(made.losses, expected["losses"], rtol=0, atol=1e-5)
    norms = [[step[name] for name in expected["names"]] for step in made.norms]
    np.testing.assert_allclose(norms, expected["norms"], rtol=0, atol=1e-5)


def test_what_is_outside_of_the_image_changes_nothing(cropping, params, crops):
    image = crops["image"].copy()
    rng = np.random.default_rng(4)
    noise = rng.integers(0, 256, (*image.shape[:-1], 3), np.uint8)
    image[..., :3] = np.where(image[..., 3:] > 0, image[..., :3], noise)
    assert (image != crops["image"]).any()
    one, other = (
        run_logits(cropping, params, {**crops, "image": x}) for x in (crops["image"], image)
    )
    seen = crops["mask_input"]
    np.testing.assert_array_equal(one[seen], other[seen])


def test_a_batch_of_plain_squares_is_refused(cropping, params, batch):
    with pytest.raises(ValueError, match=r"expected \[B, M, 112, 112, 4\]"):
        run_logits(cropping, params, batch)


def test_the_tower_reads_five_squares_of_an_image():
    plain, cropping = (
        as_family.Model(variants.Moondream(variants.VITS[name], variants.PHIS["tiny"], 56))
        for name in ("tiny/14", "tiny/14_crops")
    )
    runs = {part.prefixes[0]: part.runs for part in cropping.parts()}
    assert runs[moondream.BLOCKS] == vit.NUM_SEEN == 5
    assert runs["img/projection/"] == runs[moondream.LAYERS] == 1
    assert {part.runs for part in plain.parts()} == {1}
    assert cropping.shapes()["img/projection/fc1/kernel"].shape == (96, 256)
