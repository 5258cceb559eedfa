"""What 16 bits need: a residual stream in float32, and with float16 numbers that stay finite.

Each layer adds a little to the residual stream, and in bfloat16 much of that would be rounded away.

With float16 only the operands of matrix products are float16. Results are float32: Gemma's grow
beyond 65,504, where float16 ends. What is narrowed to be an operand again is cut at that number,
forwards and backwards. Gradients are small instead: the loss is multiplied by LOSS_SCALES before
they are taken, and they are divided by it, a power of two, afterwards.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

DTYPES = ("float32", "bfloat16", "float16")
LARGEST = 65_504.0
# Of 2**12, eight examples' mean leaves 50 for the gradient of a logit, and 1e-9 is not lost yet.
LOSS_SCALES = {"float32": 1.0, "bfloat16": 1.0, "float16": 2.0**12}


def result_dtype(dtype: DTypeLike) -> Any:
    """Returns the dtype of a matrix product of operands of this dtype."""
    return jnp.dtype(jnp.float32 if is_half(dtype) else dtype)


def residual_dtype(dtype: DTypeLike) -> Any:
    """Returns the dtype of the residual stream: float32 or wider."""
    return jnp.promote_types(dtype, jnp.float32)


def is_half(dtype: DTypeLike) -> bool:
    """Returns whether this is float16, whose range is narrow."""
    return jnp.dtype(dtype) == jnp.float16


def narrow(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns `x` as `dtype`; what is beyond float16 becomes its largest number."""
    if is_half(dtype) and not is_half(x.dtype):
        x = jnp.clip(x, -LARGEST, LARGEST)
    return x.astype(dtype)


def product(eqn: str, x: jax.Array, w: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns `jnp.einsum(eqn, x, w)` as `dtype`, accumulated so; of float16, as float32."""
    if is_half(x.dtype):
        return einsum(eqn, x, w)
    return jnp.einsum(eqn, x, w, preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum(eqn: str, x: jax.Array, w: jax.Array) -> jax.Array:
    """Returns `jnp.einsum(eqn, x, w)` as float32, both narrowed to float16; gradients likewise.

    Every letter of an operand is in the other one or in the result.
    """
    x, w = narrow(x, jnp.float16), narrow(w, jnp.float16)
    return jnp.einsum(eqn, x, w, preferred_element_type=jnp.float32)


def _forward(eqn: str, x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return einsum(eqn, x, w), (x, w)


def _backward(
    eqn: str, kept: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    operands, y_letters = eqn.split("->")
    x_letters, w_letters = operands.split(",")
    dx: Any = einsum(f"{y_letters},{w_letters}->{x_letters}", dy, w)
    dw: Any = einsum(f"{x_letters},{y_letters}->{w_letters}", x, dy)
    return narrow(dx, x.dtype), narrow(dw, w.dtype)


einsum.defvjp(_forward, _backward)
