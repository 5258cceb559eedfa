"""Moondream2 as plain functions on flat parameters.

A sequence is `[bos | image tokens | the rest of the text]`, and every token sees itself and what is
before it: `mask_ar` of a batch is not looked at. The text of a batch begins with bos, which goes
before the images here. An unused image slot is seen by nobody and takes no position.

`model` (what is computed) and `compute` (how) are hashable: make them static under `jax.jit`.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from paligemma_jax.models import family
from paligemma_jax.models.common import attention, layers, placement, projections
from paligemma_jax.models.moondream import phi, variants, vit
from paligemma_jax.params import lora, names

LAYERS = "text/layers/"
BLOCKS = "img/blocks/"
EMBEDDING = "text/embedder/input_embedding"
HEAD = "text/head/kernel"

# Of so many tokens at most, embeddings are read one after the other on a device alone.
ROWS_ONE_BY_ONE = 32


def init(rng: jax.Array, model: variants.Moondream) -> dict[str, jax.Array]:
    """Returns random float32 parameters. Low-rank factors, if there are any, change nothing yet."""
    base = _init(rng, dataclasses.replace(model, lora=None))
    return names.merge(base, init_factors(rng, model))


def init_factors(rng: jax.Array, model: variants.Moondream) -> dict[str, jax.Array]:
    """Returns the low-rank factors alone; raises as `lora.choose`."""
    if model.lora is None:
        return {}
    params = _init(rng, model)
    return {name: params[name] for name in lora.choose(params, model.lora)}


def shapes(model: variants.Moondream) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns name -> shape of every parameter, allocating nothing."""
    return dict(_shapes(model))


@functools.lru_cache(maxsize=16)
def _shapes(model: variants.Moondream) -> dict[str, jax.ShapeDtypeStruct]:
    return jax.eval_shape(lambda rng: init(rng, model), jax.random.key(0))


def _init(rng: jax.Array, model: variants.Moondream) -> dict[str, jax.Array]:
    """Returns all parameters, with factors beside every weight that can have them."""
    rng_img, rng_text = jax.random.split(rng)
    image = jnp.zeros((1, *model.image_shape), jnp.uint8)
    img = vision_tower(model, family.Compute()).init(rng_img, image)["params"]

    def touch_all(text: phi.Tower):
        x = text.embed(jnp.zeros((1, 1), jnp.int32))
        return text.logits(text(x, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 1), bool)))

    text = language_model(model, family.Compute()).init(rng_text, method=touch_all)["params"]
    return names.flatten({"img": img, "text": text})


def embed_images(
    params: family.Params,
    image: jax.Array,
    *,
    model: variants.Moondream,
    compute: family.Compute,
    rng: jax.Array | None = None,
) -> jax.Array:
    """Returns image tokens as the language model sees them: uint8[B, M, R, R, 3] -> [B, M, P, D].

    With crops images are of `model.image_shape`. An rng switches dropout on.
    """
    if image.ndim != 5 or image.shape[2:] != model.image_shape:
        expected = ", ".join(map(str, model.image_shape))
        raise ValueError(f"image shape {image.shape}: expected [B, M, {expected}], M slots per row")
    B, M = image.shape[:2]
    image = placement.keep_rows(compute.layout, image.reshape(B * M, *image.shape[2:]))
    if rng is None:
        compute = dataclasses.replace(compute, img_dropout=0.0)
    x = _run(vision_tower(model, compute), params, image, rng=rng)
    return x.reshape(B, M, model.num_image_tokens, model.llm.width)


def apply(
    params: family.Params,
    batch: family.Batch,
    rng: jax.Array | None = None,
    *,
    model: variants.Moondream,
    compute: family.Compute,
) -> jax.Array:
    """Returns hidden states [B, T, D] of the text positions after the final norm.

    Args:
      params: flat parameters; any float dtype.
      batch: as `family` says.
      rng: switches dropout on.
      model: what to compute.
      compute: how.
    """
    rng_img, rng_text = (None, None) if rng is None else jax.random.split(rng)
    x, valid = _join(params, batch, model=model, compute=compute, rng=rng_img)
    hidden = run_text(
        "__call__", params, x, *_see(valid), model=model, compute=compute, rng=rng_text
    )
    after_images = hidden.shape[1] - batch["text"].shape[1] + 1
    return jnp.concatenate([hidden[:, :1], hidden[:, after_images:]], axis=1)


def prefill(
    params: family.Params,
    batch: family.Batch,
    *,
    max_new_tokens: int,
    model: variants.Moondream,
    compute: family.Compute,
    cache_dtype: str,
    cache_sharding: jax.sharding.NamedSharding | None = None,
) -> tuple[jax.Array, attention.Cache]:
    """Reads prompts: returns float32[B, V], logits behind each row's last valid token, and a cache.

    Args:
      params: flat parameters; any float dtype.
      batch: its text holds prompts padded on the right.
      max_new_tokens: slots of the cache behind the prompts.
      model: what to compute.
      compute: how.
      cache_dtype: dtype of the stored keys and values.
      cache_sharding: where keys and values [B, N, C, H] lie; None: all is on one device.
    """
    compute = dataclasses.replace(compute, remat="none")
    x, valid = _join(params, batch, model=model, compute=compute)
    hidden, keys_values = _read_prompt(params, x, valid, model=model, compute=compute)
    last = valid.shape[1] - 1 - jnp.argmax(valid[:, ::-1], axis=1)
    last_hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    past = attention.fill_cache(
        *keys_values,
        valid,
        cache_len=valid.shape[1] + max_new_tokens,
        dtype=cache_dtype,
        sharding=cache_sharding,
    )
    return _next_logits(params, last_hidden, model=model, compute=compute), past


def decode_step(
    params: family.Params,
    past: attention.Cache,
    token: jax.Array,
    *,
    model: variants.Moondream,
    compute: family.Compute,
) -> tuple[jax.Array, attention.Cache]:
    """Appends one token to every row: int32[B] -> float32[B, V] behind it, and the cache.

    The cache must have a free slot. Give the blocks that `layers.unstack` makes too: stacked ones
    are sliced, and so copied, at each token.
    """
    # Ties the weights to the token: without it a loop around this function casts all 16-bit weights
    # once and keeps the result, several times the model's size.
    params, token = jax.lax.optimization_barrier((dict(params), token))
    one_by_one = past.sharding is None and len(token) <= ROWS_ONE_BY_ONE
    look_up = projections.look_up_each if one_by_one else projections.look_up
    x = run_text("embed", params, token[:, None], look_up, model=model, compute=compute)
    x, keys_values = phi.unroll(
        names.unflatten(params)["text"]["layers"],
        x,
        past.position[:, None],
        attention.open_slot(past)[:, None],
        functools.partial(attention.write_cache, past),
        llm=model.llm,
        dtype=compute.dtype,
        lora=model.lora,
        on=_on_devices(compute, LAYERS),
    )
    x = run_text("norm", params, x, model=model, compute=compute)
    made = _next_logits(params, x, model=model, compute=compute)
    return made, attention.advance_cache(past, keys_values)


def logits(
    params: family.Params,
    hidden: jax.Array,
    *,
    model: variants.Moondream,
    layout: placement.Layout | None = None,
) -> jax.Array:
    """Returns float32[B, T, V] of hidden states [B, T, D].

    With a layout each device makes the logits of its part of the vocabulary, for all rows.
    """
    hidden = placement.spread_rows(layout, hidden)
    made = run_text("logits", params, hidden, model=model, compute=family.Compute())
    return placement.keep_vocabulary(layout, HEAD, made)


def _next_logits(
    params: family.Params, hidden: jax.Array, *, model: variants.Moondream, compute: family.Compute
) -> jax.Array:
    """Returns float32[B, V], each row's on its device, of hidden states [B, 1, D]."""
    made = logits(params, hidden, model=model, layout=compute.layout)
    return placement.keep_rows(compute.layout, made[:, 0])


def _join(
    params: family.Params,
    batch: family.Batch,
    *,
    model: variants.Moondream,
    compute: family.Compute,
    rng: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Embeds text and images and puts the images [B, M, P, D] behind the first token.

    Returns [B, M*P + T, D], and which of these are valid, bool[B, M*P + T].
    """
    if family.IMAGE_TOKENS in batch:
        image_tokens = batch[family.IMAGE_TOKENS]
    else:
        image_tokens = embed_images(params, batch["image"], model=model, compute=compute, rng=rng)
    mask_image, text = batch["mask_image"], batch["text"]
    expected = (*mask_image.shape, model.num_image_tokens, model.llm.width)
    if image_tokens.shape != expected:
        raise ValueError(f"image tokens {image_tokens.shape}: expected {expected}, [B, M, P, D]")
    ztxt = run_text("embed", params, text, model=model, compute=compute)
    ztxt = placement.keep_rows(compute.layout, ztxt)
    zimg = image_tokens.astype(ztxt.dtype).reshape(len(ztxt), -1, model.llm.width)
    valid_image = jnp.repeat(mask_image.astype(bool), model.num_image_tokens, axis=1)
    valid_text = batch["mask_input"].astype(bool)
    valid = jnp.concatenate([valid_text[:, :1], valid_image, valid_text[:, 1:]], axis=1)
    return jnp.concatenate([ztxt[:, :1], zimg, ztxt[:, 1:]], axis=1), valid


def _see(valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns positions int32[B, S] and who may see whom, bool[B, S, S]: what is before it."""
    return attention.count_positions(valid), attention.make_mask(valid, jnp.ones_like(valid))


def _read_prompt(
    params: family.Params,
    x: jax.Array,
    valid: jax.Array,
    *,
    model: variants.Moondream,
    compute: family.Compute,
) -> tuple[jax.Array, tuple[Iterable[jax.Array], Iterable[jax.Array]]]:
    """Returns hidden states after the final norm, and each layer's keys and values."""
    blocks = names.unflatten(params)["text"]["layers"]
    if "attn" in blocks:
        stacked = layers.stacked_only(params, LAYERS)
        return run_text("prefill", stacked, x, *_see(valid), model=model, compute=compute)

    def keep(_: int, k: jax.Array, v: jax.Array) -> phi.KeyValue:
        return k, v

    how: Any = {"llm": model.llm, "dtype": compute.dtype, "lora": model.lora}
    on = _on_devices(compute, LAYERS)
    x, keys_values = phi.unroll(blocks, x, *_see(valid), keep, **how, on=on)
    keys, values = zip(*keys_values, strict=True)
    return run_text("norm", params, x, model=model, compute=compute), (keys, values)


def vision_tower(model: variants.Moondream, compute: family.Compute) -> vit.Tower:
    """Returns the vision tower's linen module."""
    return vit.Tower(
        model.img,
        grid=model.grid,
        projection_dim=model.projection_dim,
        out_dim=model.llm.width,
        dtype=compute.dtype,
        remat=compute.remat,
        dropout=compute.img_dropout,
        lora=model.lora,
        kernel=compute.img_attention,
        on=_on_devices(compute, BLOCKS),
    )


def language_model(model: variants.Moondream, compute: family.Compute) -> phi.Tower:
    """Returns the language model's linen module."""
    return phi.Tower(
        model.llm,
        vocab_size=model.vocab_size,
        dtype=compute.dtype,
        remat=compute.remat,
        dropout=compute.dropout,
        lora=model.lora,
        kernel=compute.attention,
        on=_on_devices(compute, LAYERS),
    )


def run_text(
    method: str,
    params: family.Params,
    *args: Any,
    model: variants.Moondream,
    compute: family.Compute,
    rng: jax.Array | None = None,
) -> Any:
    """Calls a method of `phi.Tower`; an rng switches dropout on."""
    if rng is None:
        compute = dataclasses.replace(compute, dropout=0.0)
    return _run(language_model(model, compute), params, *args, method=method, rng=rng)


def _run(
    tower: vit.Tower | phi.Tower,
    params: family.Params,
    *args: Any,
    rng: jax.Array | None,
    method: str = "__call__",
) -> Any:
    part = "img" if isinstance(tower, vit.Tower) else "text"
    if tower.on is not None:
        params = layers.gather_single(params, tower.on, kept=(EMBEDDING, HEAD))
    rngs = {} if rng is None else {"dropout": rng}
    return tower.apply({"params": names.unflatten(params)[part]}, *args, method=method, rngs=rngs)


def _on_devices(compute: family.Compute, prefix: str) -> layers.OnDevices | None:
    if compute.layout is None:
        return None
    return layers.OnDevices(compute.layout, prefix, compute.dtype)
