"""Logits, gradients and masks of the joined model, against numbers made by big_vision."""

import functools

import jax
import numpy as np
import pytest

from paligemma_jax.models import paligemma
from paligemma_jax.params import variants


@functools.cache
def _jitted_logits():
    def run(params, image, mask_image, text, mask_ar, mask_input, *, model, compute):
        args = (params, image, mask_image, text, mask_ar, mask_input)
        hidden = paligemma.apply(*args, model=model, compute=compute)
        return paligemma.logits(params, hidden, model=model)

    return jax.jit(run, static_argnames=("model", "compute"))


@pytest.mark.parametrize(
    ("case", "llm", "tolerance"), [("pg1", "tiny", 1e-4), ("pg2", "tiny2", 5e-4)]
)
def test_logits_equal_big_vision(load_reference, case, llm, tolerance):
    params, inputs, out = load_reference(f"forward_{case}")
    model = variants.make("tiny/14", llm, res=56, vocab_size=1400, final_logits_softcap=0.0)
    masks = inputs["text"], inputs["mask_ar"], inputs["mask_input"]
    mask_image = np.ones((5, 1), bool)
    found = _jitted_logits()(
        params,
        inputs["image_u8"][:, None],
        mask_image,
        *masks,
        model=model,
        compute=paligemma.Compute(),
    )
    # big_vision lets some valid positions see padding; ours never do.
    expected = out["text_logits"].copy()
    expected[out["sees_padding"]] = out["text_logits_masked_at"]
    valid = inputs["mask_input"] == 1
    assert np.abs(np.asarray(found) - expected)[valid].max() <= tolerance
