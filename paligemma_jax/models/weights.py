"""The one place where a weight meets an activation.

Both towers send every matrix product through `project`. A leaf is a small dictionary that the linen
module declares: the weight `w` and perhaps its `bias`. The activation decides the arithmetic: a
weight stored in 16 bits is cast here, at use, so a scan over layers casts one layer at a time.
"""

import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Leaf = Mapping[str, jax.Array]


def project(leaf: Leaf, eqn: str, x: jax.Array, *, out_dtype: DTypeLike | None = None) -> jax.Array:
    """Returns `einsum(eqn, x, w) + bias` in the dtype of `x`.

    Args:
      leaf: `w`, and optionally `bias`, which broadcasts against the result.
      eqn: einsum equation of (x, w), letters as in CONVENTIONS: "BTD,NDH->BTNH". A leading digit
        of the weight and the result says that so many weights are stored as one array, and is
        axis 0 of the result: "BTD,2DF->2BTF".
      x: activation [B, T, ...]; its dtype is the compute dtype.
      out_dtype: dtype to accumulate and return in; the dtype of `x` if not given.
    """
    out_dtype = out_dtype or x.dtype
    w = leaf["w"].astype(x.dtype)
    if x.shape[1] == 1:
        y = _einsum(*_spread(eqn, x, w), w, out_dtype)
    elif eqn.split(",")[1][0].isdigit():
        single = re.sub(r"\d", "", eqn)
        y = jnp.stack([_einsum(single, x, part, out_dtype) for part in w])
    else:
        y = _einsum(eqn, x, w, out_dtype)
    if "bias" in leaf:
        y += leaf["bias"].astype(out_dtype)
    return y


def look_up(leaf: Leaf, ids: jax.Array, *, dtype: DTypeLike) -> jax.Array:
    """Returns the rows `ids` of an embedding table as `dtype`: int32[...] -> dtype[..., D]."""
    return jnp.take(leaf["w"], ids, axis=0, mode="clip").astype(dtype)


def _spread(eqn: str, x: jax.Array, w: jax.Array) -> tuple[str, jax.Array]:
    """Repeats a single token along the weight's leading free letters, making them batch letters.

    "BTD,NDH->BTNH" contracts a middle axis, for which the compiler first transposes the weight. At
    one token per row that costs as much as the product; repeating the token costs nothing. A last
    axis, as in "BTD,VD->BTV", is contracted as it lies.
    """
    x_letters, w_letters, _ = _letters(eqn)
    if w_letters[-1] in x_letters:
        return eqn, x
    first = min(w_letters.index(letter) for letter in w_letters if letter in x_letters)
    return w_letters[:first] + eqn, jnp.broadcast_to(x, w.shape[:first] + x.shape)


def _einsum(eqn: str, x: jax.Array, w: jax.Array, dtype: DTypeLike) -> jax.Array:
    """As `jnp.einsum(eqn, x, w)`, and never gives the compiler a reason to transpose the weight.

    `jnp.einsum` contracts letters in alphabetical order, so they are renamed to the order they have
    in the weight; and what must be transposed for the result is the product, not the operands.
    """
    x_letters, w_letters, y_letters = _letters(eqn)
    rows = x_letters[:2]
    if y_letters.startswith(rows) and not set(rows) & set(w_letters):
        # Rows and tokens as one axis: with two, gradients of weights take twice as long on a CPU.
        flat = f"{x_letters[1:]},{w_letters}->{y_letters.removeprefix(rows[0])}"
        y = _einsum_flat(flat, x.reshape(-1, *x.shape[2:]), w, dtype)
        return y.reshape(*x.shape[:2], *y.shape[1:])
    return _einsum_flat(eqn, x, w, dtype)


def _einsum_flat(eqn: str, x: jax.Array, w: jax.Array, dtype: DTypeLike) -> jax.Array:
    x_letters, w_letters, y_letters = _letters(eqn)
    batch = [letter for letter in x_letters if letter in w_letters and letter in y_letters]
    free = [
        letter for letter in x_letters + w_letters if letter in y_letters and letter not in batch
    ]
    product = "".join(batch + free)
    renamed = {
        ord(old): chr(ord("a") + i) for i, old in enumerate(dict.fromkeys(w_letters + x_letters))
    }
    contract = f"{x_letters},{w_letters}->{product}".translate(renamed)
    y = jnp.einsum(contract, x, w, preferred_element_type=dtype)
    return y.transpose([product.index(letter) for letter in y_letters])


def _letters(eqn: str) -> tuple[str, str, str]:
    operands, y = eqn.split("->")
    x, w = operands.split(",")
    return x, w, y
