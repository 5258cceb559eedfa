"""The two towers of a model, called on flat parameters."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from paligemma_jax.models import attention, gemma, layers, precision, siglip
from paligemma_jax.params import names, variants

Params = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Compute:
    """How to run a model, not what it is.

    Attributes:
      dtype: of activations and matrix products, "float32", "bfloat16" or "float16"; weights are
        cast to it where they are used. Norms, softmax, logits and the residual stream are float32
        in any case; with float16 so is all but the operands of products (see `precision`).
      remat: one of `layers.REMAT`, what the backward pass may keep of a layer. "none" keeps all,
        the cast copies of 16-bit weights too.
      dropout: rate in the language model, applied where an rng is given.
      img_dropout: rate in the vision tower, likewise.
      attention: what computes it in the language model, one of `attention.KERNELS`.
      img_attention: likewise in the vision tower.
    """

    dtype: str = "float32"
    remat: str = "nothing_saveable"
    dropout: float = 0.0
    img_dropout: float = 0.0
    attention: str = "xla"
    img_attention: str = "xla"

    def __post_init__(self):
        if self.dtype not in precision.DTYPES:
            raise ValueError(f"compute dtype '{self.dtype}' is not one of {precision.DTYPES}")
        layers.check_remat(self.remat)
        for kernel in (self.attention, self.img_attention):
            if kernel not in attention.KERNELS:
                raise ValueError(f"attention '{kernel}' is not one of {attention.KERNELS}")
        for rate in (self.dropout, self.img_dropout):
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"dropout rate {rate} is not in [0, 1)")

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by while gradients are taken."""
        return precision.LOSS_SCALES[self.dtype]


def img(model: variants.PaliGemma, compute: Compute) -> siglip.Tower:
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
    )


def llm(model: variants.PaliGemma, compute: Compute) -> gemma.Tower:
    """Returns the language model's linen module."""
    return gemma.Tower(
        model.llm,
        vocab_size=model.vocab_size,
        dtype=compute.dtype,
        remat=compute.remat,
        dropout=compute.dropout,
        lora=model.lora,
        kernel=compute.attention,
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
        return _apply(img(model, dataclasses.replace(compute, img_dropout=0.0)), params, image)
    return _apply(img(model, compute), params, image, rngs={"dropout": rng})


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
        tower = llm(model, dataclasses.replace(compute, dropout=0.0))
        return _apply(tower, params, *args, method=method)
    return _apply(llm(model, compute), params, *args, method=method, rngs={"dropout": rng})


def _apply(tower: siglip.Tower | gemma.Tower, params: Params, *args: Any, **kw: Any) -> Any:
    part = "img" if isinstance(tower, siglip.Tower) else "llm"
    return tower.apply({"params": names.unflatten(params)[part]}, *args, **kw)
