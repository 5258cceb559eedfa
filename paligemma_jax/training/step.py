"""One update of the trainable parameters, as a pure function of (state, batch).

The step knows no model: it gets `apply_fn` (inputs to hidden states) and `logits_fn` (hidden states
to logits). Nothing here is jitted. The caller does it once, and donates the state, so that an
update is made in place and frozen weights exist once:

    train_step = jax.jit(step.make_train_step(...), donate_argnums=0)
    state, metrics = train_step(state, batch)
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from paligemma_jax.models import family
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
    in_backward: Collection[str] = (),
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns the function (state, batch, number=None, values=None) -> (state, metrics).

    Only `state.trainable` is differentiated. The loss is the mean over the batch of each example's
    mean over its supervised tokens, or the mean over all of the batch's, with micro-batches too, so
    what they give together equals the big batch. Dropout is drawn from (seed, step, micro-batch).

    If the loss or a gradient is not finite, the state comes back unchanged (its step too) and
    `metrics["finite"]` is False: see `loop`. A caller that starts an update before it has
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
      in_backward: trainable names, stacked by layer, that are updated where the backward pass makes
        their gradients, which never exist together: for an optimizer that looks at each number by
        itself, without clipping and micro-batches, on one device. A gradient that is not finite,
        of a loss that is, comes too late for the layers behind it: then one array becomes NaN, so
        that nobody goes on with the rest.

    Metrics, all float32[] by default: loss; grad_norm (before clipping), update_norm and
    param_norm (after the update) of the trainable parameters; update_norm/PART of each of `parts`;
    supervised_tokens_mean and _max per example; text_len, T of the batch; finite bool[]; grad_max
    float32[n], the greatest absolute gradient of each trainable array in sorted order of names.
    """

    how: Any = {"apply_fn": apply_fn, "logits_fn": logits_fn, "chunk": chunk}
    losses_of = functools.partial(loss.example_losses, label_smoothing=label_smoothing, **how)

    def scaled_loss(trainable: Any, frozen: Any, batch: loss.Batch, rng: jax.Array) -> jax.Array:
        return loss_scale * loss.mean(
            losses_of(names.merge(trainable, frozen), batch, rng=rng), batch
        )

    if in_backward:
        options = in_backward, seed, loss_scale, parts or {}, mean_over
        return functools.partial(_step_in_backward, scaled_loss, tx, options)

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


def _step_in_backward(
    scaled_loss: Callable[..., jax.Array],
    tx: optax.GradientTransformation,
    options: tuple[Collection[str], int, float, Mapping[str, Sequence[str]], str],
    state: TrainState,
    batch: loss.Batch,
    number: Number = None,
    values: optimizer.Values | None = None,
) -> tuple[TrainState, Metrics]:
    """The step that updates `in_backward`. `options`: the last arguments of `make_train_step`."""
    inside, seed, loss_scale, parts, mean_over = options
    batch = loss.weigh(batch, mean_over)
    own = {} if values is None else {"values": values}
    go = jnp.bool_(True) if number is None else state.step == number
    rng = jax.random.fold_in(_random(values[SEED] if values else seed, state.step), 0)
    owners = optimizer.owners(state.opt_state, state.trainable)
    arrays = optimizer.by_owner(state.opt_state, owners)
    shared = {"go": go, "own": own, "common": arrays[""]}
    reached, layer = set[str](), functools.partial(optimizer.update_layer, tx, owners, loss_scale)
    updates = {name: functools.partial(layer, name, reached) for name in inside}
    stacks = {name: (state.trainable[name], tuple(arrays.get(name, ()))) for name in inside}
    rest = {name: w for name, w in state.trainable.items() if name not in updates}

    def loss_of(stacks: Any, measured: Any, rest: Any) -> jax.Array:
        new = {
            name: family.Updating(w, moments, measured[name], shared, updates[name])
            for name, (w, moments) in stacks.items()
        }
        return scaled_loss(rest | new, state.frozen, batch, rng)

    zeros = {name: jnp.zeros(family.NUM_MEASURED, jnp.float32) for name in inside}
    value, made = jax.value_and_grad(loss_of, argnums=(0, 1, 2))(stacks, zeros, rest)
    if missed := set(inside) - reached:
        raise ValueError(f"the backward pass does not come through {', '.join(sorted(missed)[:3])}")
    (stacks, measured, grads), value = made, value / loss_scale
    grads = jax.tree.map(lambda grad: grad / loss_scale, grads)
    changes, after = optimizer.update_some(tx, owners, grads, rest, arrays, own)
    measured |= {name: _measure_one(grads[name], changes[name]) for name in rest}
    finite = jnp.isfinite(value) & jnp.isfinite(sum(x[0] for x in measured.values()))
    old = rest, {owner: arrays[owner] for owner in after}
    new = optax.apply_updates(rest, changes), after
    new = jax.tree.map(lambda a, b: jnp.where(finite & go, a, b), new, old)
    result = TrainState(
        step=state.step + (finite & go).astype(jnp.int32),
        trainable=_spoil(new[0] | {name: w for name, (w, _) in stacks.items()}, finite, measured),
        frozen=state.frozen,
        opt_state=optimizer.join(
            state.opt_state, owners, new[1] | {name: x for name, (_, x) in stacks.items()}
        ),
    )
    return result, _read_measured(value, finite, measured, result, parts) | _describe_text(batch)


def _spoil(
    trainable: dict[str, jax.Array], finite: jax.Array, measured: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Returns parameters with a NaN if some layers were updated and others were not.

    Nobody is to save them, or to go on with them. The smallest array is enough.
    """
    is_torn = ~finite & (sum(x[3] for x in measured.values()) > 0)
    least = min(sorted(trainable), key=lambda name: trainable[name].size)
    return trainable | {least: jnp.where(is_torn, jnp.nan, trainable[least])}


def _measure_one(grad: jax.Array, change: jax.Array) -> jax.Array:
    """Returns what `family.Updating` measures, of an array that is not in layers."""
    top = jnp.max(jnp.abs(grad))
    return jnp.stack([jnp.sum(jnp.square(grad)), top, jnp.sum(jnp.square(change)), jnp.zeros([])])


def _read_measured(
    value: jax.Array,
    finite: jax.Array,
    measured: Mapping[str, jax.Array],
    new: TrainState,
    parts: Mapping[str, Sequence[str]],
) -> Metrics:
    def norm(which: int, members: Iterable[str]) -> jax.Array:
        return jnp.sqrt(sum(measured[name][which] for name in members))

    return {
        "loss": value,
        "finite": finite,
        "grad_norm": norm(0, measured),
        "update_norm": norm(2, measured),
        "param_norm": optax.tree.norm(new.trainable),
        "grad_max": jnp.stack([measured[name][1] for name in sorted(measured)]),
        **{UPDATE_NORM + part: norm(2, members) for part, members in parts.items()},
    }


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
