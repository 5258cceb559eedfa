"""Layers whose weights are updated in their own backward pass, where their gradients are made.

The gradients of all layers never exist together. A stacked weight comes as `Updating`, with all
that its update needs, and what comes back in the place of its gradient is what it has become.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

NUM_MEASURED = 4


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("w", "moments", "measured", "shared"),
    meta_fields=("update",),
)
@dataclasses.dataclass(frozen=True)
class Updating:
    """A stacked weight, and all that its update needs.

    Attributes:
      w: float32[L, ...].
      moments: arrays of the optimizer, [L, ...] each.
      measured: float32[NUM_MEASURED] of zeros. In its place come back the sum of squares of the
        gradient, its greatest absolute value, the sum of squares of the update, and the number of
        layers that were updated.
      shared: what all updates read, a tree; of it `go`, bool[]: False where nothing is to change.
      update: (gradient, w, moments, shared) of one layer -> (gradient, update, new moments).
    """

    w: jax.Array
    moments: tuple[jax.Array, ...]
    measured: jax.Array
    shared: Any
    update: Callable[..., Any]


def is_updating(x: Any) -> bool:
    """Whether this is a weight to be updated in the backward pass."""
    return isinstance(x, Updating)


def any_updating(params: Any) -> bool:
    """Whether any of a tree's weights is to be updated in the backward pass."""
    return any(map(is_updating, jax.tree.leaves(params, is_leaf=is_updating)))


@dataclasses.dataclass(frozen=True)
class _Layers:
    """The layers of a tower, each weight by its number among all.

    Attributes:
      apply: (weights by number, x, rngs) of a layer -> x.
      length: layers of a segment.
      fixed: weights that are not updated, cut into segments, [S, length, ...].
      rngs: likewise.
      updating: the others.
    """

    apply: Callable[..., jax.Array]
    length: int
    fixed: Mapping[int, Any]
    rngs: Any
    updating: Mapping[int, Updating]

    def forward(self, x: jax.Array, stacks: Any, measured: Any) -> tuple[jax.Array, Any]:
        """Returns the last layer's result, and what `backward` needs."""
        del measured

        def run_segment(x: jax.Array, piece: Any) -> tuple[jax.Array, jax.Array]:
            return self._run(x, self.length, *piece)[-1], x

        weights = _cut({i: w for i, (w, _) in stacks.items()}, self.length)
        y, starts = jax.lax.scan(run_segment, x, (weights, self.fixed, self.rngs))
        return y, (starts, stacks)

    def backward(self, kept: Any, dy: jax.Array) -> tuple[jax.Array, Any, Any]:
        """Returns the gradient of x, what weights and moments have become, and what was measured.

        The stacks are carried from layer to layer and written in place, last layer first.
        """
        starts, stacks = kept

        def run_segment(carry: Any, piece: Any) -> tuple[Any, None]:
            dy, rest = carry
            segment, start, fixed, rngs = piece
            first = segment * self.length
            count = self.length - 1  # the last layer's result is not needed
            weights = jax.tree.map(
                lambda w: jax.lax.dynamic_slice_in_dim(w, first, self.length),
                {i: w for i, (w, _) in rest[0].items()},
            )
            xs = self._run(start, count, weights, fixed, rngs)
            for i in reversed(range(self.length)):
                own = _at(fixed, i), _at(rngs, i)
                dy, rest = self._step_back(first + i, xs[i], dy, rest, *own)
            return (dy, rest), None

        go = next(iter(self.updating.values())).shared["go"]
        # What comes from a loss that is not finite is not either.
        go &= jnp.isfinite(jnp.sum(jnp.square(dy)))
        measured = {i: jnp.zeros(NUM_MEASURED, jnp.float32) for i in stacks}
        pieces = jnp.arange(len(starts)), starts, self.fixed, self.rngs
        carry = dy, (stacks, measured, go)
        (dx, (stacks, measured, _)), _ = jax.lax.scan(run_segment, carry, pieces, reverse=True)
        return dx, stacks, measured

    def _run(
        self, x: jax.Array, count: int, weights: Any, fixed: Any, rngs: Any
    ) -> list[jax.Array]:
        """Returns the inputs of a segment's first layers, and the last one's result."""
        xs = [x]
        for i in range(count):
            xs.append(self.apply({**_at(weights, i), **_at(fixed, i)}, xs[-1], _at(rngs, i)))
        return xs

    def _step_back(
        self, number: jax.Array, x: jax.Array, dy: jax.Array, rest: Any, fixed: Any, rngs: Any
    ) -> tuple[jax.Array, Any]:
        """Goes back through one layer, and updates its weights."""
        stacks, measured, go = rest
        old = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, number, 0, False), stacks)
        weights = {i: w for i, (w, _) in old.items()}
        _, pull = jax.vjp(lambda x, some: self.apply({**some, **fixed}, x, rngs), x, weights)
        dx, grads = pull(dy)
        made = {i: leaf.update(grads[i], *old[i], leaf.shared) for i, leaf in self.updating.items()}
        squares = {i: jnp.sum(jnp.square(grad)) for i, (grad, _, _) in made.items()}
        go &= jnp.isfinite(sum(squares.values()))
        new = {i: (old[i][0] + update, moments) for i, (_, update, moments) in made.items()}
        new = jax.tree.map(lambda a, b: jnp.where(go, a, b).astype(b.dtype), new, old)
        stacks = jax.tree.map(
            lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, number, 0), stacks, new
        )
        for i, (grad, update, _) in made.items():
            top = jnp.maximum(measured[i][1], jnp.max(jnp.abs(grad)))
            moved, updated = jnp.sum(jnp.square(update)), go.astype(jnp.float32)
            added = jnp.stack([squares[i], 0.0, moved, updated])
            measured = {**measured, i: (measured[i] + added).at[1].set(top)}
        return dx, (stacks, measured, go)


def run(
    apply: Callable[..., jax.Array], length: int, params: Any, rngs: Any, x: jax.Array
) -> jax.Array:
    """Runs layers, of which the backward pass keeps the input of every segment.

    From a layer on whose gradient is not finite nothing changes.

    Args:
      apply: (weights, x, rngs) of a layer -> x.
      length: layers of a segment.
      params: nested, stacked; some are `Updating`.
      rngs: stacked.
      x: [B, T, D].
    """
    leaves, tree = jax.tree.flatten(params, is_leaf=is_updating)
    updating = {i: leaf for i, leaf in enumerate(leaves) if is_updating(leaf)}

    def apply_one(weights: Mapping[int, Any], x: jax.Array, rngs: Any) -> jax.Array:
        ordered = [weights[i] for i in range(len(leaves))]
        return apply(jax.tree.unflatten(tree, ordered), x, rngs)

    fixed = {i: leaf for i, leaf in enumerate(leaves) if i not in updating}
    layers = _Layers(apply_one, length, _cut(fixed, length), _cut(rngs, length), updating)

    @jax.custom_vjp
    def through(x: jax.Array, stacks: Any, measured: Any) -> jax.Array:
        return layers.forward(x, stacks, measured)[0]

    through.defvjp(layers.forward, layers.backward)
    stacks = {i: (leaf.w, leaf.moments) for i, leaf in updating.items()}
    return through(x, stacks, {i: leaf.measured for i, leaf in updating.items()})


def _cut(tree: Any, length: int) -> Any:
    return jax.tree.map(lambda w: w.reshape(-1, length, *w.shape[1:]), tree)


def _at(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda w: w[i], tree)
