"""PaliGemma as plain functions on flat parameters.

A sequence is `[image tokens | text]`. Images come as uint8[B, M, R, R, 3]: M slots per example, of
which `mask_image` bool[B, M] says the used ones. An unused slot is seen by nobody and takes no
position, so an example with one of two slots used gets the result of a batch with one slot, and one
with none that of text alone.

`model` (what is computed) and `compute` (how) are hashable: make them static under `jax.jit`.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from paligemma_jax.models import family
from paligemma_jax.models.common import attention, layers, placement, projections
from paligemma_jax.models.paligemma import gemma, siglip, variants
from paligemma_jax.params import lora, names

Params = Mapping[str, jax.Array]
Cache = attention.Cache
Compute = family.Compute
select_rows = attention.select_rows
LAYERS = "llm/layers/"
BLOCKS = "img/Transformer/encoderblock/"
EMBEDDING = "llm/embedder/input_embedding"

# Of so many tokens at most, embeddings are read one after the other on a device alone.
ROWS_ONE_BY_ONE = 32


def init(rng: jax.Array, model: variants.PaliGemma) -> dict[str, jax.Array]:
    """Returns random float32 parameters, distributed as big_vision's (but see siglip's head).

    Low-rank factors, where the model has them, change no result yet, and the rest is as without.
    """
    base = _init(rng, dataclasses.replace(model, lora=None))
    return names.merge(base, init_factors(rng, model))


def init_factors(rng: jax.Array, model: variants.PaliGemma) -> dict[str, jax.Array]:
    """Returns the low-rank factors alone; raises as `lora.choose`."""
    if model.lora is None:
        return {}
    params = _init(rng, model)
    return {name: params[name] for name in lora.choose(params, model.lora)}


def shapes(model: variants.PaliGemma) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns name -> shape of every parameter, allocating nothing."""
    return dict(_shapes(model))


# The start of a run asks seven times, and to trace a model takes half a second.
@functools.lru_cache(maxsize=16)
def _shapes(model: variants.PaliGemma) -> dict[str, jax.ShapeDtypeStruct]:
    return jax.eval_shape(lambda rng: init(rng, model), jax.random.key(0))


def _init(rng: jax.Array, model: variants.PaliGemma) -> dict[str, jax.Array]:
    """Returns all parameters, with factors beside every weight that can have them."""
    rng_img, rng_llm = jax.random.split(rng)
    image = jnp.zeros((1, model.res, model.res, 3), jnp.uint8)
    img = vision_tower(model, Compute()).init(rng_img, image)["params"]

    def touch_all(llm: gemma.Tower):
        x = llm.embed(jnp.zeros((1, 1), jnp.int32))
        return llm(x, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 1), bool))

    llm = language_model(model, Compute()).init(rng_llm, method=touch_all)["params"]
    return names.flatten({"img": img, "llm": llm})


def embed_images(
    params: Params,
    image: jax.Array,
    *,
    model: variants.PaliGemma,
    compute: Compute,
    rng: jax.Array | None = None,
) -> jax.Array:
    """Returns image tokens as the language model sees them: uint8[B, M, R, R, 3] -> [B, M, P, D].

    They are what `apply_embedded` and `prefill_embedded` read in place of images.
    """
    if image.ndim != 5:
        raise ValueError(f"image shape {image.shape}: expected [B, M, R, R, 3], M slots per row")
    B, M = image.shape[:2]
    image = placement.keep_rows(compute.layout, image.reshape(B * M, *image.shape[2:]))
    x = run_img(params, image, model=model, compute=compute, rng=rng)
    return x.reshape(B, M, model.num_image_tokens, model.llm.width)


def apply(
    params: Params,
    image: jax.Array,
    mask_image: jax.Array,
    text: jax.Array,
    mask_ar: jax.Array,
    mask_input: jax.Array,
    *,
    model: variants.PaliGemma,
    compute: Compute,
    rng: jax.Array | None = None,
) -> jax.Array:
    """Returns hidden states [B, T, D] of the text positions after the final norm.

    Args:
      params: flat parameters; any float dtype.
      image: uint8[B, M, R, R, 3].
      mask_image: bool[B, M], False for an unused slot.
      text: int32[B, T].
      mask_ar: [B, T], 1 where a token is hidden from those before it; see `attention.make_mask`.
      mask_input: [B, T], 0 for padding. No valid token sees padding.
      model: what to compute.
      compute: how.
      rng: switches dropout on.
    """
    rng_img = None if rng is None else jax.random.split(rng)[0]
    image_tokens = embed_images(params, image, model=model, compute=compute, rng=rng_img)
    text_inputs = (mask_image, text, mask_ar, mask_input)
    return apply_embedded(params, image_tokens, *text_inputs, model=model, compute=compute, rng=rng)


def apply_embedded(
    params: Params,
    image_tokens: jax.Array,
    mask_image: jax.Array,
    text: jax.Array,
    mask_ar: jax.Array,
    mask_input: jax.Array,
    *,
    model: variants.PaliGemma,
    compute: Compute,
    rng: jax.Array | None = None,
) -> jax.Array:
    """As `apply`, of images that `embed_images` embedded before, [B, M, P, D] of any dtype."""
    rng_llm = None if rng is None else jax.random.split(rng)[1]
    x, valid, block = _join(
        params, image_tokens, mask_image, text, mask_ar, mask_input, model=model, compute=compute
    )
    seen = attention.count_positions(valid), attention.make_mask(valid, block)
    hidden = run_llm("__call__", params, x, *seen, model=model, compute=compute, rng=rng_llm)
    return hidden[:, -text.shape[1] :]


def prefill(
    params: Params,
    image: jax.Array,
    mask_image: jax.Array,
    text: jax.Array,
    mask_ar: jax.Array,
    mask_input: jax.Array,
    *,
    model: variants.PaliGemma,
    compute: Compute,
    cache_len: int,
    cache_dtype: str,
    cache_sharding: jax.sharding.NamedSharding | None = None,
) -> tuple[jax.Array, Cache]:
    """Reads prompts: returns float32[B, V], logits behind each row's last valid token, and a cache.

    Arguments as `apply`; `text` holds prompts padded on the right to T.
      cache_len: slots in all, at least M * P + T and one more per token to be decoded.
      cache_dtype: dtype of the stored keys and values.
      cache_sharding: where keys and values [B, K, C, H] lie; None: all is on one device.
    """
    image_tokens = embed_images(params, image, model=model, compute=compute)
    return prefill_embedded(
        params,
        image_tokens,
        *(mask_image, text, mask_ar, mask_input),
        model=model,
        compute=compute,
        cache_len=cache_len,
        cache_dtype=cache_dtype,
        cache_sharding=cache_sharding,
    )


def prefill_embedded(
    params: Params,
    image_tokens: jax.Array,
    mask_image: jax.Array,
    text: jax.Array,
    mask_ar: jax.Array,
    mask_input: jax.Array,
    *,
    model: variants.PaliGemma,
    compute: Compute,
    cache_len: int,
    cache_dtype: str,
    cache_sharding: jax.sharding.NamedSharding | None = None,
) -> tuple[jax.Array, Cache]:
    """As `prefill`, of images that `embed_images` embedded before, [B, M, P, D] of any dtype."""
    compute = dataclasses.replace(compute, remat="none")
    x, valid, block = _join(
        params, image_tokens, mask_image, text, mask_ar, mask_input, model=model, compute=compute
    )
    hidden, keys_values = _read_prompt(params, x, valid, block, model=model, compute=compute)
    last = valid.shape[1] - 1 - jnp.argmax(valid[:, ::-1], axis=1)
    last_hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
    past = attention.fill_cache(
        *keys_values, valid, cache_len=cache_len, dtype=cache_dtype, sharding=cache_sharding
    )
    return _next_logits(params, last_hidden, model=model, compute=compute), past


def decode_step(
    params: Params,
    past: Cache,
    token: jax.Array,
    *,
    model: variants.PaliGemma,
    compute: Compute,
) -> tuple[jax.Array, Cache]:
    """Appends one token to every row: int32[B] -> float32[B, V] behind it, and the cache.

    The cache must have a free slot. Stacked parameters are sliced, and so copied, at each token;
    give the unstacked ones too to avoid that: `{**params, **unstack(params)}`.
    """
    # Ties the weights to the token: without it a loop around this function casts all 16-bit weights
    # once and keeps the result, several times the model's size.
    params, token = jax.lax.optimization_barrier((dict(params), token))
    one_by_one = past.sharding is None and len(token) <= ROWS_ONE_BY_ONE
    look_up = projections.look_up_each if one_by_one else projections.look_up
    x = run_llm("embed", params, token[:, None], look_up, model=model, compute=compute)
    x, keys_values = gemma.unroll(
        names.unflatten(params)["llm"]["layers"],
        x,
        past.position[:, None],
        attention.open_slot(past)[:, None],
        functools.partial(attention.write_cache, past),
        llm=model.llm,
        dtype=compute.dtype,
        lora=model.lora,
        on=_on_devices(compute, LAYERS),
    )
    x = run_llm("norm", params, x, model=model, compute=compute)
    made = _next_logits(params, x, model=model, compute=compute)
    return made, attention.advance_cache(past, keys_values)


def logits(
    params: Params,
    hidden: jax.Array,
    *,
    model: variants.PaliGemma,
    layout: placement.Layout | None = None,
) -> jax.Array:
    """Returns float32[B, T, V] of hidden states [B, T, D].

    The final soft-cap is applied here alone: loss, first and later tokens all come this way. With a
    layout each device makes the logits of its part of the vocabulary, for all rows.
    """
    hidden = placement.spread_rows(layout, hidden)
    made = run_llm("logits", params, hidden, model=model, compute=Compute())
    return placement.keep_vocabulary(layout, EMBEDDING, made)


def _next_logits(
    params: Params, hidden: jax.Array, *, model: variants.PaliGemma, compute: Compute
) -> jax.Array:
    """Returns float32[B, V], each row's on its device, of hidden states [B, 1, D]."""
    made = logits(params, hidden, model=model, layout=compute.layout)
    return placement.keep_rows(compute.layout, made[:, 0])


def _join(
    params: Params,
    image_tokens: jax.Array,
    mask_image: jax.Array,
    text: jax.Array,
    mask_ar: jax.Array,
    mask_input: jax.Array,
    *,
    model: variants.PaliGemma,
    compute: Compute,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Embeds text and puts it behind the image tokens [B, M, P, D].

    Returns [B, M*P + T, D], and which of these are valid and which open a block, bool[B, M*P + T].
    """
    expected = (*mask_image.shape, model.num_image_tokens, model.llm.width)
    if image_tokens.shape != expected:
        raise ValueError(f"image tokens {image_tokens.shape}: expected {expected}, [B, M, P, D]")
    ztxt = run_llm("embed", params, text, model=model, compute=compute)
    ztxt = placement.keep_rows(compute.layout, ztxt)
    zimg = image_tokens.astype(ztxt.dtype).reshape(len(ztxt), -1, model.llm.width)
    valid_image = jnp.repeat(mask_image.astype(bool), model.num_image_tokens, axis=1)
    valid = jnp.concatenate([valid_image, mask_input.astype(bool)], axis=1)
    block = jnp.concatenate([jnp.zeros_like(valid_image), mask_ar.astype(bool)], axis=1)
    return jnp.concatenate([zimg, ztxt], axis=1), valid, block


def _read_prompt(
    params: Params,
    x: jax.Array,
    valid: jax.Array,
    block: jax.Array,
    *,
    model: variants.PaliGemma,
    compute: Compute,
) -> tuple[jax.Array, tuple[Iterable[jax.Array], Iterable[jax.Array]]]:
    """Returns hidden states after the final norm, and each layer's keys and values."""
    seen = attention.count_positions(valid), attention.make_mask(valid, block)
    blocks = names.unflatten(params)["llm"]["layers"]
    if "attn" in blocks:
        params = layers.stacked_only(params, LAYERS)
        return run_llm("prefill", params, x, *seen, model=model, compute=compute)

    def keep(_: int, k: jax.Array, v: jax.Array) -> gemma.KeyValue:
        return k, v

    how: Any = {"llm": model.llm, "dtype": compute.dtype, "lora": model.lora}
    on = _on_devices(compute, LAYERS)
    x, keys_values = gemma.unroll(blocks, x, *seen, keep, **how, on=on)
    keys, values = zip(*keys_values, strict=True)
    return run_llm("norm", params, x, model=model, compute=compute), (keys, values)


def vision_tower(model: variants.PaliGemma, compute: Compute) -> siglip.Tower:
    """Returns the vision tower's linen module."""
    return siglip.Tower(
        model.img,
        grid=model.grid,
        out_dim=model.llm.width,
        dtype=compute.dtype,
        remat=compute.remat,
        dropout=compute.img_dropout,
        lora=model.lora,
        kernel=compute.img_attention,
        on=_on_devices(compute, BLOCKS),
    )


def language_model(model: variants.PaliGemma, compute: Compute) -> gemma.Tower:
    """Returns the language model's linen module."""
    return gemma.Tower(
        model.llm,
        vocab_size=model.vocab_size,
        dtype=compute.dtype,
        remat=compute.remat,
        dropout=compute.dropout,
        lora=model.lora,
        kernel=compute.attention,
        on=_on_devices(compute, LAYERS),
    )


def run_img(
    params: Params,
    image: jax.Array,
    *,
    model: variants.PaliGemma,
    compute: Compute,
    rng: jax.Array | None = None,
) -> jax.Array:
    """uint8[B, R, R, 3] -> [B, P, D], D the language model's width; an rng switches dropout on."""
    if rng is None:
        return _apply(
            vision_tower(model, dataclasses.replace(compute, img_dropout=0.0)), params, image
        )
    return _apply(vision_tower(model, compute), params, image, rngs={"dropout": rng})


def run_llm(
    method: str,
    params: Params,
    *args: Any,
    model: variants.PaliGemma,
    compute: Compute,
    rng: jax.Array | None = None,
) -> Any:
    """Calls a method of `gemma.Tower`; an rng switches dropout on."""
    if rng is None:
        tower = language_model(model, dataclasses.replace(compute, dropout=0.0))
        return _apply(tower, params, *args, method=method)
    return _apply(
        language_model(model, compute), params, *args, method=method, rngs={"dropout": rng}
    )


def _apply(tower: siglip.Tower | gemma.Tower, params: Params, *args: Any, **kw: Any) -> Any:
    part = "img" if isinstance(tower, siglip.Tower) else "llm"
    if tower.on is not None:
        params = layers.gather_single(params, tower.on, kept=(EMBEDDING,))
    return tower.apply({"params": names.unflatten(params)[part]}, *args, **kw)


def _on_devices(compute: Compute, prefix: str) -> layers.OnDevices | None:
    if compute.layout is None:
        return None
    return layers.OnDevices(compute.layout, prefix, compute.dtype)


def unstack(params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Returns the language model's blocks with one array per layer, for decoding.

    `llm/layers/attn/q_einsum/w` [L, ...] becomes `llm/layers/0/attn/q_einsum/w` and so on; other
    parameters are left out. `prefill` scans over the stacked form where it is given, `decode_step`
    prefers this one. Both together hold the blocks in memory twice; either alone is enough.
    """
    return layers.unstack(params, LAYERS)
