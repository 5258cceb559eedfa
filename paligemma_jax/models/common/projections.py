"""The one place where a weight meets an activation, and what 16 bits need there.

Both towers send every matrix product through `project`. A leaf is a small dictionary that the linen
module declares: the weight `w`, perhaps its `bias`, and perhaps the low-rank factors beside it. The
activation decides the arithmetic: a weight stored in 16 bits is cast here, at use, so a scan over
layers casts one layer at a time. A quantized one is decoded here, a piece at a time where it is
large, and decoded again for the gradient of what it is multiplied with; it has none itself.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from paligemma_jax.models.common import quantize

# Arrays; the weight may be `quantize.Quantized`.
Leaf = Mapping[str, Any]

# A quantized weight above this size is decoded in pieces of at most so many bytes, where it can be.
PIECE_BYTES = 2**26


def project(
    leaf: Leaf,
    eqn: str,
    x: jax.Array,
    *,
    lora_x: jax.Array | None = None,
    out_dtype: DTypeLike | None = None,
) -> jax.Array:
    """Returns `einsum(eqn, x, w) + bias + lora_x A B`.

    Args:
      leaf: `w`; optionally `bias`, which broadcasts against the result; optionally the factors A
        and B as `lora_a` and `lora_b`, with the axes of `factor_letters`.
      eqn: einsum equation of (x, w), letters as in CONVENTIONS: "BTD,NDH->BTNH". A leading digit
        of the weight and the result says that so many weights are stored as one array, and is
        axis 0 of the result: "BTD,2DF->2BTF".
      x: activation [B, T, ...]; its dtype is the compute dtype.
      lora_x: what the factors see in place of `x`: the same after their dropout.
      out_dtype: dtype to accumulate and return in; the dtype of `x` if not given, and float32 for
        float16 in any case.
    """
    dtype = result_dtype(out_dtype or x.dtype)
    w = leaf["w"]
    y: Any
    if isinstance(w, quantize.Quantized):
        y = _decoded_product(eqn, (x.shape, x.dtype), dtype, x, w)
    else:
        y = _product(eqn, x, w if is_half(x.dtype) else w.astype(x.dtype), dtype)
    if "bias" in leaf:
        y += leaf["bias"].astype(dtype)
    if "lora_a" in leaf:
        y += _project_low_rank(leaf, eqn, x if lora_x is None else lora_x, dtype)
    return y


def factor_letters(eqn: str) -> tuple[str, str]:
    """Returns the axes of the factors A and B whose product has the axes of the weight in `eqn`.

    A has the axes that are contracted, B those that are new, and r, the rank, joins them:
    "BTD,NDH->BTNH" has ("Dr", "rNH"). Each of several weights in one array has factors of its own:
    "BTD,2DF->2BTF" has ("2Dr", "2rF").
    """
    x, w, _ = _letters(eqn)
    stacked = "".join(letter for letter in w if letter.isdigit())
    contracted = "".join(letter for letter in w if letter in x)
    new = "".join(letter for letter in w if letter not in x + stacked)
    return f"{stacked}{contracted}r", f"{stacked}r{new}"


def split(y: jax.Array) -> list[jax.Array]:
    """Returns what each of several weights in one array gave: [n, ...] -> n times [...].

    The gradient of an index is padded to the size of all of them, that of a split is not.
    """
    return [part.squeeze(0) for part in jnp.split(y, len(y))]


def look_up(leaf: Leaf, ids: jax.Array, *, dtype: DTypeLike) -> jax.Array:
    """Returns the rows `ids` of an embedding table as `dtype`: int32[...] -> dtype[..., D]."""
    w = leaf["w"]
    if isinstance(w, quantize.Quantized):
        return w.take(ids, dtype=dtype)
    return jnp.take(w, ids, axis=0, mode="clip").astype(dtype)


def look_up_each(leaf: Leaf, ids: jax.Array, *, dtype: DTypeLike) -> jax.Array:
    """As `look_up`, one row after the other: for few ids, and a table that is on one device.

    A compiler for CPUs takes several rows at once for a use of the whole table. One that splits the
    table over devices would bring all of it to each of them for a row.
    """
    w = leaf["w"]
    if isinstance(w, quantize.Quantized):
        return look_up(leaf, ids, dtype=dtype)
    take = functools.partial(jax.lax.dynamic_slice_in_dim, w, allow_negative_indices=False)
    rows = [take(row, 1) for row in ids.ravel()]
    return jnp.concatenate(rows).reshape(*ids.shape, -1).astype(dtype)


def _product(eqn: str, x: jax.Array, w: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns `einsum(eqn, x, w)`, by the way that suits the number of tokens and weights."""
    if x.shape[1] == 1:
        return _einsum(*_spread(eqn, x, w), w, dtype)
    if eqn.split(",")[1][0].isdigit():
        single = re.sub(r"\d", "", eqn)
        return jnp.stack([_einsum(single, x, part, dtype) for part in w])
    return _einsum(eqn, x, w, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _decoded_product(
    eqn: str, like: tuple[Any, Any], dtype: DTypeLike, x: jax.Array, w: quantize.Quantized
) -> jax.Array:
    """As `_product` of a quantized weight. `like`: shape and dtype of x, for the gradient."""
    del like
    product = functools.partial(_product, eqn, dtype=dtype)
    rows = _rows_at_a_time(eqn, w, x.dtype)
    if rows is None:
        return product(x, w.astype(x.dtype))
    axis = _letters(eqn)[2].index(_letters(eqn)[1][0])
    whole = jax.eval_shape(product, x, jax.ShapeDtypeStruct(w.shape, x.dtype))

    def fill(y: jax.Array, start: Any, piece: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(y, product(x, piece), start, axis)

    return _over_pieces(fill, jnp.zeros(whole.shape, dtype), w, rows, x.dtype)


def _decoded_forward(
    eqn: str, like: tuple[Any, Any], dtype: DTypeLike, x: jax.Array, w: quantize.Quantized
) -> tuple[jax.Array, quantize.Quantized]:
    y: Any = _decoded_product(eqn, like, dtype, x, w)
    return y, w


def _decoded_backward(
    eqn: str, like: tuple[Any, Any], dtype: DTypeLike, w: quantize.Quantized, dy: jax.Array
) -> tuple[jax.Array, None]:
    """Returns the gradient of x. The sum over pieces is taken in float32."""
    x = jax.ShapeDtypeStruct(*like)

    def pull(dy: jax.Array, piece: jax.Array) -> jax.Array:
        zeros = jnp.zeros(x.shape, x.dtype)  # the product is linear: any x has this gradient
        return jax.vjp(lambda x: _product(eqn, x, piece, dtype), zeros)[1](dy)[0]

    rows = _rows_at_a_time(eqn, w, x.dtype)
    if rows is None:
        return pull(dy, w.astype(x.dtype)), None
    axis = _letters(eqn)[2].index(_letters(eqn)[1][0])

    def add(dx: jax.Array, start: Any, piece: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(dy, start, len(piece), axis)
        return dx + pull(part, piece)

    dx = _over_pieces(add, jnp.zeros(x.shape, jnp.float32), w, rows, x.dtype)
    return dx.astype(x.dtype), None


_decoded_product.defvjp(_decoded_forward, _decoded_backward)


def _rows_at_a_time(eqn: str, w: quantize.Quantized, dtype: DTypeLike) -> int | None:
    """Returns how many rows, along its first letter, a piece of a weight has; None: it is whole.

    It stays whole if it is small, or if its first letter is contracted or cuts blocks.
    """
    x_letters, w_letters, _ = _letters(eqn)
    num_bytes = w.size * jnp.dtype(dtype).itemsize
    if num_bytes <= PIECE_BYTES or w_letters[0] in x_letters or not w.has_whole_rows:
        return None
    return max(1, PIECE_BYTES * w.shape[0] // num_bytes)


def _over_pieces(
    body: Callable[..., jax.Array],
    result: jax.Array,
    w: quantize.Quantized,
    rows: int,
    dtype: DTypeLike,
) -> jax.Array:
    """Returns the result after `body(result, start, piece)` for each piece of a weight in turn."""
    count, rest = divmod(w.shape[0], rows)

    def step(i: jax.Array, result: jax.Array) -> jax.Array:
        return body(result, i * rows, w.rows(i * rows, rows, dtype=dtype))

    result = jax.lax.fori_loop(0, count, step, result)
    if rest:
        result = body(result, count * rows, w.rows(count * rows, rest, dtype=dtype))
    return result


def _project_low_rank(leaf: Leaf, eqn: str, x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Returns `x A B` by two thin products: nothing of the weight's size is made."""
    a, b = leaf["lora_a"], leaf["lora_b"]
    if not is_half(x.dtype):
        a, b = a.astype(x.dtype), b.astype(x.dtype)
    is_stacked = eqn.split(",")[1][0].isdigit()
    single = re.sub(r"\d", "", eqn)
    x_letters, _, y_letters = _letters(single)
    a_letters, b_letters = factor_letters(single)
    thin = "".join(letter for letter in x_letters if letter not in a_letters) + "r"

    def chain(a: jax.Array, b: jax.Array) -> jax.Array:
        inner = _einsum(f"{x_letters},{a_letters}->{thin}", x, a, x.dtype)
        inner = narrow(inner, x.dtype)
        return _einsum(f"{thin},{b_letters}->{y_letters}", inner, b, dtype)

    return (
        jnp.stack([chain(*pair) for pair in zip(a, b, strict=True)]) if is_stacked else chain(a, b)
    )


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
    y = multiply(contract, x, w, dtype)
    return y.transpose([product.index(letter) for letter in y_letters])


def _letters(eqn: str) -> tuple[str, str, str]:
    operands, y = eqn.split("->")
    x, w = operands.split(",")
    return x, w, y


# What 16 bits need: a residual stream in float32, and with float16 numbers that stay finite.
#
# Each layer adds a little to the residual stream, and in bfloat16 much of that would be rounded
# away.
#
# With float16 only the operands of matrix products are float16. Results are float32: Gemma's grow
# beyond 65,504, where float16 ends. What is narrowed to be an operand again is cut at that number,
# forwards and backwards. Gradients are small instead: the loss is multiplied by LOSS_SCALES before
# they are taken, and they are divided by it, a power of two, afterwards.

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


def multiply(eqn: str, x: jax.Array, w: jax.Array, dtype: DTypeLike) -> jax.Array:
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


def _einsum_forward(
    eqn: str, x: jax.Array, w: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return einsum(eqn, x, w), (x, w)


def _einsum_backward(
    eqn: str, kept: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    operands, y_letters = eqn.split("->")
    x_letters, w_letters = operands.split(",")
    dx: Any = einsum(f"{y_letters},{w_letters}->{x_letters}", dy, w)
    dw: Any = einsum(f"{x_letters},{y_letters}->{w_letters}", x, dy)
    return narrow(dx, x.dtype), narrow(dw, w.dtype)


einsum.defvjp(_einsum_forward, _einsum_backward)
