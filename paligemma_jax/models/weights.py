"""The one place where a weight meets an activation.

Both towers send every matrix product through `project`. A leaf is a small dictionary that the linen
module declares: the weight `w` and perhaps its `bias`. The activation decides the arithmetic: a
weight stored in 16 bits is cast here, at use, so a scan over layers casts one layer at a time.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Leaf = Mapping[str, jax.Array]


def project(leaf: Leaf, eqn: str, x: jax.Array, *, out_dtype: DTypeLike | None = None) -> jax.Array:
    """Returns `einsum(eqn, x, w) + bias` in the dtype of `x`.

    Args:
      leaf: `w`, and optionally `bias`, which broadcasts against the result.
      eqn: einsum equation of (x, w), letters as in CONVENTIONS: "BTD,NDH->BTNH".
      x: activation; its dtype is the compute dtype.
      out_dtype: dtype to accumulate and return in; the dtype of `x` if not given.
    """
    out_dtype = out_dtype or x.dtype
    y = jnp.einsum(eqn, x, leaf["w"].astype(x.dtype), preferred_element_type=out_dtype)
    if "bias" in leaf:
        y += leaf["bias"].astype(out_dtype)
    return y


def look_up(leaf: Leaf, ids: jax.Array, *, dtype: DTypeLike) -> jax.Array:
    """Returns the rows `ids` of an embedding table as `dtype`: int32[...] -> dtype[..., D]."""
    return jnp.take(leaf["w"], ids, axis=0, mode="clip").astype(dtype)
