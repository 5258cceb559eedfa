"""Linen layers that both towers use. Parameter names are big_vision's and are a public format."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.ad_checkpoint as ad_checkpoint
import jax.numpy as jnp
from jax.typing import DTypeLike

from paligemma_jax.models.common import layer_update, placement, projections, quantize
from paligemma_jax.params import lora as lora_lib
from paligemma_jax.params import names

Lora = lora_lib.Lora
Initializer = nn.initializers.Initializer

# "none", ours, or the names in `jax.checkpoint_policies` that need no further argument.
NARROW, SEGMENTS = "narrow_products_saveable", "segment_inputs_saveable"
REMAT = (
    "none",
    NARROW,
    SEGMENTS,
    "nothing_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
    "everything_saveable",
)
# The layers of a segment are so many as divide all of them, the first of these.
SEGMENT_LENGTHS = (2, 3)
# An MLP's inner width is at least so many times the outer one; all heads together are less.
MUCH_WIDER = 3.5


class Einsum(nn.Module):
    """A weight `w` without bias."""

    shape: tuple[int, ...]
    w_init: Initializer
    lora: Lora | None = None

    @nn.compact
    def __call__(self, eqn: str, x: jax.Array) -> jax.Array:
        leaf = {"w": declare(self, "w", self.w_init, self.shape)}
        return project(self, "w", leaf, eqn, x, lora=self.lora)


class Dense(nn.Module):
    """A weight `kernel` and a `bias`."""

    shape: tuple[int, ...]
    bias_shape: tuple[int, ...]
    w_init: Initializer
    bias_init: Initializer = nn.initializers.zeros_init()
    lora: Lora | None = None

    @nn.compact
    def __call__(self, eqn: str, x: jax.Array) -> jax.Array:
        leaf = {
            "w": declare(self, "kernel", self.w_init, self.shape),
            "bias": self.param("bias", self.bias_init, self.bias_shape),
        }
        return project(self, "kernel", leaf, eqn, x, lora=self.lora)


def declare(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...]) -> Any:
    """As `module.param(name, init, shape)`; where the weight is quantized, returns it as it is."""
    if module.has_variable("params", name):
        given = module.get_variable("params", name)
        if isinstance(given, quantize.Quantized) and given.shape == shape:
            return given
    return module.param(name, init, shape)


def project(
    module: nn.Module,
    name: str,
    leaf: projections.Leaf,
    eqn: str,
    x: jax.Array,
    *,
    lora: Lora | None,
) -> jax.Array:
    """As `projections.project`, with the factors that stand beside the weight `name` of a module.

    With `lora`, initialization makes factors beside every weight; afterwards those act that are
    given. A starts as PEFT's, uniform within 1 / sqrt(inputs), and B at zero, so nothing changes.
    """
    pair = [names.factor(name, which) for which in names.FACTORS]
    if lora is None or not (module.is_initializing() or module.has_variable("params", pair[0])):
        if module.has_variable("params", pair[0]):
            path = "/".join((*module.path, pair[0]))
            raise ValueError(f"parameters have the LoRA factor '{path}', but the model has no LoRA")
        return _mark(projections.project(leaf, eqn, x), x)
    a_letters, b_letters = projections.factor_letters(eqn)
    sizes = dict(zip(eqn.split("->")[0].split(",")[1], leaf["w"].shape, strict=True))
    a_shape, b_shape = (
        tuple({**sizes, "r": lora.rank}[letter] for letter in letters)
        for letters in (a_letters, b_letters)
    )
    inputs = [axis for axis, letter in enumerate(a_letters[:-1]) if not letter.isdigit()]
    batch = range(inputs[0])
    a_init = nn.initializers.variance_scaling(
        1 / 3, "fan_in", "uniform", in_axis=inputs, out_axis=-1, batch_axis=batch
    )
    factors = {
        "lora_a": module.param(pair[0], a_init, a_shape),
        "lora_b": module.param(pair[1], nn.initializers.zeros_init(), b_shape) * lora.scale,
    }
    seen = x
    if lora.dropout and module.has_rng("dropout"):
        keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - lora.dropout, x.shape)
        seen = jnp.where(keep, x / (1.0 - lora.dropout), 0.0).astype(x.dtype)
    return _mark(projections.project({**leaf, **factors}, eqn, x, lora_x=seen), x)


class RMSNorm(nn.Module):
    """Gemma's norm: x / rms(x) * (1 + scale), in float32, returned as `dtype` or in that of x."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros_init(), (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        x32 *= jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)
        y = x32 * (1.0 + scale.astype(jnp.float32))
        return projections.narrow(y, self.dtype or x.dtype)


class LayerNorm(nn.Module):
    """A norm with `scale` and `bias`, in float32, returned as `dtype` or in that of x.

    `epsilon`: what is added to the variance, 1e-6 in big_vision's SigLIP.
    """

    dtype: DTypeLike | None = None
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (D,)).astype(jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (D,)).astype(jnp.float32)
        x32 = x.astype(jnp.float32)
        x32 -= jnp.mean(x32, axis=-1, keepdims=True)
        x32 *= jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.epsilon)
        return projections.narrow(x32 * scale + bias, self.dtype or x.dtype)


class Dropout(nn.Module):
    """Zeroes each value with probability `rate`; the rng collection is `dropout`. Rate 0 is off."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dropout(self.rate, deterministic=not self.rate, name="drop")(x)


@dataclasses.dataclass(frozen=True)
class OnDevices:
    """Where a tower's arrays lie on several devices.

    Attributes:
      layout: see `placement`.
      prefix: beginning of the names of its stacked parameters.
      dtype: compute dtype.
    """

    layout: placement.Layout
    prefix: str
    dtype: DTypeLike


def scan(
    body: Callable[..., Any], *, depth: int, remat: str, on: OnDevices | None = None
) -> Callable[..., Any]:
    """Returns `body(block, carry) -> (carry, y)` run `depth` times over stacked parameters.

    Args:
      body: a function of one linen module and the carry.
      depth: number of layers (L), the leading axis of every parameter below the module.
      remat: one of `REMAT`, what the backward pass may keep of a layer; "none" keeps everything.
      on: where arrays lie; None: on a device alone.
    """
    check_remat(remat)
    if on is not None:
        body = _placed(body, on)
    kept = body if remat == "none" else nn.remat(body, prevent_cse=False, policy=_policy(remat))
    run = nn.scan(
        kept,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=depth,
    )
    length = segment_length(depth) if remat == SEGMENTS else 1

    def run_segments(block: nn.Module, x: jax.Array) -> Any:
        # Parameters that are still to be made are `nn.scan`'s.
        if block.is_initializing():
            return run(block, x)
        weights = block.variables["params"]
        if length == 1 and not layer_update.any_updating(weights):
            return run(block, x)
        return _scan_segments(body, depth, length, block, x), None

    return run_segments


def segment_length(depth: int) -> int:
    """Returns how many layers are a segment, of which the backward pass keeps the input alone."""
    return next((n for n in SEGMENT_LENGTHS if depth % n == 0), 1)


def _scan_segments(
    body: Callable[..., Any], depth: int, length: int, block: nn.Module, x: jax.Array
) -> jax.Array:
    """Scans over segments of so many layers, computed again from their inputs (arXiv:1604.06174).

    Weights and random numbers of each layer are those that `nn.scan` gives it.
    """
    weights = block.variables["params"]
    scope: Any = block.scope
    rngs = {name: rng for name, rng in scope.rngs.items() if name == "dropout"}
    rngs = jax.tree.map(lambda key: jax.random.split(key, depth), rngs)

    def compute(block: nn.Module, x: jax.Array) -> jax.Array:
        if rngs:
            body(block, x)  # `nn.scan` traces it twice, and random numbers are counted on
        return body(block, x)[0]

    apply = nn.apply(compute, block.clone(parent=None, name=None))

    def run_one(weights: Any, x: jax.Array, rngs: Any) -> jax.Array:
        return apply({"params": weights}, x, rngs=rngs)

    if layer_update.any_updating(weights):
        return layer_update.run(run_one, length, weights, rngs, x)
    pieces = jax.tree.map(lambda w: w.reshape(-1, length, *w.shape[1:]), (weights, rngs))

    # Not to be merged with what computes the next layer's input, or both layers' values are kept.
    @jax.checkpoint
    def run_layer(x: jax.Array, piece: Any) -> jax.Array:
        weights, rngs = piece
        return run_one(weights, x, rngs)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def run_segment(x: jax.Array, pieces: Any) -> tuple[jax.Array, None]:
        # Unrolled, so that the last layer's result, which nobody reads, is not made again.
        for i in range(length):
            x = run_layer(x, jax.tree.map(lambda piece, i=i: piece[i], pieces))
        return x, None

    return jax.lax.scan(run_segment, x, pieces)[0]


def _placed(body: Callable[..., Any], on: OnDevices) -> Callable[..., Any]:
    """Returns `body` with its carry held to its rows, and its weights brought together."""

    def bring(variables: Any) -> Any:
        params = placement.gather_layer(on.layout, on.prefix, variables["params"], on.dtype)
        return {"params": params}

    together = nn.map_variables(body, "params", trans_in_fn=bring)

    def placed(block: nn.Module, x: jax.Array) -> Any:
        x, y = together(block, placement.keep_rows(on.layout, x))
        return placement.keep_rows(on.layout, x), y

    return placed


def unroll(
    run: Callable[[Any, Any, int], tuple[jax.Array, Any]],
    params: Mapping[str, Any],
    x: jax.Array,
    *,
    depth: int,
    on: OnDevices | None = None,
) -> tuple[jax.Array, list[Any]]:
    """Runs all blocks one after the other, without a scan, which copies weights out of the stack.

    Args:
      run: (nested parameters of a block, [B, T, D], layer) -> [B, T, D] and what it remembers.
      params: nested parameters of all blocks: per layer under "0", "1", ..., else stacked.
      x: [B, T, D].
      depth: number of layers (L).
      on: where arrays lie on several devices.

    Returns:
      [B, T, D] and what each layer remembered.
    """
    remembered = []
    for layer in range(depth):
        if "0" in params:
            block = params[str(layer)]
        else:
            block = jax.tree.map(lambda w, layer=layer: w[layer], params)
        x, block = _place_layer(on, x, block)
        x, kept = run(block, x, layer)
        remembered.append(kept)
    return x, remembered


def _place_layer(
    on: OnDevices | None, x: jax.Array, block: Mapping[str, Any]
) -> tuple[jax.Array, Mapping[str, Any]]:
    """Returns a layer's input and weights where it is to compute with them.

    Of a single token per row, all rows come to every part of the weights: they are a thousandth of
    them. Of longer texts the weights come to the rows.
    """
    if on is None:
        return x, block
    if x.shape[1] == 1:
        return placement.spread_rows(on.layout, x), block
    block = placement.gather_layer(on.layout, on.prefix, block, on.dtype)
    return placement.keep_rows(on.layout, x), block


def gather_single(
    params: Mapping[str, Any], on: OnDevices, *, kept: tuple[str, ...]
) -> Mapping[str, Any]:
    """Returns parameters with those brought together that are of no layer, and none of `kept`."""
    return {
        name: w
        if name.startswith(on.prefix) or name in kept
        else placement.gather(on.layout, name, w, on.dtype)
        for name, w in params.items()
    }


def unstack(params: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the blocks below a prefix with one array per layer; others are left out.

    `llm/layers/attn/w` [L, ...] becomes `llm/layers/0/attn/w` and so on.
    """
    return {
        f"{prefix}{layer}/{name.removeprefix(prefix)}": jax.tree.map(lambda x, i=layer: x[i], w)
        for name, w in params.items()
        if name.startswith(prefix)
        for layer in range(w.shape[0])
    }


def stacked_only(params: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns parameters without those that `unstack` made."""
    is_unstacked = re.compile(f"{re.escape(prefix)}\\d+/").match
    return {name: w for name, w in params.items() if not is_unstacked(name)}


def normalize_pixels(image: jax.Array) -> jax.Array:
    """uint8[...] in 0..255 -> float32[...] in -1..1, as big_vision's value_range(-1, 1)."""
    if image.dtype != jnp.uint8:
        raise ValueError(
            f"images must be uint8 in 0..255, found {image.dtype}; they are normalized on device"
        )
    return image.astype(jnp.float32) / 127.5 - 1.0


def cut_patches(image: jax.Array, *, grid: int, patch_size: int) -> jax.Array:
    """[B, R, R, 3] -> [B, P, patch, patch, 3], row by row."""
    B, *sides, channels = image.shape
    if sides != [grid * patch_size] * 2 or channels != 3:
        raise ValueError(
            f"image shape {image.shape}: expected [B, {grid * patch_size}, {grid * patch_size}, 3]"
        )
    x = image.reshape(B, grid, patch_size, grid, patch_size, 3)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, grid**2, patch_size, patch_size, 3)


def _policy(remat: str) -> Any:
    policies = jax.checkpoint_policies
    if remat == SEGMENTS:
        return policies.nothing_saveable
    # An MLP's inner values are most of what products give, and half of the work to make again.
    return policies.save_only_these_names(NARROW) if remat == NARROW else getattr(policies, remat)


def _mark(y: jax.Array, x: jax.Array) -> jax.Array:
    """Returns the product of `x` with a weight, named for `REMAT` where it is not much wider."""
    return ad_checkpoint.checkpoint_name(y, NARROW) if y.size <= MUCH_WIDER * x.size else y


def check_remat(name: str) -> None:
    """Raises a ValueError that lists the known names if this is none of them."""
    if name not in REMAT:
        raise ValueError(f"remat: no policy named '{name}'; choose one of {REMAT}")
