"""What the compiled step leaves out: gradients that nobody asked for, and copies of the vocabulary.

Read from the compiled program, where an instruction's op_name tells which function it came from:
the backward pass of an encoder block is in "transpose(jvp(Tower))/Transformer/encoderblock".
"""

import re

import jax
import jax.numpy as jnp
import pytest

from paligemma_jax.models.paligemma import paligemma, variants
from paligemma_jax.params import names
from paligemma_jax.training import optimizer, step

V, D = 1400, 64
MODEL = variants.make("tiny/14", "tiny", res=28, vocab_size=V, final_logits_softcap=0.0)
INPUTS = ("image", "mask_image", "text", "mask_ar", "mask_input")


@pytest.fixture(scope="module")
def compile_step(quick_compile):
    """Returns the lines of the compiled step that trains what a regex matches."""

    def compile_step(trainable: str) -> list[str]:
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = {
            name: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=place)
            for name, x in paligemma.shapes(MODEL).items()
        }
        rules = [(trainable, {"decay_type": "cosine"}), (".*", None)]
        tx = optimizer.make_optimizer(
            shapes, schedule=rules, total_steps=4, optax_name="sgd", lr=0.1
        ).tx

        def apply(params, batch, rng=None):
            return paligemma.apply(
                params, *(batch[k] for k in INPUTS), model=MODEL, compute=paligemma.Compute()
            )

        def logits(params, hidden):
            return paligemma.logits(params, hidden, model=MODEL)

        state = step.state_shapes(shapes, names.select(trainable, shapes, what="trainable"), tx)
        text = jax.ShapeDtypeStruct((2, 9), jnp.int32)
        batch = {
            "image": jax.ShapeDtypeStruct((2, 1, 28, 28, 3), jnp.uint8),
            "mask_image": jax.ShapeDtypeStruct((2, 1), bool),
            **dict.fromkeys(("text", "mask_ar", "mask_loss", "mask_input"), text),
        }
        made = step.make_train_step(apply, logits, tx, seed=0)
        lowered = jax.jit(made, donate_argnums=0).lower(state, batch)
        return lowered.compile(quick_compile).as_text().splitlines()

    return compile_step


def backward_lines(lines: list[str], part: str) -> list[str]:
    return [line for line in lines if "transpose(jvp(" in line and part in line]


@pytest.mark.parametrize(
    ("trainable", "reaches_img"), [("llm/layers/attn/.*", False), ("img/embedding/.*", True)]
)
def test_gradients_stop_above_the_frozen_tower(compile_step, trainable, reaches_img):
    lines = compile_step(trainable)
    assert backward_lines(lines, "layers")
    assert bool(backward_lines(lines, "encoderblock")) == reaches_img


def test_no_copy_of_a_frozen_vocabulary_is_made(compile_step):
    made = [
        line
        for line in compile_step("llm/layers/attn/.*")
        if re.search(rf"= f32\[({V},{D}|{D},{V})\]", line)
    ]
    others = [x for x in made if not re.search(r"\} (parameter|get-tuple-element|bitcast)\(", x)]
    assert made
    assert not others
