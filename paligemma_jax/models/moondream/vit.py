"""Moondream's vision tower: uint8 images in, one vector of the language model's width per patch.

SigLIP's So400m/14 without pooling as timm builds it: queries, keys and values of one weight, and
another epsilon in its norms than big_vision's; then an MLP instead of a single layer.

With crops an image is up to two squares high and wide (`images.choose_size`). The tower reads it
made smaller to one square, and each of its squares; what it gives of these, made smaller to one
square too, stands beside what it gives of the whole, twice as long a vector per patch.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from paligemma_jax.models.common import attention, layers, projections
from paligemma_jax.models.moondream import variants

EPSILON = 1e-5
NUM_SEEN = 5  # squares that are read of an image with crops: the whole, and up to four
_xavier = nn.initializers.xavier_uniform
_positions = nn.initializers.normal(0.02)


class SelfAttention(nn.Module):
    """Multi-head self-attention over all patches: [B, P, D] -> [B, P, D]."""

    img: variants.Vit
    lora: layers.Lora | None = None
    kernel: str = "xla"
    split: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D, N, H = self.img.width, self.img.num_heads, self.img.head_dim
        init = _xavier(in_axis=0, out_axis=(2, 3), batch_axis=1)
        fused = layers.Dense((D, 3, N, H), (3, N, H), init, lora=self.lora, name="qkv")
        parts = jnp.split(fused("BPD,DcNH->BPcNH", x), 3, axis=2)
        q, k, v = (part.squeeze(2) for part in parts)
        q, k, v = (projections.narrow(y, x.dtype) for y in (q * H**-0.5, k, v))
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        x = attention.attend(q, k, v, mask=None, kernel=self.kernel, split=self.split)
        out_init = _xavier(in_axis=(0, 1), out_axis=2)
        out = layers.Dense((N, H, D), (D,), out_init, lora=self.lora, name="proj")
        return out("BPNH,NHD->BPD", x)


class Mlp(nn.Module):
    """Two dense layers with a tanh-approximated GELU between: [B, P, D] -> [B, P, E]."""

    mlp_dim: int
    out_dim: int
    lora: layers.Lora | None = None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D, F, E = x.shape[-1], self.mlp_dim, self.out_dim
        fc1 = layers.Dense((D, F), (F,), _xavier(), lora=self.lora, name="fc1")
        y = nn.gelu(fc1("BPD,DF->BPF", x), approximate=True)
        y = layers.Dropout(self.dropout)(projections.narrow(y, x.dtype))
        fc2 = layers.Dense((F, E), (E,), _xavier(), lora=self.lora, name="fc2")
        return fc2("BPF,FE->BPE", y)


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
        attn = SelfAttention(self.img, self.lora, self.kernel, self.split, name="attn")
        mlp = Mlp(self.img.mlp_dim, self.img.width, self.lora, self.dropout, name="mlp")
        x += drop(attn(layers.LayerNorm(self.dtype, EPSILON, name="norm1")(x)))
        x += drop(mlp(layers.LayerNorm(self.dtype, EPSILON, name="norm2")(x)))
        return x


class Tower(nn.Module):
    """Vision tower and projection to the language model's width.

    Attributes:
      img: dimensions.
      grid: patches along one side of the image.
      projection_dim: inner width of the projection.
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
    projection_dim: int
    out_dim: int
    dtype: DTypeLike = "float32"
    remat: str = "none"
    dropout: float = 0.0
    lora: layers.Lora | None = None
    kernel: str = "xla"
    on: layers.OnDevices | None = None

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """uint8[B, R, R, 3], with crops uint8[B, 2R, 2R, 4] as `images` frames it -> [B, P, E]."""
        D, c = self.img.width, self.img.patch_size
        x, res = layers.normalize_pixels(image[..., :3]), self.grid * self.img.patch_size
        is_doubled = None
        if self.img.has_crops:
            is_doubled = image[:, res, 0, 3] > 0, image[:, 0, res, 3] > 0
            x = _cut_squares(x, is_doubled)
        x = layers.cut_patches(x, grid=self.grid, patch_size=c)
        lecun = nn.initializers.lecun_normal()
        embedding = layers.Dense((c, c, 3, D), (D,), w_init=lecun, name="embedding")
        x = embedding("BPxyc,xycD->BPD", x.astype(self.dtype))
        x = x.astype(projections.residual_dtype(self.dtype))
        x += self.param("pos_embedding", _positions, (1, self.grid**2, D)).astype(x.dtype)
        x = layers.Dropout(self.dropout)(x)
        split = 1 if self.on is None else self.on.layout.num_rows
        how = (self.dtype, self.dropout, self.lora, self.kernel, split)
        block = Block(self.img, *how, name="blocks")
        run = layers.scan(
            lambda block, x: (block(x), None), depth=self.img.depth, remat=self.remat, on=self.on
        )
        x, _ = run(block, x)
        x = layers.LayerNorm(self.dtype, EPSILON, name="norm")(x)
        if is_doubled is not None:
            x = _join_squares(x, is_doubled, grid=self.grid)
        return Mlp(self.projection_dim, self.out_dim, self.lora, name="projection")(x)


Doubled = tuple[jax.Array, jax.Array]  # bool[B] each: whether an image is 2 squares high, wide


def _cut_squares(image: jax.Array, is_doubled: Doubled) -> jax.Array:
    """Returns the squares that are read, the whole first: [B, 2R, 2R, 3] -> [5B, R, R, 3].

    What is no image becomes squares too, which `_join_squares` leaves out.
    """
    B, R = len(image), image.shape[1] // 2
    squares = image.reshape(B, 2, R, 2, R, 3).swapaxes(2, 3).reshape(B, 4, R, R, 3)
    seen = jnp.concatenate([_shrink(image, is_doubled)[:, None], squares], axis=1)
    return seen.reshape(B * NUM_SEEN, R, R, 3)


def _join_squares(x: jax.Array, is_doubled: Doubled, *, grid: int) -> jax.Array:
    """Returns vectors of the whole beside those of its squares: [5B, P, D] -> [B, P, 2D]."""
    x = x.reshape(-1, NUM_SEEN, grid, grid, x.shape[-1])
    B, D = len(x), x.shape[-1]
    squares = x[:, 1:].reshape(B, 2, 2, grid, grid, D).swapaxes(2, 3)
    squares = _shrink(squares.reshape(B, 2 * grid, 2 * grid, D), is_doubled)
    return jnp.concatenate([x[:, 0], squares], axis=-1).reshape(B, grid**2, 2 * D)


def _shrink(x: jax.Array, is_doubled: Doubled) -> jax.Array:
    """Returns [B, S, S, c] of [B, 2S, 2S, c]: of two neighbours their mean where a side is doubled.

    That is what bilinear interpolation without antialias gives. Of another side it is the first S.
    """
    for axis, doubled in enumerate(is_doubled, 1):
        size = x.shape[axis] // 2
        pairs = x.reshape(*x.shape[:axis], size, 2, *x.shape[axis + 1 :]).mean(axis + 1)
        beginning = jax.lax.slice_in_dim(x, 0, size, axis=axis)
        x = jnp.where(doubled[:, None, None, None], pairs.astype(x.dtype), beginning)
    return x
