"""A checkpoint of a run as weights: to evaluate, predict with and convert.

It holds what trains; what was frozen is in the file that the run began with. Of a run that keeps a
moving average (`ema_decay`) the average counts, as in its evaluations and its final.npz.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.assembly import model_functions, weights
from paligemma_jax.checkpoints import (
    checksums,
    lazy_array,
    npz,
    partial_weights,
    train_checkpoint,
)
from paligemma_jax.console import say
from paligemma_jax.files import run_folder
from paligemma_jax.settings import load, schema

TRAINABLE, OPTIMIZER = "trainable", "optimizer"
BEST, LAST = "best", "last"


def choose(run: pathlib.Path, which: str) -> pathlib.Path:
    """Returns the folder of a run's checkpoint.

    Args:
      run: its folder.
      which: "best" (by the run's keep_best), "last" or a number of steps.

    Raises:
      ValueError: there is no such one; lists those that there are.
    """
    by_step = {
        int(path.name): path for path in train_checkpoint.steps(run / run_folder.CHECKPOINTS)
    }
    if not by_step:
        raise ValueError(f"--checkpoint {which}: {run / run_folder.CHECKPOINTS} holds none")
    if which == LAST:
        return by_step[max(by_step)]
    if which.isdecimal() and int(which) in by_step:
        return by_step[int(which)]
    metric = load.from_json(run / run_folder.CONFIG).keep_best
    values = {step: value for step, path in by_step.items() if (value := _value(path)) is not None}
    if which == BEST and metric and values:
        best = min if train_checkpoint.best_is(metric) == "min" else max
        return by_step[best(sorted(values), key=values.__getitem__)]
    raise ValueError(
        f"--checkpoint {which}: {_problem(which, metric)}{_list(run, by_step, metric)}"
    )


def is_checkpoint(source: str) -> bool:
    """Whether weights are named by a folder of a run's checkpoints."""
    path = pathlib.Path(source)
    return (
        path.parent.name == run_folder.CHECKPOINTS and (path / train_checkpoint.METADATA).is_dir()
    )


def find(path: pathlib.Path, base: str | None = None) -> partial_weights.Weights:
    """Returns the weights of a checkpoint with those that were frozen. Reads no array.

    Args:
      path: its folder, in its run's.
      base: what the run began with, if that is not where it was.

    Raises:
      ValueError: it is damaged; or the frozen weights cannot be had, or are others.
    """
    config = path.parents[1] / run_folder.CONFIG
    settings = load.from_json(config)
    try:
        stored = train_checkpoint.read_metadata(path)
    except train_checkpoint.Damaged as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    then = load.complete(stored["settings"], config.parent) if "settings" in stored else None
    if differing := load.differences(then, load.read_values(config) or {}) if then else []:
        lines = "\n  ".join(differing[:5])
        say.warning(f"{path} was made with other settings than those of {config}:\n  {lines}")
    keys = _find_arrays(stored["arrays"], averaged=settings.ema_decay is not None)
    own = {
        name: _describe(stored["arrays"][f"{group}/{key}"]) for name, (group, key) in keys.items()
    }
    below = _find_base(path, settings, stored["base"], base)
    if below and not base:
        say.info(f"{path}: what was not trained comes from its base {below.path}")
    arrays = {**(below.arrays if below else {}), **own}
    table = model_functions.choose_family(settings.model.family).names.embedding
    made = model_functions.describe(settings, vocab_size=arrays[table].shape[0])
    metadata = weights.metadata(settings, made, step=stored["step"], base=below)
    cast = settings.frozen_dtype if below else None

    def read_array(name: str) -> np.ndarray:
        if name in keys:
            return train_checkpoint.read_array(path, *keys[name])
        assert below is not None
        array = made.fit(name, below.read([name])[name])
        return lazy_array.cast(array, own[name].dtype, name=name)

    for name, array in (below.arrays if below else {}).items():
        if name not in own and array.shape != made.shapes()[name].shape:
            # A position embedding of another resolution, which the run has resampled.
            dtype = jnp.dtype(cast or array.dtype)
            own[name] = jax.ShapeDtypeStruct(made.shapes()[name].shape, dtype)
    return partial_weights.Weights(path, own, metadata, below, cast, read_own=_reader(read_array))


def _reader(read_array: Callable[[str], np.ndarray]) -> Callable[..., dict[str, Any]]:
    """Returns what reads a checkpoint's arrays as `npz.read` does a file's."""

    def read(
        path: pathlib.Path,
        *,
        names: Iterable[str],
        dtypes: Mapping[str, Any] | None = None,
        transform: Callable[[str, Any], Any] | None = None,
        place: Callable[[str, Any], Any] | None = None,
        progress: npz.Progress | None = None,
    ) -> dict[str, Any]:
        params, done = {}, 0
        for name in names:
            try:
                array = read_array(name)
            except train_checkpoint.Damaged as error:
                raise ValueError(f"{path} is damaged: {error}") from error
            done += array.nbytes
            array = lazy_array.cast(array, (dtypes or {}).get(name, array.dtype), name=name)
            array = transform(name, array) if transform else array
            params[name] = place(name, array) if place else array
            if progress:
                progress(done, 0)
        return params

    return read


def _find_arrays(stored: Iterable[str], *, averaged: bool) -> dict[str, tuple[str, str]]:
    """Returns name of a parameter -> (group, name in it)."""
    split = [name.partition("/")[::2] for name in stored]
    trainable = {name: (TRAINABLE, name) for group, name in split if group == TRAINABLE}
    if not averaged:
        return trainable
    # As the optimizer's state is flattened: PLACE/params/NAME, see `training.average`.
    held = {key.partition("/params/")[2]: key for group, key in split if group == OPTIMIZER}
    return {name: (OPTIMIZER, held[name]) for name in trainable}


def _find_base(
    path: pathlib.Path,
    settings: schema.Settings,
    recorded: Mapping[str, Any] | None,
    asked: str | None,
) -> partial_weights.Weights | None:
    """Returns the weights that the run began with; None where nothing of them is left."""
    if recorded is None:
        if asked:
            raise ValueError(f"{path} has all arrays: leave the base {asked} out")
        return None
    if "path" not in recorded:
        raise ValueError(
            f"{path}: its frozen weights are random ones of seed {recorded['seed']}, which are in "
            f"no file. The run's final.npz will have them"
        )
    if asked is None:
        record = {**recorded, "source": settings.model_init}
        asked = str(
            partial_weights.find_recorded(record, weights.fetch, f"{path}: trained arrays alone")
        )
    frozen = weights.find(asked, settings.model_init_base)
    if "+".join(checksums.of_file(file) for file in frozen.files) != recorded["fingerprint"]:
        raise ValueError(
            f"{path} was trained from {settings.model_init}; {asked} is another file: give the "
            f"right one as --base"
        )
    return frozen


def _describe(stored: Any) -> jax.ShapeDtypeStruct:
    shape, dtype, *_ = stored
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))


def _value(path: pathlib.Path) -> float | None:
    """Returns what `keep_best` compared; None where nothing was measured."""
    try:
        return train_checkpoint.read_metadata(path)["value"]
    except train_checkpoint.Damaged:
        return None


def _problem(which: str, metric: str | None) -> str:
    if which != BEST:
        expected = "" if which.isdecimal() else "expected 'best', 'last' or a number of steps; "
        return f"{expected}there is no such one. "
    return f"none has a value of {metric}. " if metric else "the run had no keep_best. "


def _list(run: pathlib.Path, by_step: Mapping[int, pathlib.Path], metric: str | None) -> str:
    values = {step: _value(path) for step, path in sorted(by_step.items())}
    shown = [f"{s}" if v is None else f"{s} ({metric} {v:.4g})" for s, v in values.items()]
    return f"{run / run_folder.CHECKPOINTS} holds {', '.join(shown)}"
