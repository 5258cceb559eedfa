"""Phi, text decoder (arXiv:2309.05463): embedded tokens in, hidden states out.

Attention and MLP read the same norm and are added side by side; positions rotate the beginning of
each head only; the head is no transpose of the embedding, and every layer has a bias.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from paligemma_jax.models.common import attention, layers, projections
from paligemma_jax.models.moondream import variants

KeyValue = tuple[jax.Array, jax.Array]
LookUp = Callable[..., jax.Array]

EPSILON = 1e-5
_normal = nn.initializers.normal(0.02)


def keep_own(k: jax.Array, v: jax.Array) -> KeyValue:
    """Queries see the keys and values of the same call: training and prefill."""
    return k, v


def _rotate_beginning(x: jax.Array, positions: jax.Array, count: int) -> jax.Array:
    """Returns [..., H] with the first `count` of H rotated."""
    rotated = attention.rotate(x[..., :count], positions)
    return jnp.concatenate([rotated, x[..., count:]], axis=-1)


class Attention(nn.Module):
    """Self-attention with rotary positions: [B, T, D] -> [B, T, D]."""

    llm: variants.Phi
    lora: layers.Lora | None = None
    kernel: str = "xla"
    split: int = 1

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        remember: Callable[[jax.Array, jax.Array], KeyValue],
    ) -> tuple[jax.Array, KeyValue]:
        """Returns [B, T, D], and the keys and values [B, N, S, H] that `remember` gave back."""
        D, N, H = self.llm.width, self.llm.num_heads, self.llm.head_dim
        fused = layers.Dense((D, 3, N, H), (3, N, H), _normal, lora=self.lora, name="qkv")
        parts = jnp.split(fused("BTD,DcNH->BTcNH", x), 3, axis=2)
        q, k, v = (part.squeeze(2) for part in parts)
        rotate = functools.partial(_rotate_beginning, count=self.llm.rotary_dim)
        q = rotate(q, positions[:, :, None]) * H**-0.5
        k = rotate(k.swapaxes(1, 2), positions[:, None, :])
        k, v = remember(k, v.swapaxes(1, 2))
        q, keys, values = (projections.narrow(y, x.dtype) for y in (q, k, v))
        x = attention.attend(q, keys, values, mask, kernel=self.kernel, split=self.split)
        out = layers.Dense((N, H, D), (D,), _normal, lora=self.lora, name="out")
        return out("BTNH,NHD->BTD", x), (k, v)


class Mlp(nn.Module):
    """Two dense layers with a tanh-approximated GELU between: [B, T, D] -> [B, T, D]."""

    llm: variants.Phi
    lora: layers.Lora | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D, F = self.llm.width, self.llm.mlp_dim
        fc1 = layers.Dense((D, F), (F,), _normal, lora=self.lora, name="fc1")
        y = projections.narrow(nn.gelu(fc1("BTD,DF->BTF", x), approximate=True), x.dtype)
        fc2 = layers.Dense((F, D), (D,), _normal, lora=self.lora, name="fc2")
        return fc2("BTF,FD->BTD", y)


class Block(nn.Module):
    """One norm, and behind it attention and MLP side by side.

    `split` is into how many parts rows are split over devices.
    """

    llm: variants.Phi
    dtype: DTypeLike = "float32"
    dropout: float = 0.0
    lora: layers.Lora | None = None
    kernel: str = "xla"
    split: int = 1

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        remember: Callable[[jax.Array, jax.Array], KeyValue] = keep_own,
    ) -> tuple[jax.Array, KeyValue]:
        """Returns [B, T, D] and what attention remembered."""
        drop = layers.Dropout(self.dropout)
        seen = layers.LayerNorm(self.dtype, EPSILON, name="norm")(x)
        attn = Attention(self.llm, self.lora, self.kernel, self.split, name="attn")
        y, kv = attn(seen, positions, mask, remember)
        return x + drop(y) + drop(Mlp(self.llm, self.lora, name="mlp")(seen)), kv


class Embedder(nn.Module):
    """The embedding table: token ids to vectors."""

    vocab_size: int
    width: int

    @nn.compact
    def __call__(self, ids: jax.Array, look_up: LookUp, *, dtype: DTypeLike) -> jax.Array:
        """int32[B, T] -> dtype[B, T, D]."""
        shape = self.vocab_size, self.width
        table = layers.declare(self, "input_embedding", _normal, shape)
        return look_up({"w": table}, ids, dtype=dtype)


class Head(nn.Module):
    """Hidden states to logits. The weight has a row for every piece, as the embedding has."""

    vocab_size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> float32[B, T, V]."""
        leaf = {
            "w": layers.declare(self, "kernel", _normal, (self.vocab_size, x.shape[-1])),
            "bias": self.param("bias", nn.initializers.zeros_init(), (self.vocab_size,)),
        }
        return projections.project(leaf, "BTD,VD->BTV", x, out_dtype=jnp.float32)


class Tower(nn.Module):
    """The language model.

    Attributes:
      llm: dimensions.
      vocab_size: rows of the embedding table and of the head.
      dtype: compute dtype.
      remat: see `layers.scan`.
      dropout: rate; above 0 a `dropout` rng is needed.
      lora: of the low-rank factors, if there are any.
      kernel: of attention, see `attention.attend`.
      on: where arrays lie on several devices.
    """

    llm: variants.Phi
    vocab_size: int
    dtype: DTypeLike = "float32"
    remat: str = "none"
    dropout: float = 0.0
    lora: layers.Lora | None = None
    kernel: str = "xla"
    on: layers.OnDevices | None = None

    def setup(self):
        self.embedder = Embedder(self.vocab_size, self.llm.width)
        split = 1 if self.on is None else self.on.layout.num_rows
        self.layers = Block(self.llm, self.dtype, self.dropout, self.lora, self.kernel, split)
        self.final_norm = layers.LayerNorm(self.dtype, EPSILON)
        self.head = Head(self.vocab_size)

    def embed(self, ids: jax.Array, look_up: LookUp = projections.look_up) -> jax.Array:
        """int32[B, T] -> [B, T, D], the beginning of the residual stream."""
        return self.embedder(ids, look_up, dtype=projections.residual_dtype(self.dtype))

    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns hidden states after the final norm.

        Args:
          x: [B, T, D] as `embed` returns it.
          positions: int32[B, T].
          mask: bool[B, T, T].
        """
        x, _ = self._scan(lambda block, x: (block(x, positions, mask)[0], None))(self.layers, x)
        return self.final_norm(x)

    def prefill(self, x: jax.Array, positions: jax.Array, mask: jax.Array):
        """As `__call__`, and also returns every layer's keys and values, [L, B, N, T, H] each."""
        x, kv = self._scan(lambda block, x: block(x, positions, mask))(self.layers, x)
        return self.final_norm(x), kv

    def norm(self, x: jax.Array) -> jax.Array:
        """The final norm alone: [B, T, D] -> the same."""
        return self.final_norm(x)

    def logits(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> float32[B, T, V]."""
        return self.head(x)

    def _scan(self, body: Callable[..., Any]) -> Callable[..., Any]:
        return layers.scan(body, depth=self.llm.depth, remat=self.remat, on=self.on)


def unroll(
    params: Mapping[str, Any],
    x: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    remember: Callable[[int, jax.Array, jax.Array], KeyValue],
    *,
    llm: variants.Phi,
    dtype: DTypeLike,
    lora: layers.Lora | None,
    on: layers.OnDevices | None = None,
) -> tuple[jax.Array, list[KeyValue]]:
    """Runs all blocks by `layers.unroll`, for decoding.

    Args:
      params: nested parameters of `layers`: per layer under "0", "1", ..., else stacked.
      x: [B, T, D].
      positions: int32[B, T].
      mask: bool[B, T, S].
      remember: (layer, k, v) -> the keys and values [B, N, S, H] that this layer's queries see.
      llm: dimensions.
      dtype: compute dtype.
      lora: of the low-rank factors, if there are any.
      on: where arrays lie on several devices.

    Returns:
      [B, T, D] before the final norm, and what each layer remembered.
    """
    split = 1 if on is None else on.layout.num_rows
    tower = Block(llm, dtype, lora=lora, split=split)

    def run(block: Any, x: jax.Array, layer: int) -> Any:
        keep = functools.partial(remember, layer)
        return tower.apply({"params": block}, x, positions, mask, keep)

    return layers.unroll(run, params, x, depth=llm.depth, on=on)
