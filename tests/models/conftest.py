"""A tiny PaliGemma with big_vision's weights, compiled once."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from paligemma_jax.models.paligemma import paligemma, variants


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the model is called with. `image` and `mask_image` can be replaced."""

    image: np.ndarray
    mask_image: np.ndarray
    text: np.ndarray
    mask_ar: np.ndarray
    mask_input: np.ndarray

    def __iter__(self):
        return iter((self.image, self.mask_image, self.text, self.mask_ar, self.mask_input))


@pytest.fixture(scope="session")
def inputs(load_reference) -> Inputs:
    """Five examples: image 56 px, 20 text tokens. Row 3 has no suffix, row 2 fills all tokens."""
    _, given, _ = load_reference("forward_pg1")
    image = given["image_u8"][:, None]
    return Inputs(
        image, np.ones((5, 1), bool), given["text"], given["mask_ar"], given["mask_input"]
    )


@pytest.fixture(scope="session")
def params(load_reference) -> dict[str, np.ndarray]:
    return load_reference("forward_pg1")[0]


@pytest.fixture(scope="session")
def model() -> variants.PaliGemma:
    return variants.make("tiny/14", "tiny", res=56, vocab_size=1400)


@pytest.fixture(scope="session")
def run_logits():
    """(params, inputs, *, model, compute, rng) -> float32[B, T, V], compiled once per shape."""

    def compute_logits(params, inputs, rng, *, model, compute):
        hidden = paligemma.apply(params, *inputs, model=model, compute=compute, rng=rng)
        return paligemma.logits(params, hidden, model=model)

    jitted = functools.partial(jax.jit, compute_logits, static_argnames=("model", "compute"))
    # Compiled in haste, products of 16 bits are rounded more often than in a run.
    in_haste, as_runs_are = jitted(), jitted(compiler_options={"xla_backend_optimization_level": 3})

    def run_logits(params, inputs, *, model, compute=None, rng=None):
        compute = compute or paligemma.Compute(remat="none")
        run = in_haste if compute.dtype == "float32" else as_runs_are
        return np.asarray(run(params, tuple(inputs), rng, model=model, compute=compute))

    return run_logits
