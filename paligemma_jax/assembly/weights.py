"""Weights on their devices: from a file, array by array, or random; and back into a file."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from paligemma_jax.assembly import model_functions
from paligemma_jax.checkpoints import lazy_array, npz, partial_weights
from paligemma_jax.console import say
from paligemma_jax.hub import addresses, download, sites
from paligemma_jax.models import family, mask_codec
from paligemma_jax.params import lora, names, released_models, sharding
from paligemma_jax.settings import schema
from paligemma_jax.tasks import task
from paligemma_jax.wording import phrases

Shapes = Mapping[str, jax.ShapeDtypeStruct]


def expected_shapes(
    settings: schema.Settings,
    model: family.Model,
    trainable: Collection[str],
    stored: Shapes | None,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns name, shape and type of every parameter as it will be in memory.

    Trainable parameters and low-rank factors are float32; other ones are `frozen_dtype`, or as the
    file stores them.
    """

    def dtype(name: str) -> Any:
        if name in trainable or names.is_factor(name):
            return jnp.float32
        return settings.frozen_dtype or (stored[name].dtype if stored else jnp.float32)

    return {
        name: jax.ShapeDtypeStruct(shape.shape, dtype(name))
        for name, shape in model.shapes().items()
    }


def fetch(source: str) -> pathlib.Path:
    """Returns the local file of a vanity name, an address or a path; downloads it if need be."""
    with say.progress(f"fetching {download.public(source)}", unit="B", unit_scale=True) as report:
        if damaged := sites.remove_damaged(source):
            say.info(f"{damaged}: damaged, removed: it is fetched again")
        return pathlib.Path(addresses.resolve(source, progress=report))


def find_npz(
    source: str, base: pathlib.Path | None = None
) -> tuple[pathlib.Path, pathlib.Path | None]:
    """Returns (npz file, its base) of a name, an address or a path, also of a folder."""
    path = fetch(source)
    if not path.is_dir():
        return path, base
    return addresses.npz_of_folder(
        path, base, fetch=lambda name: find_npz(name)[0], working=say.working
    )


@contextlib.contextmanager
def named_by(key: str, source: str, hint: str) -> Iterator[None]:
    """Adds to an error within which config key names the file, and what else it can be."""
    try:
        yield
    except (ValueError, OSError) as error:
        error.add_note(f"the config key {key} names the file, here '{source}'. {hint}")
        raise


def find(source: str, base: str | None = None) -> partial_weights.Weights:
    """Returns the weights of a name, an address or a path, with their base's if they need one.

    Fetches files if need be; reads no array. `base`: as `source`; None: what the file itself names,
    as far as `partial_weights.find` believes it.
    """
    path, below = find_npz(source, find_npz(base)[0] if base else None)
    weights = partial_weights.find(
        path,
        base=below,
        fetch=lambda name: find_npz(name)[0],
        published={*released_models.FILES, *released_models.SHIPPED},
    )
    if weights.base and not base:
        say.info(f"{weights.path}: what was not trained comes from its base {weights.base.path}")
    return weights


def check(settings: schema.Settings, stored: partial_weights.Weights, model: family.Model) -> None:
    """Makes sure that stored weights fit the model. Reads no array.

    Raises:
      ValueError: another grid of position embeddings (unless `model.img.resample_posemb`), or
        arrays that are missing, extra or misshapen, all of them listed; or what the file says of
        itself (loc convention, soft-caps, query scale, how factors act) contradicts the settings.
        Without any low-rank factor it fits: these are then made.
    """
    arrays, where = stored.arrays, os.fspath(stored.path)
    stored_family = model_functions.family_of_arrays(arrays)
    if stored_family is not None and stored_family.name != model.kind.name:
        raise ValueError(
            f"{where} holds weights of the family '{stored_family.name}', and the settings say "
            f"model.family='{model.kind.name}'"
        )
    expected = model.shapes()
    if not any(map(names.is_factor, arrays)):
        expected = {name: shape for name, shape in expected.items() if not names.is_factor(name)}
    shapes = {name: array.shape for name, array in arrays.items()}
    shapes = model.fit_shapes(shapes, resample=settings.model.img.resample_posemb, where=where)
    try:
        names.check_shapes(shapes, expected, where=where)
    except ValueError as error:
        raise ValueError(f"{recognize(shapes, settings, model, where=where)}{error}") from error
    _check_metadata(settings, model, stored.metadata, where=where)


def load(
    stored: partial_weights.Weights,
    expected: Mapping[str, Any],
    where: Mapping[str, Any],
    *,
    model: family.Model,
) -> dict[str, Any]:
    """Returns stored parameters in the types of `expected`, or quantized, placed as `where` says.

    Arrays go to their devices one by one, cast while they are read: the host holds one at a time.
    """

    def convert(name: str, array: np.ndarray) -> Any:
        return model_functions.fit_dtype_on_host(model.fit(name, array), expected[name])

    def place(name: str, array: Any) -> Any:
        return jax.tree.map(functools.partial(sharding.place, name), array, where[name])

    held = [name for name in expected if name in stored.arrays]
    # Position embeddings of another grid are resampled first, and what is quantized is not cast.
    dtypes = {
        name: expected[name].dtype
        for name in held
        if isinstance(expected[name], jax.ShapeDtypeStruct)
        and expected[name].shape == stored.arrays[name].shape
    }
    with say.progress(f"loading {stored.path}", unit="B", unit_scale=True) as report:
        return stored.read(held, dtypes=dtypes, transform=convert, place=place, progress=report)


def init_factors(
    model: family.Model, where: Mapping[str, Any], *, seed: int
) -> dict[str, jax.Array]:
    """Returns low-rank factors that change nothing yet, each made where it lives."""
    make = model.init_factors
    shardings = {name: where[name] for name in jax.eval_shape(make, jax.random.key(seed))}
    with say.working("making new LoRA factors"):
        return jax.jit(make, out_shardings=shardings)(jax.random.key(seed))


def init_random(
    model: family.Model,
    expected: Mapping[str, Any],
    where: Mapping[str, Any],
    *,
    seed: int,
) -> dict[str, Any]:
    """Returns random parameters, each made where it lives."""
    places = tuple((name, where[name]) for name in expected)
    make = family.jit_init(model, tuple(expected.items()), places, fit=model_functions.fit_dtype)
    with say.working("making random weights"):
        return make(jax.random.key(seed))


def save(path: pathlib.Path, params: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Writes parameters as one npz file that big_vision reads, none of them quantized; says so.

    With several processes, all of them gather one array after the other, and the first one writes.
    """
    written = model_functions.as_written(params)
    if jax.process_count() > 1:
        written = {
            name: lazy_array.Deferred(
                array.shape, jnp.dtype(array.dtype), functools.partial(_gather, params[name])
            )
            for name, array in written.items()
        }
    if jax.process_index() == 0:
        with say.progress(f"saving {path}", unit="B", unit_scale=True) as report:
            npz.write(path, written, metadata=metadata, progress=report)
        say.info(f"saved {path}, {phrases.size(path.stat().st_size)}")
        return
    for array in params.values():
        _gather(array)


def _gather(array: Any) -> np.ndarray:
    """Returns an array of all processes, which all of them ask for, as a file has it."""
    gathered = {"": multihost_utils.process_allgather(array, tiled=True)}
    return np.asarray(model_functions.as_written(gathered)[""])


def metadata(
    settings: schema.Settings,
    model: family.Model,
    *,
    step: int,
    base: partial_weights.Weights | None,
) -> dict[str, Any]:
    """Returns what a file of weights should say of itself and shapes cannot.

    Args:
      settings, model: of the run.
      step: updates done.
      base: what `model_init` stands for.
    """
    values = {
        "format": "paligemma_jax",
        "variant": {"img": settings.model.img.variant, "llm": settings.model.llm.variant},
        **model_metadata(model),
        "coordinates": settings.coordinates,
        "task": settings.task,
        "model_init": settings.model_init,
        "step": step,
    }
    if settings.quantize is not None:
        is_kind = isinstance(settings.quantize, str)
        values["quantize"] = settings.quantize if is_kind else str(list(settings.quantize))
    if base:
        values[partial_weights.BASE] = partial_weights.describe_base(
            settings.model_init or str(base.path), base, dtype=settings.frozen_dtype
        )
    return values


def model_metadata(model: family.Model) -> dict[str, Any]:
    """Returns what a file of weights says of its model, besides its arrays."""
    values = {
        "res": model.res,
        "vocab_size": model.vocab_size,
        **model.metadata(),
    }
    return values | ({partial_weights.LORA: dataclasses.asdict(model.lora)} if model.lora else {})


def _check_metadata(
    settings: schema.Settings,
    model: family.Model,
    stored: Mapping[str, Any],
    *,
    where: str,
) -> None:
    """Compares what shapes cannot show; published files say nothing of themselves."""
    keeps_coordinates = task.look_up(settings.task).keeps_coordinates
    is_same_task = stored.get("task") == settings.task
    expected = {"coordinates": settings.coordinates} if keeps_coordinates and is_same_task else {}
    expected |= model.metadata()
    if partial_weights.LORA in stored and model.lora:
        _check_lora(lora.Lora(**stored[partial_weights.LORA]), model.lora, where)
    differing = [
        f"{key} {stored[key]!r}, the settings {value!r}"
        for key, value in expected.items()
        if key in stored and stored[key] != value
    ]
    if differing:
        raise ValueError(
            f"{where} was made with other settings: it says {'; '.join(differing)}. "
            f"Set coordinates, model.llm.final_logits_softcap or model.llm.dims as it says"
        )


def _check_lora(stored: lora.Lora, wanted: lora.Lora, where: str) -> None:
    """Raises a ValueError if factors were trained to act with another strength."""
    if not math.isclose(stored.scale, wanted.scale):
        raise ValueError(
            f"{where}: its LoRA factors are multiplied by {stored.scale:g} (rank {stored.rank}, "
            f"alpha {stored.alpha:g}, rank_stabilized {stored.rank_stabilized}), the settings' by "
            f"{wanted.scale:g}. Set lora.alpha and lora.rank_stabilized as it says"
        )


@functools.cache
def describe_devices() -> str:
    """Returns the devices in words, loud where there is only a CPU."""
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    text = f"{len(devices)} x {', '.join(kinds)} ({jax.default_backend()}), jax {jax.__version__}"
    if jax.default_backend() == "cpu":
        text += ": ON THE CPU. For a GPU install paligemma_jax[cuda12], for a TPU [tpu]"
    return text


def make_mesh(settings: schema.Settings) -> Mesh:
    """Returns the mesh of the settings."""
    return sharding.make_mesh([(axis, size) for axis, size in settings.mesh])


def check_divisible(batch_size: int, mesh: Mesh, *, key: str, parts: int = 1) -> None:
    """Raises a ValueError if the devices cannot share `batch_size` rows in `parts` equal parts."""
    if batch_size % (mesh.size * parts):
        by = phrases.count(mesh.size, "devices")
        by += f" x {parts} micro-batches (accumulation_steps)" if parts > 1 else ""
        near = max(1, round(batch_size / (mesh.size * parts))) * mesh.size * parts
        raise ValueError(
            f"{key}={batch_size} is not divisible by {by}; the nearest that is: {near}"
        )


def check_name(settings: schema.Settings, model: family.Model) -> None:
    """Raises a ValueError if `model_init` names a released file of another model or resolution.

    Looks at the name alone: before the file is fetched. `model` is that of the settings.
    """
    model_functions.check_shipped(settings)
    entry = released_models.FILES.get(settings.model_init or "")
    if entry is None:
        return
    if entry.model not in model.kind.released:
        raise ValueError(
            f"model_init={settings.model_init!r} is {entry.model}, which is not of the family "
            f"'{model.kind.name}': set model.family, or model_init=None (random)"
        )
    wanted = {} if _fits(entry, model) else _towers(entry, settings, model)
    if settings.res != entry.res and not settings.model.img.resample_posemb:
        wanted["res"] = (settings.res, entry.res)
    differing = {key: pair for key, pair in wanted.items() if pair[0] != pair[1]}
    if differing:
        says = ", ".join(f"{key}={asked!r}" for key, (asked, _) in differing.items())
        remedy = ", ".join(f"{key}={needed!r}" for key, (_, needed) in differing.items())
        fits = [
            name
            for name, other in released_models.FILES.items()
            if other.model in model.kind.released
            and _fits(other, model)
            and other.res == settings.res
            and other.kind != released_models.FT
        ]
        other = f", or model_init as one of {fits}" if fits else ", or model_init=None (random)"
        raise ValueError(
            f"model_init={settings.model_init!r} is {entry.model} at {entry.res} px, but the "
            f"settings say {says}: set {remedy}{other}"
        )


def _fits(entry: released_models.ReleasedFile, model: family.Model) -> bool:
    """Returns whether a released model's towers have the dimensions of `model`."""
    return model.is_released(entry.model)


def _towers(
    entry: released_models.ReleasedFile, settings: schema.Settings, model: family.Model
) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (value in the settings, value that the file needs)}."""
    needed = model.kind.released[entry.model]
    return {key: (_value(settings, key), value) for key, value in needed.items()}


def _value(settings: schema.Settings, key: str) -> Any:
    value = functools.reduce(getattr, key.split("."), settings)
    return dict(value) if isinstance(value, Mapping) else value


def recognize(
    shapes: Mapping[str, Sequence[int]],
    settings: schema.Settings,
    model: family.Model,
    *,
    where: str,
) -> str:
    """Returns a line that says which released model a file holds, if the settings are another's."""
    name = model.kind.recognize(shapes)
    if name is None:
        return ""
    needed = {key: value for key, value in model.kind.released[name].items() if value is not None}
    asked = {key: _value(settings, key) for key in needed}
    if asked == needed:
        return ""
    remedy = " and ".join(f"{key}={value!r}" for key, value in needed.items())
    given = " and ".join(repr(value) for value in asked.values())
    return f"{where} is {name}: set {remedy}, which are {given}.\n"


# From a file of weights to the two functions that segmentation needs of a mask codec.

OWN_CODEC = "experiments/mask_codec/codec.npz"
PUBLISHED_CODEC = schema.Settings().mask_codec


@dataclasses.dataclass(frozen=True)
class MaskCodec:
    """A mask codec on its weights, for any number of masks.

    Attributes:
      encode: float32[n, 64, 64] in 0..1 -> int32[n, 16].
      decode: int[n, 16] -> float32[n, 64, 64], above 0 inside.
      path: of its weights.
    """

    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    path: pathlib.Path


@functools.cache
def load_codec(source: str) -> MaskCodec:
    """Returns the codec of an address or a path; read once.

    Raises:
      ValueError: the file is no mask codec. FileNotFoundError, download.DownloadError: no file.
    """
    path = fetch(source)
    shapes = {name: array.shape for name, array in npz.read_header(path).arrays.items()}
    mask_codec.check(shapes, where=str(path))
    params = npz.read(path)
    return MaskCodec(
        encode=_in_few_sizes(jax.jit(functools.partial(mask_codec.encode, params))),
        decode=_in_few_sizes(jax.jit(functools.partial(mask_codec.decode, params))),
        path=path,
    )


def codec_of_task(source: str) -> MaskCodec:
    """Returns the codec that the config key mask_codec names; errors as of `load_codec`."""
    hint = f"For data converted with this project's own codec: --config.mask_codec={OWN_CODEC}"
    with named_by("mask_codec", source, hint):
        return load_codec(source)


def _in_few_sizes(function: Callable[..., jax.Array]) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function on batches padded to a power of two, so that few sizes are compiled."""

    def call(batch: np.ndarray) -> np.ndarray:
        count = len(batch)
        size = 1 << max(count - 1, 0).bit_length()
        padded = np.pad(batch, ((0, size - count), *((0, 0),) * (batch.ndim - 1)))
        return np.asarray(function(padded))[:count]

    return call
