"""One update of the trainable parameters, as a pure function of (state, batch).

The step knows no model: it gets `apply_fn` (inputs to hidden states) and `logits_fn` (hidden states
to logits). Nothing here is jitted. The caller does it once, and donates the state, so that an
update is made in place and frozen weights exist once:

    train_step = jax.jit(step.make_train_step(...), donate_argnums=0)
    state, metrics = train_step(state, batch)
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from paligemma_jax.params import names
from paligemma_jax.training import loss, optimizer, transforms

Metrics = dict[str, jax.Array]
Number = jax.Array | int | None

# For `jax.jit` of a step, by the platform that it is compiled for. A TPU's compiler else cuts the
# product that a gradient is into as many as there are devices, to send parts of it while it makes
# others: on several chips that takes three times what the whole product does.
COMPILER_OPTIONS = {"tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}}

UPDATE_NORM = "update_norm/"  # before the name of a part of the model
SEED = "seed"  # among the values of a step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedMetrics:
    """Metrics one after the other in one array, which comes to the host in one piece.

    values: float32[n].
    shapes: (name, shape) of each.
    """

    values: jax.Array
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = dataclasses.field(metadata={"static": True})

    def to_host(self) -> dict[str, np.ndarray]:
        """Waits for them, and returns them by name."""
        values, start, metrics = jax.device_get(self.values), 0, {}
        for name, shape in self.shapes:
            stop = start + math.prod(shape)
            metrics[name] = values[start:stop].reshape(shape)
            start = stop
        return metrics


def pack(metrics: Metrics) -> PackedMetrics:
    """Returns metrics in one array; what is true in them is 1."""
    shapes = tuple((name, metrics[name].shape) for name in sorted(metrics))
    parts = [jnp.ravel(metrics[name]).astype(jnp.float32) for name, _ in shapes]
    return PackedMetrics(jnp.concatenate(parts), shapes)


def to_host(metrics: Metrics | PackedMetrics) -> dict[str, np.ndarray]:
    """Waits for metrics, packed or not, and returns them by name."""
    return metrics.to_host() if isinstance(metrics, PackedMetrics) else jax.device_get(metrics)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes in training, and the frozen weights beside it.

    step: int32[], updates done.
    trainable: name -> float32 array.
    frozen: name -> array in its stored type, or tree of arrays; the step returns the same ones.
    opt_state: the optimizer's, over `trainable`.
    """

    step: jax.Array
    trainable: dict[str, jax.Array]
    frozen: dict[str, jax.Array]
    opt_state: Any

    @property
    def params(self) -> dict[str, jax.Array]:
        """All parameters by name."""
        return names.merge(self.trainable, self.frozen)

    @property
    def averaged(self) -> dict[str, jax.Array]:
        """All parameters by name, the trained ones averaged where an average is kept."""
        trained = transforms.find(self.opt_state)
        return names.merge(self.trainable if trained is None else trained, self.frozen)


def init_state(
    params: Mapping[str, jax.Array], trainable: Iterable[str], tx: optax.GradientTransformation
) -> TrainState:
    """Returns the state before the first update.

    Trainable arrays become float32; frozen ones are taken as they are, uncopied (so a step that
    donates its state uses up `params`). Every array of the optimizer lies where its parameter lies;
    counts are replicated.
    """
    chosen, frozen = names.partition(params, trainable)
    chosen = {name: jnp.asarray(array, jnp.float32) for name, array in chosen.items()}
    frozen = jax.tree.map(jnp.asarray, frozen)
    shardings = opt_state_shardings(chosen, tx)
    return TrainState(
        step=count_updates(0, chosen),
        trainable=chosen,
        frozen=frozen,
        opt_state=jax.jit(tx.init, out_shardings=shardings)(chosen),
    )


def opt_state_shardings(trainable: Mapping[str, Any], tx: optax.GradientTransformation) -> Any:
    """Returns where each array of the optimizer lives, as `init_state` says.

    Args:
      trainable: name -> array, or its shape, type and sharding.
      tx: the optimizer.
    """
    where = {name: array.sharding for name, array in trainable.items()}
    replicated = _replicated(next(iter(where.values())))
    return transforms.place_pages(optimizer.opt_state_like(tx, trainable, where, replicated))


def count_updates(number: int, trainable: Mapping[str, Any]) -> jax.Array:
    """Returns `number` as a state's step, on all devices that the trainable arrays are on."""
    replicated = _replicated(next(iter(trainable.values())).sharding)
    return jax.device_put(jnp.asarray(number, jnp.int32), replicated)


def state_shapes(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    trainable: Iterable[str],
    tx: optax.GradientTransformation,
) -> TrainState:
    """Returns `init_state`'s result as shapes, types and places: a step can be compiled from it.

    `shapes` have a sharding each. Nothing is allocated.
    """
    picked, frozen = names.partition(shapes, trainable)
    chosen: Any = {name: _struct(x, x.sharding, jnp.float32) for name, x in picked.items()}
    replicated = _replicated(next(iter(chosen.values())).sharding)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
    others: Any = dict(frozen)
    moments = jax.eval_shape(tx.init, chosen)
    return TrainState(
        step=step,
        trainable=chosen,
        frozen=others,
        opt_state=jax.tree.map(_struct, moments, opt_state_shardings(chosen, tx)),
    )


def make_train_step(
    apply_fn: loss.ApplyFn,
    logits_fn: loss.LogitsFn,
    tx: optax.GradientTransformation,
    *,
    seed: int,
    label_smoothing: float = 0.0,
    mean_over: str = loss.EXAMPLES,
    accumulation_steps: int = 1,
    chunk: int = loss.CHUNK,
    loss_scale: float = 1.0,
    parts: Mapping[str, Sequence[str]] | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns the function (state, batch, number=None, values=None) -> (state, metrics).

    Only `state.trainable` is differentiated. The loss is the mean over the batch of each example's
    mean over its supervised tokens, or the mean over all of the batch's, with micro-batches too, so
    what they give together equals the big batch. Dropout is drawn from (seed, step, micro-batch).

    If the loss or a gradient is not finite, the state comes back unchanged (its step too) and
    `metrics["finite"]` is False: see `nan_checks`. A caller that starts an update before it has
    seen the one before gives `number` too, the updates that it thinks are done: where the state
    has fewer, it comes back unchanged as well, so that it stays the one before the failure.

    `values` are the seed and the optimizer's own (`run_values`), as an argument of the program
    instead of constants in it.

    Args:
      apply_fn, logits_fn, label_smoothing, chunk: see `loss.example_losses`.
      tx: the optimizer, over the trainable parameters.
      seed: of dropout.
      mean_over: "examples" or "tokens".
      accumulation_steps: micro-batches per update, each taking every so-many-th row. The rows of
        one device must be divisible by it, so that every device has rows in each micro-batch.
      loss_scale: factor of the loss while gradients are taken: in 16 bits small ones are lost.
      parts: name of a part of the model -> its trainable names.

    Metrics, all float32[] by default: loss; grad_norm (before clipping), update_norm and
    param_norm (after the update) of the trainable parameters; update_norm/PART of each of `parts`;
    supervised_tokens_mean and _max per example; text_len, T of the batch; finite bool[]; grad_max
    float32[n], the greatest absolute gradient of each trainable array in sorted order of names.
    """

    losses_of = functools.partial(
        loss.example_losses,
        apply_fn=apply_fn,
        logits_fn=logits_fn,
        label_smoothing=label_smoothing,
        chunk=chunk,
    )

    def scaled_loss(trainable: Any, frozen: Any, batch: loss.Batch, rng: jax.Array) -> jax.Array:
        return loss_scale * loss.mean(
            losses_of(names.merge(trainable, frozen), batch, rng=rng), batch
        )

    def train_step(
        state: TrainState,
        batch: loss.Batch,
        number: Number = None,
        values: optimizer.Values | None = None,
    ) -> Any:
        rng = _random(seed if values is None else values[SEED], state.step)
        batch = loss.weigh(batch, mean_over)
        scaled = _accumulate(scaled_loss, state, batch, rng, accumulation_steps)
        value, grads = jax.tree.map(lambda x: x / loss_scale, scaled)
        new, updates = _update(tx, grads, state, values)
        grad_norm = optax.tree.norm(grads)
        # Not of the updates too: to wait for all of them is to keep a copy of the parameters.
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
        new = _choose(finite if number is None else finite & (state.step == number), new, state)
        metrics = _measure(value, grads, updates, new) | {"grad_norm": grad_norm, "finite": finite}
        return new, metrics | _norms(updates, parts or {}) | _describe_text(batch)

    return train_step


def _random(seed: Any, number: jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), number)


def _update(
    tx: optax.GradientTransformation, grads: Any, state: TrainState, values: Any
) -> tuple[TrainState, Any]:
    """Returns the state after an update, and what was added to the parameters."""
    own = {} if values is None else {"values": values}
    updates, opt_state = tx.update(grads, state.opt_state, state.trainable, **own)
    new = TrainState(
        step=state.step + 1,
        trainable=optax.apply_updates(state.trainable, updates),
        frozen=state.frozen,
        opt_state=opt_state,
    )
    return new, updates


def run_values(made: optimizer.Optimizer, *, seed: int) -> dict[str, Any]:
    """Returns the `values` of a step: what runs may differ in and share the compiled program."""
    # As jax.random.key takes a number of Python's: its lower 32 bits.
    return {**made.values, SEED: np.uint32(seed & 0xFFFFFFFF)}


def make_eval_loss(
    apply_fn: loss.ApplyFn,
    logits_fn: loss.LogitsFn,
    *,
    label_smoothing: float = 0.0,
    chunk: int = loss.CHUNK,
) -> Callable[[Mapping[str, jax.Array], loss.Batch], tuple[jax.Array, jax.Array]]:
    """Returns the function (params, batch) -> (sum of example losses, number of examples).

    Batches are as in training, with `_mask` bool[B] where rows only fill up the last one: these do
    not count. The quotient of the sums over all batches is the mean over the data set.
    """

    def eval_loss(
        params: Mapping[str, jax.Array], batch: loss.Batch
    ) -> tuple[jax.Array, jax.Array]:
        losses = loss.example_losses(
            params,
            batch,
            apply_fn=apply_fn,
            logits_fn=logits_fn,
            label_smoothing=label_smoothing,
            chunk=chunk,
        )
        real = batch["_mask"].astype(bool) if "_mask" in batch else jnp.ones_like(losses, bool)
        return jnp.sum(jnp.where(real, losses, 0.0)), jnp.sum(real)

    return eval_loss


def _measure(value: jax.Array, grads: Any, updates: Any, new: TrainState) -> Metrics:
    return {
        "loss": value,
        "update_norm": optax.tree.norm(updates),
        "param_norm": optax.tree.norm(new.trainable),
        "grad_max": jnp.stack([jnp.max(jnp.abs(grads[name])) for name in sorted(grads)]),
    }


def _norms(updates: Mapping[str, jax.Array], parts: Mapping[str, Sequence[str]]) -> Metrics:
    return {
        UPDATE_NORM + part: optax.tree.norm([updates[name] for name in members])
        for part, members in parts.items()
    }


def _describe_text(batch: loss.Batch) -> Metrics:
    per_example = jnp.sum(batch["mask_loss"][:, 1:], axis=1)
    return {
        "supervised_tokens_mean": jnp.mean(per_example, dtype=jnp.float32),
        "supervised_tokens_max": jnp.max(per_example).astype(jnp.float32),
        "text_len": jnp.float32(batch["text"].shape[1] - 1),
    }


def _accumulate(
    mean_loss: Callable[..., jax.Array],
    state: TrainState,
    batch: loss.Batch,
    rng: jax.Array,
    steps: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss and the gradients of `state.trainable`, averaged over micro-batches."""
    loss_and_grads = jax.value_and_grad(mean_loss)
    if steps == 1:
        key = jax.random.fold_in(rng, 0)
        return loss_and_grads(state.trainable, state.frozen, batch, key)

    def add(total: Any, piece: tuple[Any, jax.Array]) -> tuple[Any, None]:
        micro_batch, index = piece
        key = jax.random.fold_in(rng, index)
        result = loss_and_grads(state.trainable, state.frozen, micro_batch, key)
        return jax.tree.map(lambda t, r: t + r / steps, total, result), None

    zeros = (jnp.zeros([], jnp.float32), jax.tree.map(jnp.zeros_like, state.trainable))
    pieces = ({name: _split(x, steps) for name, x in batch.items()}, jnp.arange(steps))
    (value, grads), _ = jax.lax.scan(add, zeros, pieces)
    return value, grads


def _split(x: jax.Array, steps: int) -> jax.Array:
    """Returns [B, ...] as [steps, B / steps, ...]: micro-batch i has the rows i, i + steps, ...

    So each device splits the rows it holds; taking contiguous rows would move them all.
    """
    if x.shape[0] % steps:
        raise ValueError(
            f"accumulation_steps={steps} does not divide the batch of {x.shape[0]} examples"
        )
    return jnp.moveaxis(x.reshape(-1, steps, *x.shape[1:]), 1, 0)


def _choose(condition: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """Returns `new` where the condition holds, else `old`. Frozen weights are the same in both."""

    def choose(a: Any, b: Any) -> Any:
        return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)

    return TrainState(
        step=choose(new.step, old.step),
        trainable=choose(new.trainable, old.trainable),
        frozen=old.frozen,
        opt_state=choose(new.opt_state, transforms.fetch_pages(old.opt_state)),
    )


def _struct(x: Any, sharding: Any, dtype: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=sharding)


def _replicated(sharding: Any) -> Any:
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding
