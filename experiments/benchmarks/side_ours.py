"""Our side of `compare`. Needs neither tensorflow nor ml_collections."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import on_jax
import prepare
import serve
import work as sizes

from paligemma_jax.checkpoints import npz
from paligemma_jax.console import process
from paligemma_jax.decoding import generate
from paligemma_jax.models.paligemma import as_family, paligemma, variants
from paligemma_jax.params import names
from paligemma_jax.training import flops, optimizer, step

TRAINED = {"attention": sizes.ATTENTION, "all": ".*", "lora": ".*/.*lora_[ab]"}
OPTIMIZERS = {"sgd": "sgd", "adam": "scale_by_adam"}
TEXT_INPUTS = ("mask_image", "text", "mask_ar", "mask_input")


def main() -> None:
    process.keep_freed_memory()
    work, arrays = serve.read_work()
    model = sizes.SIZES[work.size].model
    if work.what == "checkpoint":
        run, amount = make_checkpoint(work), {}
    elif work.what == "decode":
        run, amount = make_decode(work, arrays, model), {"read_bytes": bytes_of_llm(work, model)}
    else:
        if work.trains == "lora":
            model = dataclasses.replace(model, lora=sizes.LORA)
        run, amount = make_step(work, arrays, model), {"flops": flops_of_step(work, arrays, model)}
    serve.serve(run, on_jax.about("flax", "optax") | amount, on_jax.peak_bytes)


def make_checkpoint(work):
    params = {}

    def load():
        params.update(read(work))
        jax.block_until_ready(params)

    def save():
        npz.write(work.folder / "saved.npz", params)
        params.clear()

    return lambda: serve.time_checkpoint(load, save)


def make_step(work, arrays, model):
    params = read(work)
    if model.lora:
        make_factors = jax.jit(paligemma.init_factors, static_argnums=1)
        params |= on_device(make_factors(jax.random.key(work.seed), model))
    compute = paligemma.Compute(
        dtype=work.dtype,
        remat=work.remat,
        attention=work.attention,
        img_attention=work.img_attention,
    )
    read_images = functools.partial(read_pixels, arrays)
    if work.cached_images:
        read_images = embed(work, params, arrays, model, compute)
    trained = names.select(TRAINED[work.trains], params, what="trained")
    rest = [] if len(trained) == len(params) else [(".*", None)]
    tx = optimizer.make_optimizer(
        params,
        schedule=[(TRAINED[work.trains], {"decay_type": "cosine"}), *rest],
        total_steps=1000,
        optax_name=OPTIMIZERS[work.optimizer],
        lr=work.lr,
    ).tx
    state = step.init_state(params, trained, tx)
    del params  # the 16-bit copy of what is trained
    apply = functools.partial(apply_model, model, compute)
    logits = functools.partial(paligemma.logits, model=model)
    train_step = jax.jit(step.make_train_step(apply, logits, tx, seed=0), donate_argnums=0)
    learnt = jnp.asarray(arrays["learnt"])
    batch = text_inputs(arrays["text"]) | {"mask_loss": learnt, "mask_ar": learnt}

    def update():
        nonlocal state, metrics
        state, metrics = train_step(state, batch | read_images())
        jax.block_until_ready((state, metrics))

    metrics = {}

    def run():
        times = {"step": serve.seconds(update)}
        return {"seconds": times, "loss": float(metrics["loss"])}

    return run


def make_decode(work, arrays, model):
    params = for_decoding(read(work))
    compute = paligemma.Compute(dtype=work.dtype)
    text = arrays["text"][:, :-1]
    rows = jnp.arange(len(text))
    batch = text_inputs(text) | read_pixels(arrays) | {"index": rows, "_mask": rows >= 0}

    def prefill(params, batch, *, max_new_tokens):
        return paligemma.prefill(
            params,
            batch["image"],
            *(batch[name] for name in TEXT_INPUTS),
            model=model,
            compute=compute,
            cache_len=model.num_image_tokens + text.shape[1] + max_new_tokens,
            cache_dtype=work.dtype,
        )

    @functools.partial(jax.jit, static_argnums=2)
    def decode(params, batch, max_new_tokens):
        return generate.generate(
            functools.partial(prefill, max_new_tokens=max_new_tokens),
            functools.partial(paligemma.decode_step, model=model, compute=compute),
            paligemma.select_rows,
            params,
            batch,
            max_new_tokens=max_new_tokens,
            eos=-1,
        ).tokens

    return lambda: serve.time_decoding(
        lambda count: jax.block_until_ready(decode(params, batch, count)), work.new_tokens
    )


def read(work):
    """Returns the weights, where a run has them: on a device that they name."""
    return npz.read(work.folder / prepare.WEIGHTS, place=lambda _, x: on_device(x))


def on_device(x):
    return jax.device_put(x, jax.devices()[0])


def for_decoding(params):
    """Returns the parameters that decoding reads: blocks one by one, none of them there twice."""
    unstack = jax.jit(paligemma.unstack)
    for name in [name for name in params if name.startswith(paligemma.LAYERS)]:
        params |= unstack({name: params.pop(name)})
    return params


def read_pixels(arrays):
    return {"image": jnp.asarray(arrays["image"][:, None])}


def text_inputs(text):
    return {
        "mask_image": jnp.ones((len(text), 1), bool),
        "text": jnp.asarray(text),
        "mask_ar": jnp.zeros(text.shape, bool),
        "mask_input": jnp.ones(text.shape, bool),
    }


def apply_model(model, compute, params, batch, rng=None):
    images, apply = (
        ("image_tokens", paligemma.apply_embedded)
        if "image_tokens" in batch
        else ("image", paligemma.apply)
    )
    inputs = (batch[name] for name in (images, *TEXT_INPUTS))
    return apply(params, *inputs, model=model, compute=compute, rng=rng)


def embed(work, params, arrays, model, compute):
    """Returns the function that reads the images' embeddings, as a run does, after writing them."""
    # Needs more libraries than the other cases, which then run without them.
    from paligemma_jax.data import embeddings

    shape = (model.num_image_tokens, model.llm.width)
    store = embeddings.Store(work.folder / "embeddings", shape, jnp.dtype(work.dtype))
    embed_images = jax.jit(functools.partial(paligemma.embed_images, model=model, compute=compute))
    found = np.asarray(embed_images(params, **read_pixels(arrays)).astype(work.dtype))
    digests = [f"{number:032x}" for number in range(len(found))]
    for digest, embedding in zip(digests, found[:, 0], strict=True):
        store.write(digest, embedding)

    def read_embeddings():
        tokens = np.stack([store.read(digest)[None] for digest in digests])
        return {"image_tokens": jnp.asarray(tokens)}

    return read_embeddings


def flops_of_step(work, arrays, model: variants.PaliGemma) -> float:
    """Returns the model FLOPs of a step, by which the MFU of every side is measured."""
    shapes = paligemma.shapes(model)
    counted = flops.count(
        as_family.Model(model),
        shapes,
        text_len=arrays["text"].shape[1] - 1,
        trainable=names.select(TRAINED[work.trains], shapes, what="trained"),
        embeds_images=not work.cached_images,
    )
    return counted.of_step(batch_size=len(arrays["text"]), supervised=arrays["learnt"][0].sum())


def bytes_of_llm(work, model: variants.PaliGemma) -> int:
    """Returns the bytes of the language model's weights: every token must read them once."""
    shapes = {k: x for k, x in paligemma.shapes(model).items() if k.startswith("llm/")}
    return sum(math.prod(x.shape) for x in shapes.values()) * jnp.dtype(work.dtype).itemsize


if __name__ == "__main__":
    main()
