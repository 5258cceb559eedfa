"""Update directions by name: what an optimizer makes of a gradient, before any learning rate.

A direction is an optax transformation that keeps the gradient's sign and knows no learning rate;
`optimizer.make_optimizer` adds the rate, the decay, the schedule and the descent.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from paligemma_jax.params import names


def make_direction(name: str, arguments: Mapping[str, Any]) -> optax.GradientTransformation:
    """Returns `DIRECTIONS[name](**arguments)`.

    Raises:
      ValueError: an unknown name or argument (the nearest ones are shown), or a wrong value.
    """
    if name not in DIRECTIONS:
        near = names.nearest(name, DIRECTIONS)
        raise ValueError(
            f"optax_name='{name}' is not known. Did you mean {' or '.join(near) or 'sgd'}? "
            f"Known: {', '.join(DIRECTIONS)}"
        )
    known = inspect.signature(DIRECTIONS[name]).parameters
    for argument in arguments:
        if argument not in known:
            near = names.nearest(argument, known)
            raise ValueError(
                f"optax: '{name}' has no argument '{argument}'. "
                f"{f'Did you mean {near[0]!r}? ' if near else ''}"
                f"It has: {', '.join(known) or 'none'}"
            )
    try:
        return DIRECTIONS[name](**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"optax_name='{name}' with optax={dict(arguments)}: {error}") from error


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


# These need what a step does not give them (a function, the loss), or flip the sign themselves.
_NOT_DIRECTIONS = {
    "scale_by_backtracking_linesearch",
    "scale_by_learning_rate",
    "scale_by_polyak",
    "scale_by_schedule",
    "scale_by_zoom_linesearch",
}
DIRECTIONS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.identity,
    "momentum": momentum,
    "adam": optax.scale_by_adam,
    "adamw": optax.scale_by_adam,  # Decay is decoupled for every direction: set wd.
    "big_vision.sgd": optax.identity,
    "big_vision.momentum_hp": functools.partial(momentum, dtype="bfloat16"),
    "big_vision.scale_by_adafactor": adafactor,
} | {
    name: getattr(optax, name)
    for name in dir(optax)
    if name.startswith("scale_by_") and name not in _NOT_DIRECTIONS
}
