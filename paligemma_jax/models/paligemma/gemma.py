"""Gemma 1 and 2, text decoder: embedded tokens in, hidden states out.

Letters in einsums: B batch, T query length, S key length, D width, F mlp width, N heads,
K kv heads, H head size, V vocabulary. Names and numbers follow big_vision's `models/ppp/gemma.py`
(no sliding window: every layer attends over all positions).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from paligemma_jax.models.common import attention, layers, projections
from paligemma_jax.models.paligemma import variants

KeyValue = tuple[jax.Array, jax.Array]
LookUp = Callable[..., jax.Array]

# The MLP makes at most so many values of its inner width at a time, but of so many tokens at least.
MLP_VALUES, MLP_TOKENS = 2**23, 32


def _truncated_normal(*, in_axis: tuple[int, ...], out_axis: tuple[int, ...]):
    return nn.initializers.variance_scaling(
        1.0, "fan_in", "truncated_normal", in_axis=in_axis, out_axis=out_axis
    )


def keep_own(k: jax.Array, v: jax.Array) -> KeyValue:
    """Queries see the keys and values of the same call: training and prefill."""
    return k, v


class Attention(nn.Module):
    """Self-attention with rotary positions and grouped heads."""

    llm: variants.Gemma
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
        """Returns [B, T, D], and the keys and values [B, K, S, H] that `remember` gave back."""
        llm = self.llm
        q, k, v = self._project_qkv(x)
        q = attention.rotate(q, positions[:, :, None]) * _query_scale(llm)
        k, v = remember(attention.rotate(k, positions[:, None, :]), v)
        q, keys, values = (projections.narrow(y, x.dtype) for y in (q, k, v))
        how: Any = {"softcap": llm.attn_logits_softcap, "kernel": self.kernel, "split": self.split}
        x = attention.attend(q, keys, values, mask, **how)
        out = layers.Einsum(
            (llm.num_heads, llm.head_dim, llm.width),
            w_init=_truncated_normal(in_axis=(0, 1), out_axis=(2,)),
            lora=self.lora,
            name="attn_vec_einsum",
        )
        return out("BTNH,NHD->BTD", x), (k, v)

    def _project_qkv(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, T, D] -> queries [B, T, N, H], keys and values [B, K, T, H]."""
        llm = self.llm
        N, K, D, H = llm.num_heads, llm.num_kv_heads, llm.width, llm.head_dim
        stacked = _truncated_normal(in_axis=(2,), out_axis=(0, 1, 3))
        if K == N:
            qkv = layers.Einsum((3, N, D, H), stacked, self.lora, name="qkv_einsum")
            q, k, v = projections.split(qkv("BTD,3KDH->3BKTH", x))
            return q.swapaxes(1, 2), k, v
        single = _truncated_normal(in_axis=(1,), out_axis=(0, 2))
        q = layers.Einsum((N, D, H), single, self.lora, name="q_einsum")("BTD,NDH->BTNH", x)
        kv = layers.Einsum((2, K, D, H), stacked, self.lora, name="kv_einsum")
        k, v = projections.split(kv("BTD,2KDH->2BKTH", x))
        return q, k, v


class FeedForward(nn.Module):
    """Gated MLP, gelu(x W0) * (x W1) W2: [B, T, D] -> [B, T, D]."""

    llm: variants.Gemma
    lora: layers.Lora | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D, F = self.llm.width, self.llm.mlp_dim
        stacked = _truncated_normal(in_axis=(1,), out_axis=(0, 2))
        gating = layers.declare(self, "gating_einsum", stacked, (2, D, F))
        single = _truncated_normal(in_axis=(0,), out_axis=(1,))
        linear = layers.declare(self, "linear", single, (F, D))
        project = functools.partial(layers.project, self, lora=self.lora)
        gate, up = projections.split(project("gating_einsum", {"w": gating}, "BTD,2DF->2BTF", x))
        inner = projections.narrow(nn.gelu(gate) * up, x.dtype)
        return project("linear", {"w": linear}, "BTF,FD->BTD", inner)


class Block(nn.Module):
    """Transformer block; Gemma 2 also normalizes behind attention and MLP.

    With `in_pieces` long texts go through the MLP some tokens at a time, in the backward pass too:
    its inner values, eight times the width, then do not exist for all tokens at once. `split` is
    into how many parts rows are split over devices: what counts is what one of them holds.
    """

    llm: variants.Gemma
    dtype: DTypeLike = "float32"
    dropout: float = 0.0
    lora: layers.Lora | None = None
    in_pieces: bool = False
    kernel: str = "xla"
    split: int = 1

    def setup(self):
        self.pre_attention_norm = layers.RMSNorm(self.dtype)
        self.attn = Attention(self.llm, self.lora, self.kernel, self.split)
        self.pre_ffw_norm = layers.RMSNorm(self.dtype)
        self.mlp = FeedForward(self.llm, self.lora)
        if self.llm.post_norms:
            self.post_attention_norm, self.post_ffw_norm = layers.RMSNorm(), layers.RMSNorm()
        self.drop = layers.Dropout(self.dropout)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        mask: jax.Array,
        remember: Callable[[jax.Array, jax.Array], KeyValue] = keep_own,
    ) -> tuple[jax.Array, KeyValue]:
        """Returns [B, T, D] and what attention remembered."""
        y, kv = self.attn(self.pre_attention_norm(x), positions, mask, remember)
        if self.llm.post_norms:
            y = self.post_attention_norm(y)
        x += self.drop(y)
        B, *rest = x.shape
        on_one_device = (-(-B // self.split), *rest)
        count = _count_pieces(on_one_device, self.llm.mlp_dim) if self.in_pieces else 1
        return (self.add_mlp(x) if count == 1 else self._add_mlp_in_pieces(x, count)), kv

    def add_mlp(self, x: jax.Array) -> jax.Array:
        """Adds to [B, T, D] what the MLP makes of it."""
        y = self.mlp(self.pre_ffw_norm(x))
        if self.llm.post_norms:
            y = self.post_ffw_norm(y)
        return x + self.drop(y)

    def _add_mlp_in_pieces(self, x: jax.Array, count: int) -> jax.Array:
        B, T, D = x.shape
        pieces = jnp.pad(x, ((0, 0), (0, -T % count), (0, 0))).reshape(B, count, -1, D)
        # A loop, because a compiler may compute independent pieces side by side.
        add = nn.scan(
            nn.remat(lambda block, _, piece: (None, block.add_mlp(piece)), prevent_cse=False),
            variable_broadcast="params",
            split_rngs={"params": False, "dropout": True},
            in_axes=1,
            out_axes=1,
        )
        return add(self, None, pieces)[1].reshape(B, -1, D)[:, :T]


class Embedder(nn.Module):
    """The tied embedding table: token ids to vectors, hidden states to logits."""

    vocab_size: int
    width: int

    def setup(self):
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0)
        shape = self.vocab_size, self.width
        self.input_embedding = layers.declare(self, "input_embedding", init, shape)

    def encode(self, ids: jax.Array, look_up: LookUp, *, dtype: DTypeLike) -> jax.Array:
        """int32[B, T] -> dtype[B, T, D], scaled by sqrt(D)."""
        x = look_up({"w": self.input_embedding}, ids, dtype=dtype)
        return x * jnp.asarray(self.width**0.5, dtype)

    def decode(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> float32[B, T, V]."""
        return projections.project(
            {"w": self.input_embedding}, "BTD,VD->BTV", x, out_dtype=jnp.float32
        )


class Tower(nn.Module):
    """The language model.

    Attributes:
      llm: dimensions.
      vocab_size: rows of the embedding table.
      dtype: compute dtype.
      remat: see `layers.scan`.
      dropout: rate; above 0 a `dropout` rng is needed.
      lora: of the low-rank factors, if there are any.
      kernel: of attention, see `attention.attend`.
      on: where arrays lie on several devices.
    """

    llm: variants.Gemma
    vocab_size: int
    dtype: DTypeLike = "float32"
    remat: str = "none"
    dropout: float = 0.0
    lora: layers.Lora | None = None
    kernel: str = "xla"
    on: layers.OnDevices | None = None

    def setup(self):
        self.embedder = Embedder(self.vocab_size, self.llm.width)
        in_pieces = self.remat in ("nothing_saveable", layers.SEGMENTS)
        split = 1 if self.on is None else self.on.layout.num_rows
        how = (self.dtype, self.dropout, self.lora, in_pieces, self.kernel, split)
        self.layers = Block(self.llm, *how)
        self.final_norm = layers.RMSNorm(self.dtype)

    def embed(self, ids: jax.Array, look_up: LookUp = projections.look_up) -> jax.Array:
        """int32[B, T] -> [B, T, D], the beginning of the residual stream."""
        return self.embedder.encode(ids, look_up, dtype=projections.residual_dtype(self.dtype))

    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns hidden states after the final norm.

        Args:
          x: [B, T, D] as `embed` returns it.
          positions: int32[B, T].
          mask: bool[B, T, T].
        """

        def body(block: Block, x: jax.Array):
            return block(x, positions, mask)[0], None

        x, _ = layers.scan(body, depth=self.llm.depth, remat=self.remat, on=self.on)(self.layers, x)
        return self.final_norm(x)

    def prefill(self, x: jax.Array, positions: jax.Array, mask: jax.Array):
        """As `__call__`, and also returns every layer's keys and values, [L, B, K, T, H] each."""

        def body(block: Block, x: jax.Array):
            return block(x, positions, mask)

        x, kv = layers.scan(body, depth=self.llm.depth, remat=self.remat, on=self.on)(
            self.layers, x
        )
        return self.final_norm(x), kv

    def norm(self, x: jax.Array) -> jax.Array:
        """The final norm alone: [B, T, D] -> the same."""
        return self.final_norm(x)

    def logits(self, x: jax.Array) -> jax.Array:
        """[B, T, D] -> float32[B, T, V], with the final soft-cap if the model has one."""
        logits = self.embedder.decode(x)
        if cap := self.llm.final_logits_softcap:
            logits = jnp.tanh(logits / cap) * cap
        return logits


def unroll(
    params: Mapping[str, Any],
    x: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    remember: Callable[[int, jax.Array, jax.Array], KeyValue],
    *,
    llm: variants.Gemma,
    dtype: DTypeLike,
    lora: layers.Lora | None,
    on: layers.OnDevices | None = None,
) -> tuple[jax.Array, list[KeyValue]]:
    """Runs all blocks one after the other, without a scan, which copies weights out of the stack.

    Args:
      params: nested parameters of `layers`: per layer under "0", "1", ..., else stacked.
      x: [B, T, D].
      positions: int32[B, T].
      mask: bool[B, T, S].
      remember: (layer, k, v) -> the keys and values [B, K, S, H] that this layer's queries see.
      llm: dimensions.
      dtype: compute dtype.
      lora: of the low-rank factors, if there are any.
      on: where arrays lie on several devices.

    Returns:
      [B, T, D] before the final norm, and what each layer remembered.
    """
    split = 1 if on is None else on.layout.num_rows

    def run(block: Any, x: jax.Array, layer: int) -> Any:
        keep = functools.partial(remember, layer)
        tower = Block(llm, dtype, lora=lora, split=split)
        return tower.apply({"params": block}, x, positions, mask, keep)

    return layers.unroll(run, params, x, depth=llm.depth, on=on)


def _count_pieces(shape: tuple[int, ...], F: int) -> int:
    """Returns into how many pieces to cut [B, T, D] along T for the MLP."""
    B, T, _ = shape
    return max(1, min(-(-B * T * F // MLP_VALUES), T // MLP_TOKENS))


def _query_scale(llm: variants.Gemma) -> float:
    per_head = {"head_dim": llm.head_dim, "width_per_head": llm.width // llm.num_heads}
    return per_head[llm.query_scale] ** -0.5
