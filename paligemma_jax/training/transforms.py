"""Transformations of gradients that optax has not, or not as others have them.

* Adafactor and momentum as big_vision has them.
* Adam with its state in 8 bits as bitsandbytes has it: each moment is a code of one byte a number,
  into a table of 256 values that are denser near zero, and the greatest of every 256 numbers in a
  row, in float32 (arXiv:2110.02861). An array of fewer than 4096 numbers, and every bias and norm,
  keeps its moments in float32. Paged, codes lie in the memory of the host between updates.
* A moving average of the trainable parameters: often better than the last ones, never noisier. It
  lives in the optimizer's state, so that it is placed, saved and resumed with it.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

HOST = "pinned_host"  # a kind of memory, as jax calls it
BLOCK, LEAST = 256, 4096  # numbers with a greatest one of their own; of arrays in 8 bits
# Moments of so many numbers are updated layer by layer: in float32 they are not there all at once.
MANY = 2**26
DECAY = "ema_decay"  # among the values of an update, see `optimizer`


def adafactor(
    min_dim_size_to_factor: int = 32,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    beta2_cap: float = 0.999,
    clipping_threshold: float | None = None,
    momentum: float | None = 0.9,
    dtype_momentum: Any = "bfloat16",
    eps: float = 1e-30,
) -> optax.GradientTransformation:
    """Adafactor as big_vision has it: a capped second moment, 16-bit momentum, no relative step.

    The decay of update t = 1, 2, ... is min(beta2_cap, 1 - t**-decay_rate).
    Sources: arXiv:1804.04235; arXiv:2106.04560, 3.4; big_vision's `optax.py::scale_by_adafactor`.
    """

    def second_moment_decay(count: Any, exponent: Any) -> jax.Array:
        return jnp.minimum(beta2_cap, 1.0 - (jnp.asarray(count, jnp.float32) + 1.0) ** -exponent)

    parts = [
        optax.scale_by_factored_rms(
            decay_rate=decay_rate,
            step_offset=decay_offset,
            min_dim_size_to_factor=min_dim_size_to_factor,
            epsilon=eps,
            decay_rate_fn=second_moment_decay,
        )
    ]
    if clipping_threshold:
        parts.append(optax.clip_by_block_rms(clipping_threshold))
    if momentum:
        dtype = jnp.dtype(dtype_momentum)
        parts.append(optax.ema(momentum, debias=False, accumulator_dtype=dtype))
    return optax.chain(*parts)


def momentum(
    momentum: float = 0.9, dtype: Any = "float32", nesterov: bool = False
) -> optax.GradientTransformation:
    """Heavy-ball momentum: accumulator = gradient + momentum * accumulator, kept in `dtype`."""
    return optax.trace(decay=momentum, accumulator_dtype=jnp.dtype(dtype), nesterov=nesterov)


class Codes(NamedTuple):
    """A moment in 8 bits: a code of each number, and the greatest magnitude of each block."""

    codes: jax.Array
    greatest: jax.Array


class PagedCodes(Codes):
    """As `Codes`, in the memory of the host between updates."""


class AdamState(NamedTuple):
    """State of `adam_8bit`: updates done, and the moments by name, float32 or `Codes`."""

    num_updates: jax.Array
    mu: dict[str, Any]
    nu: dict[str, Any]


@functools.cache
def dynamic_map(*, is_signed: bool) -> np.ndarray:
    """Returns float32[256], sorted: what a code stands for, in -1..1 or 0..1.

    Seven decades, each of twice as many numbers as the one below, in its middle third and evenly.
    Equals bitsandbytes' `create_dynamic_map`.
    """
    values = [0.0, 1.0]
    for decade in range(7):
        number = np.arange(2 ** (decade + (not is_signed)) + 1)
        first, last = np.float32(0.1), np.float32(1)
        gap = np.float64((last - first) / np.float32(len(number) - 1))
        # From the nearer end, as torch.linspace: to the last bit the same.
        halves = first + gap * number, last - gap * number[::-1]
        edges = np.where(number < len(number) // 2, *halves).astype(np.float32)
        means = (edges[:-1] + edges[1:]) / np.float32(2)
        magnitudes = (np.float32(10.0 ** (decade - 6)) * means).tolist()
        values += magnitudes + [-x for x in magnitudes if is_signed]
    return np.sort(np.array(values, np.float32))


def encode(x: jax.Array, *, is_signed: bool) -> Codes:
    """Returns float32 numbers of any shape in 8 bits, each as the nearest value of its block."""
    blocks = _cut_blocks(x)
    greatest = jnp.max(jnp.abs(blocks), axis=-1)
    scaled = blocks / jnp.maximum(greatest, 1e-38)[..., None]
    return Codes(_join_blocks(_nearest(scaled, is_signed=is_signed), x.shape), greatest)


def _nearest(x: jax.Array, *, is_signed: bool) -> jax.Array:
    """Returns uint8, where in `dynamic_map` the nearest value is; of two the smaller.

    A search in the table takes eight lookups a number, and half a minute to compile. The decade and
    the place in it are right but for one, which the bounds on both sides tell.
    """
    values = dynamic_map(is_signed=is_signed)
    inner = (values[:-1] + values[1:]) / np.float32(2)
    bounds = jnp.asarray(np.concatenate([[-np.inf], inner, [np.inf]]).astype(np.float32))
    magnitude = jnp.maximum(jnp.abs(x), 1e-30)
    decade = jnp.clip(jnp.floor(jnp.log10(magnitude)) + 7, 0, 6)
    count = jnp.exp2(decade) if is_signed else jnp.exp2(decade + 1)
    place = jnp.floor((magnitude * 10 ** (6 - decade) - 0.1) / 0.9 * count)
    smaller = (jnp.clip(place, 0, count - 1) + count).astype(jnp.int32)
    if is_signed:
        guess = jnp.where(x < 0, 127 - smaller, 127 + smaller)
    else:
        guess = smaller - 1
    above, below = x > bounds[guess + 1], x <= bounds[guess]
    return (guess + above - below).astype(jnp.uint8)


def decode(moment: Codes, *, is_signed: bool) -> jax.Array:
    """Returns float32 of the shape that was encoded."""
    values = jnp.asarray(dynamic_map(is_signed=is_signed))
    blocks = values[_cut_blocks(moment.codes).astype(jnp.int32)]
    return _join_blocks(blocks * moment.greatest[..., None], moment.codes.shape)


def _whole_axes(shape: tuple[int, ...]) -> int | None:
    """Returns how many axes are left beside whole blocks of the others; None: these are not whole.

    Blocks are of numbers that follow each other; axes before them stay, so that what is spread over
    devices along these stays where it is.
    """
    for axis in reversed(range(len(shape))):
        if math.prod(shape[axis:]) % BLOCK == 0:
            return axis
    return None


def _cut_blocks(x: jax.Array) -> jax.Array:
    """Returns [..., blocks, BLOCK], with zeros behind an array that is no multiple of it."""
    axis = _whole_axes(x.shape)
    if axis is not None:
        return x.reshape(*x.shape[:axis], -1, BLOCK)
    return jnp.pad(x.reshape(-1), (0, -x.size % BLOCK)).reshape(-1, BLOCK)


def _join_blocks(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return blocks.reshape(-1)[: math.prod(shape)].reshape(shape)


def adam_8bit(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam with its moments in 8 bits, as bitsandbytes' Adam8bit; its rate and decay are ours."""
    return _adam_8bit(b1, b2, eps, Codes)


def paged_adam_8bit(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """As `adam_8bit`, its codes in the memory of the host between updates: see `place_pages`."""
    return _adam_8bit(b1, b2, eps, PagedCodes)


def _adam_8bit(b1: float, b2: float, eps: float, kind: type[Codes]) -> optax.GradientTransformation:
    def encode_as(x: jax.Array, is_signed: bool) -> Codes:
        return kind(*encode(x, is_signed=is_signed))

    def start(name: str, x: jax.Array, is_signed: bool) -> Any:
        zeros = jnp.zeros(x.shape, jnp.float32)
        is_vector = name.endswith(("/bias", "/scale"))
        return zeros if x.size < LEAST or is_vector else encode_as(zeros, is_signed)

    def init(params: Any) -> AdamState:
        mu, nu = (
            {name: start(name, x, is_signed) for name, x in params.items()}
            for is_signed in (True, False)
        )
        return AdamState(jnp.zeros([], jnp.int32), mu, nu)

    def move(count: jax.Array, g: jax.Array, mu: Any, nu: Any) -> tuple[jax.Array, Any, Any]:
        is_coded = isinstance(mu, Codes)
        if is_coded:
            mu, nu = decode(mu, is_signed=True), decode(nu, is_signed=False)
        mu = b1 * mu + (1 - b1) * g
        nu = b2 * nu + (1 - b2) * g * g
        unbiased = jnp.sqrt(nu) / jnp.sqrt(1 - b2**count)
        update = mu / (1 - b1**count) / (unbiased + eps)
        if is_coded:
            mu, nu = encode_as(mu, True), encode_as(nu, False)
        return update, mu, nu

    def move_all(count: jax.Array, g: jax.Array, mu: Any, nu: Any) -> tuple[jax.Array, Any, Any]:
        one = functools.partial(move, count.astype(jnp.float32))
        by_layer = g.size > MANY and g.ndim > 2 and (_whole_axes(g.shape) or 0) > 0
        return jax.lax.map(lambda x: one(*x), (g, mu, nu)) if by_layer else one(g, mu, nu)

    def update(updates: Any, state: AdamState, params: Any = None) -> tuple[Any, AdamState]:
        del params
        state = fetch_pages(state)
        count = optax.safe_increment(state.num_updates)
        moved = {n: move_all(count, g, state.mu[n], state.nu[n]) for n, g in updates.items()}
        updates, mu, nu = ({n: x[i] for n, x in moved.items()} for i in range(3))
        return updates, AdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def place_pages(shardings: Any) -> Any:
    """Returns the shardings of an optimizer's state with those of paged codes in the host's memory.

    Raises:
      ValueError: the device cannot reach such memory.
    """

    def place(sharding: jax.sharding.Sharding) -> jax.sharding.Sharding:
        device = next(iter(sharding.device_set))
        if not hasattr(device, "addressable_memories"):
            return sharding  # a description of a device
        kinds = [memory.kind for memory in device.addressable_memories()]
        if HOST not in kinds:
            raise ValueError(
                f"optax_name: a paged optimizer keeps its state in memory of the kind '{HOST}', "
                f"which {device.device_kind} has not, only {kinds}: use the one that is not paged"
            )
        return sharding.with_memory_kind(HOST)

    return _map_pages(place, shardings)


def fetch_pages(opt_state: Any) -> Any:
    """Returns an optimizer's state with its paged codes on the device."""
    return _map_pages(lambda x: jax.device_put(x, jax.memory.Space.Device), opt_state)


def pages(opt_state: Any) -> list[Any]:
    """Returns the arrays of an optimizer's state that lie in the memory of the host."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, PagedCodes))
    return [x for node in nodes if isinstance(node, PagedCodes) for x in node]


def _map_pages(function: Callable[[Any], Any], tree: Any) -> Any:
    def change(node: Any) -> Any:
        return PagedCodes(*map(function, node)) if isinstance(node, PagedCodes) else node

    return jax.tree.map(change, tree, is_leaf=lambda node: isinstance(node, PagedCodes))


class Average(NamedTuple):
    """State of `keep_average`: updates done, and the average by name."""

    num_updates: jax.Array
    params: dict[str, jax.Array]


def keep_average(decay: float) -> optax.GradientTransformation:
    """Returns a transformation that changes no update, and averages what the updates lead to.

    After update t = 1, 2, ... the average is d * average + (1 - d) * parameters with d the smaller
    of `decay` and t / (t + 9): short runs are averaged over their last tenth, and the start is
    forgotten soon. It must be the last of a chain. An update's `values` may hold another decay.

    Raises:
      ValueError: a decay that is not in (0, 1).
    """
    if not 0.0 < decay < 1.0:
        raise ValueError(f"ema_decay={decay}: expected a number between 0 and 1, as 0.999")

    def init(params: Any) -> Average:
        return Average(jnp.zeros([], jnp.int32), jax.tree.map(jnp.array, params))

    def update(
        updates: Any,
        state: Average,
        params: Any = None,
        *,
        values: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> tuple[Any, Average]:
        count = optax.safe_increment(state.num_updates)
        most = decay if values is None else values[DECAY]
        d = jnp.minimum(most, count / (count + 9.0))

        def average(old: jax.Array, new: jax.Array) -> jax.Array:
            return d * old + (1.0 - d) * new

        new = optax.apply_updates(params, updates)
        return updates, Average(count, jax.tree.map(average, state.params, new))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def find(opt_state: Any) -> Mapping[str, jax.Array] | None:
    """Returns the average in an optimizer's state, None where none is kept."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, Average))
    return next((leaf.params for leaf in leaves if isinstance(leaf, Average)), None)
