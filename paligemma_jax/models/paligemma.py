"""PaliGemma as plain functions on flat parameters.

A sequence is `[image tokens | text]`. Images come as uint8[B, M, R, R, 3]: M slots per example, of
which `mask_image` bool[B, M] says the used ones. An unused slot is seen by nobody and takes no
position, so an example with one of two slots used gets the result of a batch with one slot, and one
with none that of text alone.

`model` (what is computed) and `compute` (how) are hashable: make them static under `jax.jit`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from paligemma_jax.models import attention, gemma, siglip
from paligemma_jax.params import names, variants

Params = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Compute:
    """How to run a model, not what it is.

    Attributes:
      dtype: of activations and matrix products, "float32", "bfloat16" or "float16"; weights are
        cast to it where they are used. Norms, softmax and logits are float32 in any case.
      remat: what the backward pass may keep, a `jax.checkpoint_policies` name; "none" keeps all.
      dropout: rate in the language model, applied where an rng is given.
      img_dropout: rate in the vision tower, likewise.
    """

    dtype: str = "float32"
    remat: str = "nothing_saveable"
    dropout: float = 0.0
    img_dropout: float = 0.0


def init(rng: jax.Array, model: variants.PaliGemma) -> dict[str, jax.Array]:
    """Returns random float32 parameters, distributed as big_vision's (but see siglip's head)."""
    rng_img, rng_llm = jax.random.split(rng)
    image = jnp.zeros((1, model.res, model.res, 3), jnp.uint8)
    img = _img(model, Compute()).init(rng_img, image)["params"]

    def touch_all(llm: gemma.Tower):
        x = llm.embed(jnp.zeros((1, 1), jnp.int32))
        return llm(x, jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 1), bool))

    llm = _llm(model, Compute()).init(rng_llm, method=touch_all)["params"]
    return names.flatten({"img": img, "llm": llm})


def shapes(model: variants.PaliGemma) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns name -> shape of every parameter, allocating nothing."""
    return jax.eval_shape(lambda rng: init(rng, model), jax.random.key(0))


def embed_images(
    params: Params,
    image: jax.Array,
    *,
    model: variants.PaliGemma,
    compute: Compute,
    rng: jax.Array | None = None,
) -> jax.Array:
    """Returns image tokens as the language model sees them: uint8[B, M, R, R, 3] -> [B, M*P, D]."""
    if image.ndim != 5:
        raise ValueError(f"image shape {image.shape}: expected [B, M, R, R, 3], M slots per row")
    B, M = image.shape[:2]
    tower = _img(model, compute if rng is not None else _without_dropout(compute))
    x = _run(tower, params, "img", image.reshape(B * M, *image.shape[2:]), rng=rng)
    return x.reshape(B, M * model.num_image_tokens, model.llm.width)


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
    rng_img, rng_llm = jax.random.split(rng) if rng is not None else (None, None)
    tower = _llm(model, compute if rng is not None else _without_dropout(compute))
    zimg = embed_images(params, image, model=model, compute=compute, rng=rng_img)
    ztxt = _run(tower, params, "llm", text, method="embed")
    valid, block = _join_masks(mask_image, mask_ar, mask_input, model=model)
    hidden = _run(
        tower,
        params,
        "llm",
        jnp.concatenate([zimg, ztxt], axis=1),
        attention.count_positions(valid),
        attention.make_mask(valid, block),
        rng=rng_llm,
    )
    return hidden[:, zimg.shape[1] :]


def logits(params: Params, hidden: jax.Array, *, model: variants.PaliGemma) -> jax.Array:
    """Returns float32[B, T, V] of hidden states [B, T, D].

    The final soft-cap is applied here alone: loss, first and later tokens all come this way.
    """
    return _run(_llm(model, Compute()), params, "llm", hidden, method="logits")


def _join_masks(
    mask_image: jax.Array, mask_ar: jax.Array, mask_input: jax.Array, *, model: variants.PaliGemma
) -> tuple[jax.Array, jax.Array]:
    """Returns `valid` and `mask_ar` bool[B, M*P + T] of the joined sequence."""
    valid_image = jnp.repeat(mask_image.astype(bool), model.num_image_tokens, axis=1)
    valid = jnp.concatenate([valid_image, mask_input.astype(bool)], axis=1)
    block = jnp.concatenate([jnp.zeros_like(valid_image), mask_ar.astype(bool)], axis=1)
    return valid, block


def _img(model: variants.PaliGemma, compute: Compute) -> siglip.Tower:
    return siglip.Tower(
        model.img,
        grid=model.grid,
        out_dim=model.llm.width,
        dtype=compute.dtype,
        remat=compute.remat,
        dropout=compute.img_dropout,
    )


def _llm(model: variants.PaliGemma, compute: Compute) -> gemma.Tower:
    return gemma.Tower(
        model.llm,
        vocab_size=model.vocab_size,
        dtype=compute.dtype,
        remat=compute.remat,
        dropout=compute.dropout,
    )


def _without_dropout(compute: Compute) -> Compute:
    return dataclasses.replace(compute, dropout=0.0, img_dropout=0.0)


def _run(
    tower: siglip.Tower | gemma.Tower,
    params: Params,
    part: str,
    *args: jax.Array,
    method: str = "__call__",
    rng: jax.Array | None = None,
) -> Any:
    variables = {"params": names.unflatten(params)[part]}
    rngs = {} if rng is None else {"dropout": rng}
    return tower.apply(variables, *args, method=method, rngs=rngs)
