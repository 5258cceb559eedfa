"""Linen layers that both towers use. Parameter names are big_vision's and are a public format."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from paligemma_jax.models import weights

Initializer = nn.initializers.Initializer

# "none", or the names in `jax.checkpoint_policies` that need no further argument.
REMAT = (
    "none",
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "everything_saveable",
)


class Einsum(nn.Module):
    """A weight `w` without bias."""

    shape: tuple[int, ...]
    w_init: Initializer

    @nn.compact
    def __call__(self, eqn: str, x: jax.Array) -> jax.Array:
        return weights.project({"w": self.param("w", self.w_init, self.shape)}, eqn, x)


class Dense(nn.Module):
    """A weight `kernel` and a `bias`."""

    shape: tuple[int, ...]
    bias_shape: tuple[int, ...]
    w_init: Initializer
    bias_init: Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, eqn: str, x: jax.Array) -> jax.Array:
        leaf = {
            "w": self.param("kernel", self.w_init, self.shape),
            "bias": self.param("bias", self.bias_init, self.bias_shape),
        }
        return weights.project(leaf, eqn, x)


class RMSNorm(nn.Module):
    """Gemma's norm: x / rms(x) * (1 + scale), in float32, returned in the dtype of x."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros_init(), (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        x32 *= jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)
        return (x32 * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)


class LayerNorm(nn.Module):
    """SigLIP's norm with `scale` and `bias`, in float32, returned in the dtype of x."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (D,)).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (D,)).astype(jnp.float32)
        x32 = x.astype(jnp.float32)
        x32 -= jnp.mean(x32, axis=-1, keepdims=True)
        x32 *= jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)
        return (x32 * scale + bias).astype(x.dtype)


class Dropout(nn.Module):
    """Zeroes each value with probability `rate`; the rng collection is `dropout`. Rate 0 is off."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dropout(self.rate, deterministic=not self.rate, name="drop")(x)


def scan(body: Callable[..., Any], *, depth: int, remat: str) -> Callable[..., Any]:
    """Returns `body(block, carry) -> (carry, y)` run `depth` times over stacked parameters.

    Args:
      body: a function of one linen module and the carry.
      depth: number of layers (L), the leading axis of every parameter below the module.
      remat: one of `REMAT`, what the backward pass may keep of a layer; "none" keeps everything.
    """
    check_remat(remat)
    if remat != "none":
        policy = getattr(jax.checkpoint_policies, remat)
        body = nn.remat(body, prevent_cse=False, policy=policy)
    return nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=depth,
    )


def check_remat(name: str) -> None:
    """Raises a ValueError that lists the known names if this is none of them."""
    if name not in REMAT:
        raise ValueError(f"remat: no policy named '{name}'; choose one of {REMAT}")
