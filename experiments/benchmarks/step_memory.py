"""Temporary memory of one training step, beside big_vision's, by the compiler's own account.

    BIG_VISION_DIR=... python experiments/benchmarks/step_memory.py

Attention-only SGD as in PaliGemma's official Colab, everything in float32. The step is compiled for
shapes and never run: no weight is allocated, so a few GB of memory do for the 3B model. Without
BIG_VISION_DIR our side alone is shown. Prints one line of JSON for each side, and the quotient.
"""

import argparse
import functools
import json
import os
import sys

import big_vision_loss
import jax
import jax.numpy as jnp
import side_ours

from paligemma_jax.models.paligemma import paligemma, variants
from paligemma_jax.params import names
from paligemma_jax.training import optimizer, step

ATTENTION = "llm/layers/attn/.*"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="paligemma1-3b", choices=variants.RELEASED)
    parser.add_argument("--res", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--text_len", type=int, default=128)
    parser.add_argument("--remat", default="nothing_saveable")
    args = parser.parse_args()
    sides = {"paligemma_jax": ours}
    if "BIG_VISION_DIR" in os.environ:
        sides["big_vision"] = big_vision
    found = {name: measure(lower(args)) for name, lower in sides.items()}
    for name, row in found.items():
        print(json.dumps({"side": name, **vars(args), **row}))
    if len(found) == 2:
        quotient = found["paligemma_jax"]["temp_gb"] / found["big_vision"]["temp_gb"]
        print(json.dumps({"paligemma_jax / big_vision": round(quotient, 3)}))


def measure(lowered) -> dict:
    """Returns what the compiled program needs, in GB (10**9 bytes)."""
    memory = lowered.compile().memory_analysis()
    return {
        "temp_gb": round(memory.temp_size_in_bytes / 1e9, 3),
        "arguments_gb": round(memory.argument_size_in_bytes / 1e9, 3),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


def ours(args):
    """Returns our lowered step."""
    model = variants.released(args.model, res=args.res, final_logits_softcap=0.0)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {
        name: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=place)
        for name, x in paligemma.shapes(model).items()
    }
    made = optimizer.make_optimizer(
        shapes,
        schedule=[(ATTENTION, {"decay_type": "cosine"}), (".*", None)],
        total_steps=64,
        optax_name="sgd",
        lr=0.03,
    )
    compute = paligemma.Compute(remat=args.remat)
    apply = functools.partial(side_ours.apply_model, model, compute)
    logits = functools.partial(paligemma.logits, model=model)
    train_step = jax.jit(step.make_train_step(apply, logits, made.tx, seed=0), donate_argnums=0)
    state = step.state_shapes(shapes, names.select(ATTENTION, shapes, what="trainable"), made.tx)
    batch = {
        "image": jax.ShapeDtypeStruct((args.batch_size, 1, args.res, args.res, 3), jnp.uint8),
        "mask_image": jax.ShapeDtypeStruct((args.batch_size, 1), bool),
        **text_shapes(args),
    }
    return train_step.lower(state, batch)


def text_shapes(args) -> dict[str, jax.ShapeDtypeStruct]:
    """The Colab's SEQLEN counts the tokens of `text`: the model reads one less."""
    shape = (args.batch_size, args.text_len)
    masks = ("mask_ar", "mask_loss", "mask_input")
    return {
        "text": jax.ShapeDtypeStruct(shape, jnp.int32),
        **{name: jax.ShapeDtypeStruct(shape, bool) for name in masks},
    }


def big_vision(args):
    """Returns the lowered step of the Colab's update rule on big_vision's model."""
    sys.path.insert(0, os.environ["BIG_VISION_DIR"])
    from big_vision.models.proj.paligemma import paligemma as theirs

    img, llm = variants.RELEASED[args.model]
    model = theirs.Model(
        llm={"vocab_size": variants.VOCAB_SIZE, "variant": llm, "final_logits_softcap": 0.0},
        img={"variant": img, "pool_type": "none", "scan": True},
    )
    text = text_shapes(args)
    image = jax.ShapeDtypeStruct((args.batch_size, args.res, args.res, 3), jnp.float32)
    batch = {"image": image, **{k: jax.ShapeDtypeStruct(x.shape, int) for k, x in text.items()}}
    inputs = (image, batch["text"], batch["mask_ar"])
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]

    loss_fn = functools.partial(big_vision_loss.loss, model)

    def update(params, batch, lr):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        trains = ("llm", "layers", "attn")

        def descend(path, param, grad):
            is_trained = tuple(key.key for key in path[:3]) == trains
            return param - lr * grad if is_trained else param

        return jax.tree_util.tree_map_with_path(descend, params, grads), loss

    lr = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.jit(update, donate_argnums=0).lower(params, batch, lr)


if __name__ == "__main__":
    main()
