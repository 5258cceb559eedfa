"""Weights in a file of trained arrays only, and in the base that has the others.

Fine-tuning changes some arrays and leaves the others as they are, so it is enough to write 0.7 GB
instead of 5.8. The file's metadata records the base: its name, its path, its fingerprint (another
file in its place is an error), and the dtype that the run held its arrays in. Read together, both
files give bit for bit what the whole file would hold.

A run's folder is its user's own: its base is opened wherever it was. Any other file may come from
anybody, so what it says opens nothing but a file beside it or a released one.
"""

import dataclasses
import functools
import math
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.checkpoints import checksums, huggingface_names, lazy_array, npz
from paligemma_jax.files import run_folder
from paligemma_jax.params import lora as lora_lib
from paligemma_jax.params import names as parameter_names

# Metadata: what the weights were trained from, and (where arrays are left out) how many there are
# with those of the base.
BASE, NUM_ARRAYS = "base", "num_arrays_with_base"
RECORDED = ("source", "path", "fingerprint")  # of a base, beside its dtype
BASE_DTYPES = ("float32", "float16", "bfloat16")
SHOWN_DIGITS = 12  # of a fingerprint, in messages

Fetch = Callable[[str], pathlib.Path]


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of an .npz file, those of its base included where it needs one.

    Attributes:
      path: the file.
      own: shape and type of the arrays in the file itself, by name.
      metadata: of the file.
      base: has the other arrays; None: there are no others.
      base_dtype: what the base's arrays are cast to; None: they keep their types.
      read_own: reads arrays of the file itself, with the arguments of `npz.read`.
      fingerprint: of the file when it was found, see `checksums.of_file`; "": it is none.
    """

    path: pathlib.Path
    own: Mapping[str, jax.ShapeDtypeStruct]
    metadata: Mapping[str, Any]
    base: "Weights | None" = None
    base_dtype: str | None = None
    read_own: Callable[..., dict[str, Any]] = npz.read
    fingerprint: str = ""

    @property
    def arrays(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and type of all arrays by name."""
        below = self.base.arrays if self.base else {}
        if self.base_dtype:
            dtype = jnp.dtype(self.base_dtype)
            below = {name: jax.ShapeDtypeStruct(x.shape, dtype) for name, x in below.items()}
        return {**below, **self.own}

    @property
    def files(self) -> list[pathlib.Path]:
        """The file, its base, the base's base, and so on."""
        return [self.path, *(self.base.files if self.base else ())]

    def read(
        self,
        names: Iterable[str] | None = None,
        *,
        dtypes: Mapping[str, Any] | None = None,
        transform: npz.Transform | None = None,
        place: npz.Place | None = None,
        progress: npz.Progress | None = None,
    ) -> dict[str, Any]:
        """Returns arrays by name: as `npz.read`, whichever of the files they are in."""
        names = list(self.arrays if names is None else names)
        own = [name for name in names if name in self.own or self.base is None]
        others = [name for name in names if name not in self.own]
        total, before = self._num_bytes(names), self._num_bytes(own)

        def report(done: int, _: int) -> None:
            if progress:
                progress(done, total)

        options = {"transform": transform, "place": place}
        params = self.read_own(self.path, names=own, dtypes=dtypes, progress=report, **options)
        check_unchanged(self)
        if self.base and others:
            as_held = dict.fromkeys(others, self.base_dtype) if self.base_dtype else None
            params |= self.base.read(
                others,
                dtypes=as_held or dtypes,
                transform=_cast_then(transform, self.base_dtype),
                place=place,
                progress=lambda done, _: report(before + done, total),
            )
        return {name: params[name] for name in names}

    def _num_bytes(self, names: Iterable[str]) -> int:
        """Returns the size of arrays as they are stored."""
        own, others = [], []
        for name in names:
            (own if name in self.own else others).append(name)
        sizes = [math.prod(self.own[name].shape) * self.own[name].dtype.itemsize for name in own]
        return sum(sizes) + (self.base._num_bytes(others) if self.base else 0)


def find(
    path: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    fetch: Fetch | None = None,
    published: Collection[str] = (),
) -> Weights:
    """Returns the weights of an .npz file with those of the base that it needs. Reads no array.

    Args:
      path: the file.
      base: the file's base; None: the one that its metadata names, if it lacks arrays. That of a
        run's final.npz is opened wherever it was; that of another file only if it lies beside it,
        or is one of `published`.
      fetch: name or address of a base that is not where it was -> file; None: looks no further.
      published: names that any file may have `fetch` look for.

    Raises:
      ValueError: as `npz.read_header`; a base that is not found, that is another one than the
        weights were trained from, or that is given where nothing is missing.
    """
    return _find(pathlib.Path(path), base, fetch, published, above=())


def _find(
    path: pathlib.Path,
    base: str | os.PathLike[str] | None,
    fetch: Fetch | None,
    published: Collection[str],
    *,
    above: tuple[pathlib.Path, ...],
) -> Weights:
    """As `find`. `above`: the files whose base this one is."""
    if path.resolve() in above:
        raise ValueError(f"{path} is the base of its own base: give the right one as --base")
    fingerprint = checksums.of_file(path)
    header = npz.read_header(path)
    metadata = {key: value for key, value in header.metadata.items() if key != "dtypes"}
    num_arrays = metadata.pop(NUM_ARRAYS, None)
    if base is None and num_arrays is None:
        return Weights(path, header.arrays, metadata, fingerprint=fingerprint)
    record = _check_record(metadata, num_arrays, path)
    if base is None:
        missing = f"{path}: {(num_arrays or 0) - len(header.arrays)} of {num_arrays} arrays missing"
        if _is_runs(path):
            base = find_recorded(record, fetch, missing)
        else:
            base = _find_beside(path, record, fetch, published, missing)
    try:
        below = _find(pathlib.Path(base), None, fetch, published, above=(*above, path.resolve()))
    except (ValueError, OSError) as error:
        raise ValueError(f"the base of {path}: {error}") from error
    _check_same(path, below, record)
    if not below.arrays.keys() - header.arrays.keys():
        raise ValueError(f"{path} has all arrays of the base {base}: leave the base out")
    dtype = record.get("dtype")
    return Weights(path, header.arrays, metadata, below, dtype, fingerprint=fingerprint)


def _is_runs(path: pathlib.Path) -> bool:
    """Whether a file is the final.npz in a run's folder."""
    return path.name == run_folder.FINAL and (path.parent / run_folder.CONFIG).is_file()


def _check_record(metadata: Mapping[str, Any], num_arrays: Any, path: pathlib.Path) -> Mapping:
    """Returns what a file's metadata says of its base, which can say anything."""
    record = metadata.get(BASE) or {}
    remedy = "Give the base as --base, or write the file anew with a run's own final.npz"
    if not isinstance(record, dict):
        raise ValueError(
            f"{path}: its metadata says base={record!r:.60}, expected an object. {remedy}"
        )
    wrong = {
        f"{BASE}.{key}": value
        for key, value in record.items()
        if key in RECORDED and not isinstance(value, str | None)
    }
    if record.get("dtype") not in (None, *BASE_DTYPES):
        wrong[f"{BASE}.dtype"] = record["dtype"]
    if num_arrays is not None and (type(num_arrays) is not int or not 0 < num_arrays < 2**31):
        wrong[NUM_ARRAYS] = num_arrays
    if wrong:
        entries = "; ".join(f"{key}={value!r:.60}" for key, value in wrong.items())
        raise ValueError(f"{path}: its metadata says {entries}, which cannot be. {remedy}")
    return record


def find_recorded(
    record: Mapping[str, Any], fetch: Fetch | None, missing: str
) -> str | os.PathLike[str]:
    """Returns where the base is that trained arrays recorded: where it was, or fetched again.

    Args:
      record: from `describe_base`.
      fetch: as in `find`.
      missing: what lacks without it, for the error.

    Raises:
      ValueError: it is not to be had.
    """
    path, source = record.get("path") or "", record.get("source") or ""
    if os.path.isfile(path):
        return path
    advice = f"{missing}: trainable-only file, give --base. Its base {source} was at {path}"
    if not fetch:
        raise ValueError(f"{advice}, where it is no more")
    try:
        return fetch(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"{advice}; {error}") from error


def _find_beside(
    path: pathlib.Path,
    record: Mapping[str, Any],
    fetch: Fetch | None,
    published: Collection[str],
    missing: str,
) -> pathlib.Path:
    """Returns the base of a file from anywhere: a file beside it, or a released one."""
    recorded, source = record.get("path") or "", record.get("source") or ""
    for place in (recorded, source):
        name = re.split(r"[/\\]", place)[-1]
        beside = path.parent / name
        if name.endswith(".npz") and name.isprintable() and beside.is_file():
            return beside
    advice = (
        f"{missing}: trainable-only file, give --base. It names {source or 'no base'!r:.200} at "
        f"{recorded!r:.200}"
    )
    if not fetch or source not in published:
        raise ValueError(
            f"{advice}; of what a file says only a base in its own folder or a released one is "
            f"opened"
        )
    try:
        return fetch(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"{advice}; {error}") from error


def describe_base(source: str, weights: Weights, *, dtype: str | None) -> dict[str, Any]:
    """Returns what the metadata of trained weights says of their base.

    The fingerprint is that of the file that was read: one that has taken its place since is told
    from it when the two are read together.

    Args:
      source: what the base was called: a published name, an address or a path.
      weights: the base.
      dtype: type that its arrays were cast to; None: they kept theirs.
    """
    return {
        "source": source,
        "path": os.path.abspath(weights.path),
        "fingerprint": weights.fingerprint,
        "dtype": dtype,
    }


def check_unchanged(weights: Weights) -> None:
    """Raises a ValueError if other files have taken the place of the weights or their base."""
    if weights.base:
        check_unchanged(weights.base)
    if not weights.fingerprint:
        return
    try:
        actual = checksums.of_file(weights.path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{weights.path} was replaced while it was in use: it had the fingerprint "
            f"{weights.fingerprint[:SHOWN_DIGITS]}, and now: {error}. Put the first one back"
        ) from error
    if actual != weights.fingerprint:
        raise ValueError(
            f"{weights.path} was replaced while it was in use: it had the fingerprint "
            f"{weights.fingerprint[:SHOWN_DIGITS]}, the file there now has "
            f"{actual[:SHOWN_DIGITS]}. Put the first one back"
        )


def differing(arrays: Mapping[str, Any], base: Weights) -> set[str]:
    """Returns which arrays, by their shapes and names, cannot be had from the base."""
    stored = base.arrays
    return {
        name
        for name, array in arrays.items()
        if name not in stored or stored[name].shape != array.shape
    }


def _check_same(path: pathlib.Path, base: Weights, record: Mapping[str, Any]) -> None:
    """Raises a ValueError if the weights were trained from another base than this file."""
    expected = record.get("fingerprint")
    if expected and base.fingerprint != expected:
        raise ValueError(
            f"{path} was trained from {record.get('source')} (fingerprint "
            f"{expected[:SHOWN_DIGITS]}); {base.path} is another file "
            f"({base.fingerprint[:SHOWN_DIGITS]}): give the right one as --base"
        )


def _cast_then(transform: npz.Transform | None, dtype: str | None) -> npz.Transform | None:
    """Returns the transform that casts first."""
    if not dtype:
        return transform

    def cast(name: str, array: np.ndarray) -> Any:
        array = lazy_array.cast(array, dtype, name=name)
        return transform(name, array) if transform else array

    return cast


# Weights with their low-rank factors added in: what serving without LoRA needs.

# Metadata: how the factors of a file act, as the attributes of `lora.Lora`.
LORA = "lora"


@dataclasses.dataclass(frozen=True)
class Merged:
    """Weights that are read as w + scale A B; read and described as `Weights` are.

    Attributes:
      weights: with factors.
      factors: all of them, in memory.
      lora: how they act: scale and targets.
      pieces: of the family that they are of, as `huggingface_names.pieces`.
    """

    weights: Weights
    factors: Mapping[str, np.ndarray]
    lora: lora_lib.Lora
    pieces: Callable[..., list[huggingface_names.Piece]] = huggingface_names.pieces

    @property
    def path(self) -> pathlib.Path:
        """The file."""
        return self.weights.path

    @property
    def files(self) -> list[pathlib.Path]:
        """The file, its base, the base's base, and so on."""
        return self.weights.files

    @functools.cached_property
    def arrays(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and type of all arrays by name: those of the base."""
        arrays = self.weights.arrays
        return {name: x for name, x in arrays.items() if not parameter_names.is_factor(name)}

    @property
    def metadata(self) -> dict[str, Any]:
        """The file's metadata, without what describes its factors."""
        return {key: value for key, value in self.weights.metadata.items() if key != LORA}

    def read(
        self,
        names: Iterable[str] | None = None,
        *,
        transform: npz.Transform | None = None,
        place: npz.Place | None = None,
        progress: npz.Progress | None = None,
    ) -> dict[str, Any]:
        """Returns arrays by name: as `npz.read`. The factors are added before `transform`."""
        pairs = lora_lib.pairs(self.factors)
        whole = {**self.arrays, **self.factors}
        layers = huggingface_names.pieces_with_factors(whole, self.pieces)

        def merge(name: str, array: np.ndarray) -> Any:
            if name in pairs:
                a, b = (self.factors[factor] for factor in pairs[name])
                array = huggingface_names.merge_factors(
                    array, a, b, layers=layers[name], scale=self.lora.scale
                )
            return transform(name, array) if transform else array

        chosen = list(self.arrays if names is None else names)
        return self.weights.read(chosen, transform=merge, place=place, progress=progress)


def merge(
    weights: Weights,
    pieces: Callable[..., list[huggingface_names.Piece]] = huggingface_names.pieces,
) -> Merged:
    """Returns weights with their factors added in. Weights without any are a ValueError.

    `pieces`: of their family.
    """
    lora = describe_lora(weights)
    if lora is None:
        raise ValueError(f"{weights.path}: no LoRA factors, nothing to merge")
    factors = weights.read(filter(parameter_names.is_factor, weights.arrays))
    return Merged(weights, factors, lora, pieces)


def describe_lora(weights: Weights | Merged) -> lora_lib.Lora | None:
    """Returns how the factors of weights act, None where there are none.

    Raises:
      ValueError: there are some, but the file does not say.
    """
    if not any(map(parameter_names.is_factor, weights.arrays)):
        return None
    if LORA not in weights.metadata:
        raise ValueError(
            f"{weights.path}: has LoRA factors, but its metadata does not say how they act "
            f"('{LORA}': targets, rank, alpha, dropout, rank_stabilized)"
        )
    lora_settings = weights.metadata[LORA]
    try:
        return lora_lib.Lora(**lora_settings)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{weights.path}: its metadata says {LORA}={lora_settings!r:.60}, expected "
            f"targets, rank, alpha, dropout and rank_stabilized ({error})"
        ) from error
