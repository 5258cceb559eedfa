"""Where arrays live: the device mesh, rules on names to shardings, and placement.

A rule's value, a tactic, is one of
  "replicate"          every device holds all of it
  "fsdp"               split along one dimension over the mesh's only axis (or the one named "fsdp")
  'fsdp(axis="data")'  big_vision's spelling of the same, over a named axis; `axis` may be a list,
                       and `min_size_to_shard_mb` another threshold than 4
  "model"              the name of a mesh axis: the same, over that axis
  'shard_dim(axis="model", dim=-1)'
                       split along that dimension, however small; `ignore_ndim_error=True` leaves
                       arrays alone that do not have it
  'shard_dim(axis="model", dim=-1)|fsdp(axis="data")'
                       one after the other: fsdp takes a dimension that is still whole
  (None, "data")       the axis of each dimension, written out
"""

import ast
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from paligemma_jax.params import names
from paligemma_jax.wording import phrases

Tactic = str | Sequence[str | Sequence[str] | None]
Spec = tuple[str | tuple[str, ...] | None, ...]

# big_vision's threshold: arrays of at most this many MiB, in their own dtype, stay whole.
MIN_SIZE_TO_SHARD_MB = 4
WHAT = "sharding_strategy"

# The axis of a mesh over which a layer's own work is split (tensor parallel). All other axes split
# the batch, and weights that are split over these too come together where they are used.
MODEL_AXIS = "model"


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
    sizes = axis_sizes(spec, len(devices))
    # Auto: the compiler places intermediate results from the shardings of its arguments.
    types = (jax.sharding.AxisType.Auto,) * len(axes)
    return jax.make_mesh(sizes, axes, axis_types=types, devices=devices)


def shardings(arrays: Mapping[str, Any], rules: names.Rules[Tactic], mesh: Mesh) -> dict[str, Any]:
    """Returns for each name where its array lives. See `specs`."""
    partitions = specs(arrays, rules, mesh.shape)
    return {
        name: jax.tree.map(functools.partial(NamedSharding, mesh), spec)
        for name, spec in partitions.items()
    }


def specs(
    arrays: Mapping[str, Any], rules: names.Rules[Tactic], axis_sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Returns for each name its partition, one entry per dimension. Needs no devices.

    Equal to big_vision's `infer_sharding` (sharding.py at 0127fb6): fsdp takes the largest
    dimension that the axis size divides and nothing splits yet, the last one of equals, of arrays
    over 4 MiB; an array without such a dimension stays as it is.

    Args:
      arrays: name -> anything with a shape and a dtype, or a tree of these (of a quantized
        weight), which gets a tree of partitions.
      rules: (regex, tactic) pairs; the first full match wins.
      axis_sizes: name -> size of the mesh axes, as `mesh.shape`.

    Raises:
      ValueError: an unknown tactic (near misses are shown), one that does not fit its array, or
        rules that `names.match` refuses.
    """
    tactics = [(regex, _parse(tactic, axis_sizes)) for regex, tactic in rules]
    matched = names.match(tactics, arrays, what=WHAT)

    def split(name: str, array: Any) -> Any:
        return jax.tree.map(lambda part: PartitionSpec(*matched[name](name, part)), array)

    return {name: split(name, array) for name, array in arrays.items()}


def names_dimensions(tactic: Tactic) -> bool:
    """Returns whether a tactic says which dimension is split, and so is made for one shape."""
    if not isinstance(tactic, str):
        return True
    return any(step.strip().startswith("shard_dim") for step in tactic.split("|"))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first dimension split over all devices."""
    return NamedSharding(mesh, PartitionSpec(_entry(mesh.axis_names)))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """Returns the axes that rows of activations are split over: all but the model's own."""
    return tuple(axis for axis in mesh.axis_names if axis != MODEL_AXIS)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a model runs on several devices: activations by rows, weights together where used.

    Hashable, as what is static under `jax.jit`. See `models.common.placement` for its use.

    Attributes:
      mesh: the devices.
      stored: (name, partition) of each weight.
    """

    mesh: Mesh
    stored: tuple[tuple[str, PartitionSpec], ...]

    @property
    def num_rows(self) -> int:
        """Into how many parts the batch is split."""
        return math.prod(self.mesh.shape[axis] for axis in batch_axes(self.mesh))

    @property
    def rows(self) -> NamedSharding:
        """Where activations lie: their first dimension is split, the others are whole."""
        axes = batch_axes(self.mesh)
        return NamedSharding(self.mesh, PartitionSpec(_entry(axes)) if axes else PartitionSpec())

    @property
    def everywhere(self) -> NamedSharding:
        """On every device all of it."""
        return NamedSharding(self.mesh, PartitionSpec())

    def where_stored(self, name: str) -> NamedSharding | None:
        """Returns where a weight lies between its uses; None: not split over rows' axes."""
        spec, axes = _by_name(self).get(name, PartitionSpec()), set(batch_axes(self.mesh))
        is_split = any(axes & set(_axes(entry)) for entry in spec)
        return NamedSharding(self.mesh, spec) if is_split else None

    def last_as_first_of(self, name: str) -> NamedSharding:
        """Returns where [B, T, V] lies, V split over all devices as a table's rows [V, D] are."""
        spec = _by_name(self).get(name, PartitionSpec())
        first = _axes(spec[0]) if spec else ()
        others = tuple(axis for axis in self.mesh.axis_names if axis not in first)
        return NamedSharding(self.mesh, PartitionSpec(None, None, (*first, *others)))

    def where_used(self, name: str) -> NamedSharding:
        """Returns where it lies while it is used: split over the model's own axis at most."""
        spec = _by_name(self)[name]
        kept = [MODEL_AXIS if MODEL_AXIS in _axes(entry) else None for entry in spec]
        return NamedSharding(self.mesh, PartitionSpec(*kept))


@functools.lru_cache(maxsize=16)
def _by_name(layout: Layout) -> dict[str, PartitionSpec]:
    return dict(layout.stored)


def make_layout(mesh: Mesh, rules: names.Rules[Tactic], arrays: Mapping[str, Any]) -> Layout | None:
    """Returns how a model of these arrays runs on a mesh; None on a device alone.

    Args:
      mesh: the devices.
      rules: as for `specs`.
      arrays: name -> anything with a shape and a dtype.
    """
    if mesh.size == 1:
        return None
    return Layout(mesh, tuple(specs(arrays, rules, mesh.shape).items()))


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


def axis_sizes(spec: Sequence[tuple[str, int]], num_devices: int) -> tuple[int, ...]:
    """Returns the sizes of a mesh's axes, as `make_mesh` takes them and raises."""
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
    steps = [_parse_step(text.strip(), axis_sizes) for text in tactic.split("|")]

    def split(name: str, array: Any) -> Spec:
        spec: Spec = (None,) * len(array.shape)
        for step in steps:
            spec = step(name, array, spec, axis_sizes)
        _check_fits(name, array.shape, spec, axis_sizes)
        return spec

    return split


def _parse_step(text: str, axis_sizes: Mapping[str, int]) -> "Step":
    """Returns what one part of a tactic does to the partition that the parts before it made."""
    if text == "replicate":
        return _replicate
    if text == "fsdp" and len(axis_sizes) > 1:
        raise ValueError(
            f"{WHAT}: 'fsdp' over which axis of the mesh? Write one of {list(axis_sizes)}"
        )
    if text == "fsdp" or text in axis_sizes:
        return _Fsdp(text if text in axis_sizes else next(iter(axis_sizes)))
    step = _parse_call(text)
    if step and step.is_valid() and set(_axes(step.axis)) <= set(axis_sizes):
        return step
    first = next(iter(axis_sizes))
    calls = [f'fsdp(axis="{first}")', f'shard_dim(axis="{first}", dim=-1)']
    known = ["replicate", "fsdp", *calls, *axis_sizes]
    near = phrases.nearest(text, known)
    raise ValueError(
        f"{WHAT}: '{text}' is not known. Nearest: {', '.join(near) or 'none'}. "
        f"Expected one of {known}, several of these joined by '|', or the axis of each dimension "
        f"as a tuple; the axes of the mesh are {list(axis_sizes)}"
    )


def _parse_call(text: str) -> "_Fsdp | _ShardDim | None":
    """Returns the step of the text 'name(literal, key=literal, ...)', None if it is not that."""
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Call) and (make := CALLS.get(ast.unparse(call.func))):
            arguments = [ast.literal_eval(item) for item in call.args]
            named = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
            return make(*arguments, **named)
    except (SyntaxError, TypeError, ValueError):
        pass
    return None


def _replicate(name: str, array: Any, spec: Spec, axis_sizes: Mapping[str, int]) -> Spec:
    del array, axis_sizes
    if any(spec):
        raise ValueError(
            f"{WHAT}: 'replicate' comes after a tactic that splits '{name}' as {spec}: drop one"
        )
    return spec


@dataclasses.dataclass(frozen=True)
class _Fsdp:
    """Splits the largest dimension that the axis divides and that is whole so far."""

    axis: str | Sequence[str]
    min_size_to_shard_mb: float = MIN_SIZE_TO_SHARD_MB

    def is_valid(self) -> bool:
        return bool(_axes(self.axis)) and isinstance(self.min_size_to_shard_mb, int | float)

    def __call__(self, name: str, array: Any, spec: Spec, axis_sizes: Mapping[str, int]) -> Spec:
        del name
        size_mb = math.prod(array.shape) * np.dtype(array.dtype).itemsize / 2**20
        if size_mb <= self.min_size_to_shard_mb:
            return spec
        divisor = math.prod(axis_sizes[axis] for axis in _axes(self.axis))
        divisible = [
            (size, dim)
            for dim, (size, entry) in enumerate(zip(array.shape, spec, strict=True))
            if entry is None and size % divisor == 0
        ]
        return _split(spec, max(divisible)[1], self.axis) if divisible else spec


@dataclasses.dataclass(frozen=True)
class _ShardDim:
    """Splits the dimension that it names, counted from the last one where negative."""

    axis: str | Sequence[str]
    dim: int
    ignore_ndim_error: bool = False

    def is_valid(self) -> bool:
        is_number = isinstance(self.dim, int) and not isinstance(self.dim, bool)
        return bool(_axes(self.axis)) and is_number and isinstance(self.ignore_ndim_error, bool)

    def __call__(self, name: str, array: Any, spec: Spec, axis_sizes: Mapping[str, int]) -> Spec:
        del axis_sizes
        shown = f"{WHAT}: shard_dim over {self.axis!r} splits dimension {self.dim} of '{name}'"
        if not -len(spec) <= self.dim < len(spec):
            if self.ignore_ndim_error:
                return spec
            raise ValueError(
                f"{shown}, which has {len(spec)}: {tuple(array.shape)}. Choose another, or let "
                f"such arrays be with ignore_ndim_error=True"
            )
        dim = self.dim % len(spec)
        if spec[dim] is not None:
            raise ValueError(
                f"{shown}, which is split over {spec[dim]!r} already: put shard_dim first, or "
                f"choose another dimension"
            )
        return _split(spec, dim, self.axis)


Step = Callable[[str, Any, Spec, Mapping[str, int]], Spec]
CALLS = {"fsdp": _Fsdp, "shard_dim": _ShardDim}


def _split(spec: Spec, dim: int, axis: str | Sequence[str]) -> Spec:
    return (*spec[:dim], _entry(_axes(axis)), *spec[dim + 1 :])


def _axes(entry: Any) -> tuple[str, ...]:
    """Returns the axes that one dimension is split over; () too where that is not what it says."""
    axes = (entry,) if isinstance(entry, str) else entry
    is_sequence = isinstance(axes, list | tuple) and all(isinstance(axis, str) for axis in axes)
    return tuple(axes) if is_sequence else ()


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
    if unknown := {axis for entry in spec for axis in _axes(entry)} - set(axis_sizes):
        raise ValueError(
            f"{WHAT}: {spec} names {sorted(unknown)}; the axes of the mesh are {list(axis_sizes)}"
        )
    _check_fits(name, shape, spec, axis_sizes)
    return spec


def _check_fits(name: str, shape: Sequence[int], spec: Spec, axis_sizes: Mapping[str, int]) -> None:
    """Raises a ValueError if a dimension is not divided evenly, or an axis is used twice."""
    for size, entry in zip(shape, spec, strict=True):
        divisor = math.prod(axis_sizes[axis] for axis in _axes(entry))
        if size % divisor:
            raise ValueError(
                f"{WHAT}: {spec} splits '{name}' of shape {tuple(shape)} into {divisor} parts, "
                f"which does not divide {size}"
            )
    used = [axis for entry in spec for axis in _axes(entry)]
    if repeated := {axis for axis in used if used.count(axis) > 1}:
        raise ValueError(
            f"{WHAT}: {spec} splits '{name}' of shape {tuple(shape)} twice over "
            f"{sorted(repeated)}: an axis of the mesh splits one dimension of an array at most"
        )


def _check_divisible(name: str, shape: tuple[int, ...], sharding: NamedSharding) -> None:
    try:
        sharding.shard_shape(shape)
    except ValueError as error:
        sizes = ", ".join(f"{axis}={size}" for axis, size in sharding.mesh.shape.items())
        raise ValueError(
            f"'{name}' of shape {tuple(shape)} cannot be split as {sharding.spec} over the mesh "
            f"{sizes}: choose a size (batch_size) that its devices divide"
        ) from error
