"""Our side of `compare`."""

import functools
import pathlib
import sys

import compare
import jax
import jax.numpy as jnp
import numpy as np
import serve

from paligemma_jax.build import model as build_model
from paligemma_jax.build.process import host_memory
from paligemma_jax.checkpoints import npz
from paligemma_jax.data import embeddings
from paligemma_jax.inference import generate
from paligemma_jax.models import paligemma
from paligemma_jax.params import names
from paligemma_jax.training import optimizer, step

ATTENTION = "llm/layers/attn/.*"


def main() -> None:
    host_memory.keep_freed()
    case, folder, new_tokens = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
    params = npz.read(folder / "weights.npz", place=lambda _, x: jnp.asarray(x))
    arrays = dict(np.load(folder / "batch.npz"))
    kept = build_model.FASTER if "kept products" in case else build_model.SMALLER
    compute = paligemma.Compute(remat=kept)
    functions = build_model.make_functions(compare.MID, compute, cache_dtype="float32")
    if case == "decode":
        serve.serve(make_decode(params, arrays, functions, new_tokens))
    else:
        regex = ".*" if case == "full step" else ATTENTION
        read_images = functools.partial(read_pixels, arrays)
        if "cached images" in case:
            read_images = embed(params, read_images(), functions, folder)
        serve.serve(make_step(params, arrays, functions, regex, read_images))


def read_pixels(arrays):
    return {"image": jnp.asarray(arrays["image"][:, None])}


def embed(params, images, functions, folder):
    """Returns the function that reads the images' embeddings, as a run does, after writing them."""
    model = compare.MID
    shape = (model.num_image_tokens, model.llm.width)
    store = embeddings.Store(folder / "embeddings", shape, np.float32)
    found = np.asarray(jax.jit(functions.embed)(params, **images))
    digests = [f"{number:032x}" for number in range(len(found))]
    for digest, embedding in zip(digests, found[:, 0], strict=True):
        store.write(digest, embedding)

    def read_embeddings():
        read = np.stack([store.read(digest)[None] for digest in digests])
        return {build_model.IMAGE_TOKENS: jnp.asarray(read)}

    return read_embeddings


def make_step(params, arrays, functions, regex, read_images):
    rest = [] if regex == ".*" else [(".*", None)]
    tx = optimizer.make_optimizer(
        params,
        schedule=[(regex, {"decay_type": "cosine"}), *rest],
        total_steps=1000,
        optax_name="sgd",
        lr=1e-3,
    ).tx
    trainable = names.select(regex, params, what="trainable")
    state = step.init_state(params, trainable, tx)
    train_step = jax.jit(
        step.make_train_step(functions.apply, functions.logits, tx, seed=0), donate_argnums=0
    )
    batch = inputs(arrays, arrays["text"]) | {"mask_loss": jnp.asarray(arrays["learnt"])}
    batch |= {"mask_ar": jnp.asarray(arrays["learnt"])}
    del batch["image"]  # read anew for every step

    def update():
        nonlocal state
        state, metrics = train_step(state, batch | read_images())
        jax.block_until_ready((state, metrics))

    return lambda: {"step": serve.seconds(update)}


def make_decode(params, arrays, functions, new_tokens):
    params = params | build_model.unstack(params)
    text = arrays["text"][:, :-1]
    rows = jnp.arange(len(text))
    batch = inputs(arrays, text) | {"index": rows, "_mask": rows >= 0}

    @functools.partial(jax.jit, static_argnums=2)
    def decode(params, batch, max_new_tokens):
        return generate.generate(
            functools.partial(functions.prefill, max_new_tokens=max_new_tokens),
            functions.decode_step,
            paligemma.select_rows,
            params,
            batch,
            max_new_tokens=max_new_tokens,
            eos=-1,
        )

    return lambda: serve.decode_times(
        lambda n: jax.block_until_ready(decode(params, batch, n)), new_tokens
    )


def inputs(arrays, text):
    return {
        "image": jnp.asarray(arrays["image"][:, None]),
        "mask_image": jnp.ones((len(text), 1), bool),
        "text": jnp.asarray(text),
        "mask_ar": jnp.zeros(text.shape, bool),
        "mask_input": jnp.ones(text.shape, bool),
    }


if __name__ == "__main__":
    main()
