"""A moving average of the trainable parameters: often better than the last ones, never noisier.

It lives in the optimizer's state, so that it is placed, saved and resumed with it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

DECAY = "ema_decay"  # among the values of an update, see `optimizer`


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
