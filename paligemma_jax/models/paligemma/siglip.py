"""SigLIP vision tower without pooling: uint8 images in, one token per patch out.

Names and numbers follow big_vision's `models/vit.py` with `pool_type="none", scan=True`; the
architecture is arXiv:2303.15343, table 1 (So400m: arXiv:2305.13035).
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from paligemma_jax.models.common import attention, layers, projections
from paligemma_jax.models.paligemma import variants

_xavier_in = nn.initializers.xavier_uniform(in_axis=0, out_axis=(1, 2))
_xavier_out = nn.initializers.xavier_uniform(in_axis=(0, 1), out_axis=2)


class SelfAttention(nn.Module):
    """Multi-head self-attention over all patches: [B, P, D] -> [B, P, D]."""

    img: variants.Vit
    lora: layers.Lora | None = None
    kernel: str = "xla"
    split: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D, N, H = self.img.width, self.img.num_heads, self.img.head_dim

        def heads(name: str) -> jax.Array:
            init, lora = _xavier_in, self.lora
            dense = layers.Dense((D, N, H), (N, H), w_init=init, lora=lora, name=name)
            return dense("BPD,DNH->BPNH", x)

        q, k, v = heads("query") * H**-0.5, heads("key"), heads("value")
        q, k, v = (projections.narrow(y, x.dtype) for y in (q, k, v))
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        x = attention.attend(q, k, v, mask=None, kernel=self.kernel, split=self.split)
        out = layers.Dense((N, H, D), (D,), w_init=_xavier_out, lora=self.lora, name="out")
        return out("BPNH,NHD->BPD", x)


class Mlp(nn.Module):
    """Two dense layers with a tanh-approximated GELU between: [B, P, D] -> [B, P, D]."""

    img: variants.Vit
    dropout: float
    lora: layers.Lora | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D, F = self.img.width, self.img.mlp_dim

        def dense(shape: tuple[int, int], name: str) -> layers.Dense:
            w_init, bias_init = nn.initializers.xavier_uniform(), nn.initializers.normal(1e-6)
            return layers.Dense(shape, shape[1:], w_init, bias_init, self.lora, name=name)

        y = nn.gelu(dense((D, F), "Dense_0")("BPD,DF->BPF", x))
        y = layers.Dropout(self.dropout)(projections.narrow(y, x.dtype))
        return dense((F, D), "Dense_1")("BPF,FD->BPD", y)


class Block(nn.Module):
    """Pre-norm transformer block: [B, P, D] -> [B, P, D]."""

    img: variants.Vit
    dtype: DTypeLike
    dropout: float
    lora: layers.Lora | None = None
    kernel: str = "xla"
    split: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        drop = layers.Dropout(self.dropout)
        name = "MultiHeadDotProductAttention_0"
        attn = SelfAttention(self.img, self.lora, self.kernel, self.split, name=name)
        mlp = Mlp(self.img, self.dropout, self.lora, name="MlpBlock_0")
        x += drop(attn(layers.LayerNorm(self.dtype, name="LayerNorm_0")(x)))
        x += drop(mlp(layers.LayerNorm(self.dtype, name="LayerNorm_1")(x)))
        return x


class Encoder(nn.Module):
    """`depth` blocks with stacked parameters, and a last norm: [B, P, D] -> dtype[B, P, D]."""

    img: variants.Vit
    dtype: DTypeLike
    remat: str
    dropout: float
    lora: layers.Lora | None = None
    kernel: str = "xla"
    on: layers.OnDevices | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        split = 1 if self.on is None else self.on.layout.num_rows
        how = (self.dtype, self.dropout, self.lora, self.kernel, split)
        block = Block(self.img, *how, name="encoderblock")
        run = layers.scan(
            lambda block, x: (block(x), None), depth=self.img.depth, remat=self.remat, on=self.on
        )
        x, _ = run(block, x)
        return layers.LayerNorm(self.dtype, name="encoder_norm")(x)


class Tower(nn.Module):
    """Vision tower and projection to the language model's width.

    Attributes:
      img: dimensions.
      grid: patches along one side of the image.
      out_dim: width of the language model (E).
      dtype: compute dtype.
      remat: see `layers.scan`.
      dropout: rate; above 0 a `dropout` rng is needed.
      lora: of the low-rank factors, if there are any.
      kernel: of attention, see `attention.attend`.
      on: where arrays lie on several devices.
    """

    img: variants.Vit
    grid: int
    out_dim: int
    dtype: DTypeLike = "float32"
    remat: str = "none"
    dropout: float = 0.0
    lora: layers.Lora | None = None
    kernel: str = "xla"
    on: layers.OnDevices | None = None

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """uint8[B, R, R, 3] -> [B, P, E]."""
        D, c = self.img.width, self.img.patch_size
        x = layers.cut_patches(layers.normalize_pixels(image), grid=self.grid, patch_size=c)
        lecun = nn.initializers.lecun_normal()
        embedding = layers.Dense((c, c, 3, D), (D,), w_init=lecun, name="embedding")
        x = embedding("BPxyc,xycD->BPD", x.astype(self.dtype)).astype(
            projections.residual_dtype(self.dtype)
        )
        position = self.param(
            "pos_embedding", POSITION_INITS[self.img.posemb_init], (1, self.grid**2, D)
        )
        x += position.astype(x.dtype)
        x = layers.Dropout(self.dropout)(x)
        kept = (self.remat, self.dropout, self.lora, self.kernel, self.on)
        x = Encoder(self.img, self.dtype, *kept, name="Transformer")(x)
        # big_vision starts a classification head at zero. Here that would cut the gradient to the
        # whole tower at the first step of a run from scratch.
        E = self.out_dim
        head = layers.Dense((D, E), (E,), w_init=lecun, lora=self.lora, name="head")
        return head("BPD,DE->BPE", x)


def init_normal_positions(rng: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Returns positions that are still to be learnt, as big_vision starts them."""
    return shape[-1] ** -0.5 * jax.random.normal(rng, shape, dtype)


def init_sine_positions(rng: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Returns sines and cosines of x and y, [1, grid**2, D], D = 8, 12, 16, ...

    The fixed embedding of MoCo v3 (arXiv:2104.02057), big_vision's posemb="sincos2d", here only
    where training starts: a model from scratch then sees from its first step what is near what.
    """
    del rng
    _, P, D = shape
    if D % 4 or D < 8:
        raise ValueError(f"posemb_init='sines' needs a width of 8, 12, 16, ...; found {D}")
    y, x = np.divmod(np.arange(P), math.isqrt(P))
    omega = 10_000.0 ** (-np.arange(D // 4) / (D // 4 - 1))
    waves = [f(np.outer(axis, omega)) for axis in (x, y) for f in (np.sin, np.cos)]
    return jnp.asarray(np.concatenate(waves, axis=1)[None], dtype)


POSITION_INITS = {"normal": init_normal_positions, "sines": init_sine_positions}


def resample_position_embedding(old: np.ndarray, grid: int) -> np.ndarray:
    """Interpolates position embeddings linearly to another grid, corners kept on corners.

    Equals big_vision's `resample_posemb`, which however fails on bfloat16.

    Args:
      old: `img/pos_embedding` [1, old_grid**2, D], any float dtype.
      grid: patches along one side of the new image.

    Returns:
      [1, grid**2, D] in the dtype of `old`, computed in float32.
    """
    old = np.asarray(old)
    old_grid = _grid_of(old.shape)
    if old_grid == grid:
        return old
    import scipy.ndimage

    square = old.reshape(old_grid, old_grid, -1).astype(np.float32)
    zoom = (grid / old_grid, grid / old_grid, 1)
    return scipy.ndimage.zoom(square, zoom, order=1).reshape(1, grid**2, -1).astype(old.dtype)


def check_position_embedding(
    shape: Sequence[int], model: variants.PaliGemma, *, resample: bool, where: str
) -> None:
    """Checks that a checkpoint's `img/pos_embedding` can serve this model.

    Args:
      shape: [1, grid**2, D] as found.
      model: what it should serve.
      resample: whether another grid is wanted, and `resample_position_embedding` will follow.
      where: the file, for the message.

    Raises:
      ValueError: it is no square grid, or another one than the model's and `resample` is False.
    """
    try:
        grid = _grid_of(shape)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if grid != model.grid and not resample:
        res = grid * model.img.patch_size
        raise ValueError(
            f"{where}: checkpoint grid {grid}x{grid} ({res} px) but res={model.res} "
            f"({model.grid}x{model.grid}): set model.img.resample_posemb=True or res={res}"
        )


def _grid_of(shape: Sequence[int]) -> int:
    grid = math.isqrt(shape[1]) if len(shape) == 3 else 0
    if not grid or grid**2 != shape[1]:
        raise ValueError(
            f"img/pos_embedding has shape {tuple(shape)}, expected [1, grid * grid, D]"
        )
    return grid
