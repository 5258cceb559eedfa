"""The reference runs of big_vision, and the tiny PaliGemma they were made with."""

import functools

import numpy as np
import pytest

from paligemma_jax.models import paligemma
from paligemma_jax.params import variants


@pytest.fixture(scope="session")
def tiny_paligemma():
    """(apply_fn, logits_fn) of the references' model, in float32."""
    model = variants.make("tiny/14", "tiny", res=56, vocab_size=1400, final_logits_softcap=0.0)

    def apply_fn(params, inputs, rng):
        keys = ("image", "mask_image", "text", "mask_ar", "mask_input")
        return paligemma.apply(
            params,
            *(inputs[key] for key in keys),
            model=model,
            compute=paligemma.Compute(),
            rng=rng,
        )

    return apply_fn, functools.partial(paligemma.logits, model=model)


@pytest.fixture(scope="session")
def reference_run(load_reference):
    """Returns (parameters, batches, results) of `train_{name}_pg1.npz`."""

    def load(name):
        params, _, _ = load_reference("forward_pg1")
        _, inputs, out = load_reference(f"train_{name}_pg1")
        inputs["image"] = inputs.pop("image_u8")[:, :, None]
        inputs["mask_image"] = np.ones(inputs["image"].shape[:3], bool)
        num_steps = len(inputs["text"])
        batches = [{name: x[i] for name, x in inputs.items()} for i in range(num_steps)]
        return params, batches, out

    return load
