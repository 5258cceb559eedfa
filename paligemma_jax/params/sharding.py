"""Where arrays live: the device mesh, rules on names to shardings, and placement.

A rule's value, a tactic, is one of
  "replicate"          every device holds all of it
  "fsdp"               split along one dimension over the mesh's only axis (or the one named "fsdp")
  'fsdp(axis="data")'  big_vision's spelling of the same, over a named axis; `axis` may be a list,
                       and `min_size_to_shard_mb` another threshold than 4
  "model"              the name of a mesh axis: the same, over that axis
  (None, "data")       the axis of each dimension, written out
"""

import ast
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from paligemma_jax.params import names

Tactic = str | Sequence[str | Sequence[str] | None]
Spec = tuple[str | tuple[str, ...] | None, ...]

# big_vision's threshold: arrays of at most this many MiB, in their own dtype, stay whole.
MIN_SIZE_TO_SHARD_MB = 4
WHAT = "sharding_strategy"


def make_mesh(spec: Sequence[tuple[str, int]], devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh of all devices: `make_mesh([("data", -1)])`.

    Args:
      spec: (axis name, size) pairs, as big_vision's `config.mesh`. One size may be -1: all that
        are left.
      devices: the devices to use; None: all devices of all processes.

    Raises:
      ValueError: the sizes do not multiply to the number of devices, or an axis is named twice.
    """
    devices = list(jax.devices() if devices is None else devices)
    axes = [name for name, _ in spec]
    sizes = _axis_sizes(spec, len(devices))
    # Auto: the compiler places intermediate results from the shardings of its arguments.
    types = (jax.sharding.AxisType.Auto,) * len(axes)
    return jax.make_mesh(sizes, axes, axis_types=types, devices=devices)


def shardings(arrays: Mapping[str, Any], rules: names.Rules[Tactic], mesh: Mesh) -> dict[str, Any]:
    """Returns for each name where its array lives. See `specs`."""
    found = specs(arrays, rules, mesh.shape)
    return {
        name: jax.tree.map(functools.partial(NamedSharding, mesh), spec)
        for name, spec in found.items()
    }


def specs(
    arrays: Mapping[str, Any], rules: names.Rules[Tactic], axis_sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Returns for each name its partition, one entry per dimension. Needs no devices.

    Equal to big_vision's `infer_sharding` (sharding.py at 0127fb6): fsdp takes the largest
    dimension that the axis size divides, the last one of equals, of arrays over 4 MiB; an array
    without such a dimension stays whole.

    Args:
      arrays: name -> anything with a shape and a dtype, or a tree of these (of a quantized
        weight), which gets a tree of partitions.
      rules: (regex, tactic) pairs; the first full match wins.
      axis_sizes: name -> size of the mesh axes, as `mesh.shape`.

    Raises:
      ValueError: an unknown tactic (near misses are shown), a written-out one that does not fit its
        array, or rules that `names.match` refuses.
    """
    tactics = [(regex, _parse(tactic, axis_sizes)) for regex, tactic in rules]
    matched = names.match(tactics, arrays, what=WHAT)

    def split(name: str, array: Any) -> Any:
        return jax.tree.map(lambda part: PartitionSpec(*matched[name](name, part)), array)

    return {name: split(name, array) for name, array in arrays.items()}


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first dimension split over all devices."""
    return NamedSharding(mesh, PartitionSpec(_entry(mesh.axis_names)))


def place(name: str, array: Any, sharding: NamedSharding) -> jax.Array:
    """Returns a parameter on its devices. Every process gives the whole array.

    On CPU the result may share the memory of `array`: do not write to it afterwards.
    """
    _check_divisible(name, np.shape(array), sharding)
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(np.shape(array), sharding, lambda index: array[index])


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns a batch on the mesh. Each process gives its own rows, the same number everywhere.

    On CPU the result may share the memory of the arrays: do not write to them afterwards.
    """
    sharding = batch_sharding(mesh)
    placed = {}
    for name, rows in batch.items():
        shape = (len(rows) * jax.process_count(), *rows.shape[1:])
        _check_divisible(name, shape, sharding)
        placed[name] = jax.make_array_from_process_local_data(sharding, rows, shape)
    return placed


def _axis_sizes(spec: Sequence[tuple[str, int]], num_devices: int) -> tuple[int, ...]:
    axes, sizes = [name for name, _ in spec], [size for _, size in spec]
    shown = ", ".join(f"{name}={size}" for name, size in spec)
    available = f"{num_devices} device{'s' if num_devices != 1 else ''}"
    if not axes or len(set(axes)) < len(axes):
        raise ValueError(f"mesh [{shown}]: expected one or more axes with different names")
    if sizes.count(-1) > 1 or any(size < 1 for size in sizes if size != -1):
        raise ValueError(f"mesh {shown}: sizes are 1 or more, and one of them may be -1")
    if -1 in sizes:
        given = math.prod(size for size in sizes if size != -1)
        if num_devices % given:
            raise ValueError(f"mesh {shown} but {available}: {given} does not divide {num_devices}")
        sizes[sizes.index(-1)] = num_devices // given
    if math.prod(sizes) != num_devices:
        raise ValueError(
            f"mesh {shown} but {available}: the sizes must multiply to their number; "
            f"-1 stands for all that are left"
        )
    return tuple(sizes)


def _parse(tactic: Tactic, axis_sizes: Mapping[str, int]) -> Callable[[str, Any], Spec]:
    """Returns the function (name, array) -> spec that a tactic stands for."""
    if not isinstance(tactic, str):
        return lambda name, array: _explicit(name, array.shape, tactic, axis_sizes)
    if tactic == "replicate":
        return lambda _, array: (None,) * len(array.shape)
    axis, min_size_mb = _parse_fsdp(tactic, axis_sizes)
    return lambda _, array: _fsdp(array, axis, axis_sizes, min_size_mb)


def _parse_fsdp(tactic: str, axis_sizes: Mapping[str, int]) -> tuple[tuple[str, ...], float]:
    """Returns the mesh axes to split over, and the threshold in MiB."""
    if tactic in axis_sizes:
        return (tactic,), MIN_SIZE_TO_SHARD_MB
    if tactic == "fsdp":
        if len(axis_sizes) > 1:
            raise ValueError(
                f"{WHAT}: 'fsdp' over which axis of the mesh? Write one of {list(axis_sizes)}"
            )
        return tuple(axis_sizes), MIN_SIZE_TO_SHARD_MB
    arguments = _call_arguments(tactic)
    axis = arguments.pop("axis", None)
    min_size_mb = arguments.pop("min_size_to_shard_mb", MIN_SIZE_TO_SHARD_MB)
    axes = (axis,) if isinstance(axis, str) else tuple(axis or ())
    if not axes or arguments or any(name not in axis_sizes for name in axes):
        first = next(iter(axis_sizes))
        known = ["replicate", "fsdp", f'fsdp(axis="{first}")', *axis_sizes]
        near = names.nearest(tactic, known)
        raise ValueError(
            f"{WHAT}: '{tactic}' is not known. Nearest: {', '.join(near) or 'none'}. "
            f"Expected one of {known}, or the axis of each dimension as a tuple; "
            f"the axes of the mesh are {list(axis_sizes)}"
        )
    return axes, min_size_mb


def _call_arguments(tactic: str) -> dict[str, Any]:
    """Returns the keyword arguments of the text 'fsdp(key=literal, ...)', {} if it is not that."""
    try:
        call = ast.parse(tactic, mode="eval").body
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "fsdp" and not call.args:
            return {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
    except (SyntaxError, ValueError):
        pass
    return {}


def _fsdp(
    array: Any, axes: tuple[str, ...], axis_sizes: Mapping[str, int], min_size_mb: float
) -> Spec:
    shape = array.shape
    spec: list[str | tuple[str, ...] | None] = [None] * len(shape)
    size_mb = math.prod(shape) * np.dtype(array.dtype).itemsize / 2**20
    if size_mb > min_size_mb:
        divisor = math.prod(axis_sizes[name] for name in axes)
        divisible = [(size, i) for i, size in enumerate(shape) if size % divisor == 0]
        if divisible:
            spec[max(divisible)[1]] = _entry(axes)
    return tuple(spec)


def _entry(axes: Sequence[str]) -> str | tuple[str, ...]:
    """Returns one dimension's entry of a partition: an axis by itself goes without a tuple."""
    return tuple(axes) if len(axes) > 1 else axes[0]


def _explicit(
    name: str, shape: Sequence[int], tactic: Sequence[Any], axis_sizes: Mapping[str, int]
) -> Spec:
    spec = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in tactic)
    if len(spec) != len(shape):
        raise ValueError(
            f"{WHAT}: {spec} has {len(spec)} entries, but '{name}' has shape {tuple(shape)}"
        )
    for size, entry in zip(shape, spec, strict=True):
        axes = (entry,) if isinstance(entry, str) else entry or ()
        if unknown := set(axes) - set(axis_sizes):
            raise ValueError(
                f"{WHAT}: {spec} names {sorted(unknown)}; the axes of the mesh are "
                f"{list(axis_sizes)}"
            )
        divisor = math.prod(axis_sizes[axis] for axis in axes)
        if size % divisor:
            raise ValueError(
                f"{WHAT}: {spec} splits '{name}' of shape {tuple(shape)} into {divisor} parts, "
                f"which does not divide {size}"
            )
    return spec


def _check_divisible(name: str, shape: tuple[int, ...], sharding: NamedSharding) -> None:
    try:
        sharding.shard_shape(shape)
    except ValueError as error:
        sizes = ", ".join(f"{axis}={size}" for axis, size in sharding.mesh.shape.items())
        raise ValueError(
            f"'{name}' of shape {tuple(shape)} cannot be split as {sharding.spec} over the mesh "
            f"{sizes}: choose a size (batch_size) that its devices divide"
        ) from error
