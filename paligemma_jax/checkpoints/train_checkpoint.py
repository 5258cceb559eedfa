"""Checkpoints of a run in orbax's format: lists, reads, verifies and writes them.

    checkpoints/000200/GROUP/      arrays by name, sharded as they were or otherwise when read
    checkpoints/000200/metadata/   JSON: the caller's metadata; shape, dtype and checksum of each
    checkpoints/000200/sizes.json  of the files

A checkpoint appears under its name when all of it is on the disk. Damage that happens later is
detected by the sizes and the checksums (see `checksums`): the storage format itself detects little
of it. `Writer` saves checkpoints with orbax while training goes on.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from paligemma_jax.checkpoints import checksums
from paligemma_jax.files import atomic

Groups = Mapping[str, Mapping[str, Any]]  # group -> name -> array, or its ShapeDtypeStruct

METADATA, SIZES = "metadata", "sizes.json"
STEP_DIGITS = 6
OVERHEAD_BYTES = 64 * 1024  # at most, of a small checkpoint's tables


class Damaged(Exception):
    """A checkpoint whose files are not what was written."""


def steps(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the checkpoints of a folder, newest first, damaged ones too."""
    folders = [path for path in folder.glob("[0-9]*") if path.name.isdecimal() and path.is_dir()]
    return sorted(folders, key=lambda path: int(path.name), reverse=True)


def read_metadata(path: pathlib.Path) -> dict[str, Any]:
    """Returns what a checkpoint says of itself.

    Raises:
      Damaged: it is not there, or not what was written.
    """
    try:
        stored = json.loads((path / METADATA / METADATA).read_bytes())
        content = stored["content"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"no metadata ({type(error).__name__})") from error
    if sha256(content) != stored.get("sha256"):
        raise Damaged("its metadata was changed")
    if content["step"] != int(path.name):
        raise Damaged(f"it says that it is of step {content['step']}")
    return content


def read(path: pathlib.Path, like: Groups) -> dict[str, dict[str, jax.Array]]:
    """Returns a checkpoint's groups, verified.

    Args:
      path: `checkpoints/000200`.
      like: shape, type and sharding of every array wanted; groups that are not named are not read.

    Raises:
      Damaged: an array is missing, or not what was written.
      ValueError: the checkpoint holds other arrays than `like`: the first of them are named.
    """
    described = read_metadata(path)["arrays"]
    _check_same_arrays(path, described, like)
    problem, groups = _check_sizes(path), {}
    if problem is None:
        groups, problem = _try_read(path, like)
    # Processes read different parts: what one of them finds damaged is so for all.
    if not _all(problem is None):
        raise Damaged(problem or "another process found a damaged part")
    for group, arrays in groups.items():
        for name, digest in checksums.of_arrays(arrays).items():
            if digest != described[f"{group}/{name}"][2]:
                raise Damaged(f"{group}/{name} is not what was written")
    return groups


def read_array(path: pathlib.Path, group: str, name: str) -> np.ndarray:
    """Returns one array of a checkpoint, in the host's memory, verified.

    Raises:
      Damaged: it is missing, or not what was written.
    """
    import orbax.checkpoint as ocp

    described = read_metadata(path)["arrays"].get(f"{group}/{name}")
    problem = _check_sizes(path) if described else "it holds no such array"
    if problem is None:
        place = {name: ocp.RestoreArgs(restore_type=np.ndarray)}
        arrays, problem = _try_restore(path / group, {name: 0}, place, partial_restore=True)
        if problem is None:
            digests = checksums.of_arrays({name: jnp.asarray(arrays[name])})
            if digests[name] == described[2]:
                return arrays[name]
    raise Damaged(problem or f"{group}/{name} is not what was written")


def best_is(metric: str) -> str:
    """Returns which values of a metric are best: "min" of losses, "max" of scores."""
    return "min" if metric.endswith("/loss") else "max"


def remove(path: pathlib.Path) -> None:
    """Removes a checkpoint; the first process does."""
    if jax.process_index() == 0:
        shutil.rmtree(path)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"removed {path.name}")


def sizes(path: pathlib.Path) -> dict[str, int]:
    """Returns file -> bytes of a checkpoint's groups; orbax's own beside them change later."""
    files = [file for file in path.glob("*/**/*") if file.is_file()]
    return {str(file.relative_to(path)): file.stat().st_size for file in files}


def _check_sizes(path: pathlib.Path) -> str | None:
    """Returns what is wrong with the files' sizes, which shows most damage without reading."""
    try:
        expected, actual = json.loads((path / SIZES).read_bytes()), sizes(path)
    except (OSError, ValueError) as error:
        return f"{SIZES}: {type(error).__name__}"
    wrong = sorted(name for name in expected if actual.get(name) != expected[name])
    if not wrong:
        return None
    return f"{wrong[0]} has {actual.get(wrong[0], 0)} bytes, {expected[wrong[0]]} were written"


def describe(array: Any) -> list[Any]:
    """Returns [shape, type] of an array, for JSON."""
    return [list(array.shape), str(array.dtype)]


def sha256(content: Any) -> str:
    """Returns the digest of a JSON value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_same_arrays(path: pathlib.Path, described: Mapping[str, Any], like: Groups) -> None:
    wanted = {
        f"{group}/{n}": describe(x) for group, named in like.items() for n, x in named.items()
    }
    held = {name: d[:2] for name, d in described.items() if name.partition("/")[0] in like}
    differing = sorted(n for n in wanted.keys() | held.keys() if wanted.get(n) != held.get(n))
    if differing:
        lines = [
            f"\n  {name}: {_shown(held.get(name))} there, {_shown(wanted.get(name))} here"
            for name in differing[:5]
        ]
        more = f"\n  and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ValueError(
            f"{path} cannot go on with these settings: what trains, its shapes and the optimizer "
            f"must be the same. {len(differing)} arrays differ:{''.join(lines)}{more}"
        )


def _shown(described: Sequence[Any] | None) -> str:
    return f"{described[1]}{described[0]}" if described else "none"


def _try_read(
    path: pathlib.Path, like: Groups
) -> tuple[dict[str, dict[str, jax.Array]], str | None]:
    """Returns (groups, None), or ({}, what is wrong)."""
    import orbax.checkpoint as ocp

    groups = {}
    for group, named in like.items():
        where = ocp.checkpoint_utils.construct_restore_args(dict(named))
        groups[group], problem = _try_restore(path / group, dict(named), where)
        if problem:
            return {}, problem
    return groups, None


def _try_restore(
    folder: pathlib.Path, named: Mapping[str, Any], where: Mapping[str, Any], **options: Any
) -> tuple[dict[str, Any], str | None]:
    """Returns (arrays of a group by name, None), or ({}, what is wrong)."""
    import orbax.checkpoint as ocp

    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            arrays = reader.restore(
                os.fspath(folder.absolute()),
                args=ocp.args.PyTreeRestore(named, restore_args=where, **options),
            )
        jax.block_until_ready(arrays)
    except jax.errors.JaxRuntimeError:
        raise  # a full device is no sign of a damaged file
    except Exception as error:
        return {}, f"{folder.name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return arrays, None


def _all(is_good: bool) -> bool:
    """Returns whether all processes say so."""
    if jax.process_count() == 1:
        return is_good
    return bool(np.all(multihost_utils.process_allgather(np.array(is_good))))


class Writer:
    """Saves checkpoints into a folder, in the background; with several processes, each its parts.

    Close it: that waits for the last one. What a killed run left half written is removed, and what
    it would have removed itself.

    Args:
      folder: of this run's checkpoints; made if need be.
      groups: their names.
      keep_last: so many of the newest stay.
      keep_every: besides, those of steps that this divides; None: none.
      keep_best: "max" or "min": besides, the one of the best `value`; None: none.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        groups: Iterable[str],
        *,
        keep_last: int,
        keep_every: int | None = None,
        keep_best: str | None = None,
    ):
        import orbax.checkpoint as ocp

        self._folder = folder.absolute()
        logging.getLogger("absl").addFilter(_is_not_of_orbax)
        _leave_out_closed_loops()
        values = {int(path.name): _read_value(path) for path in steps(folder)}
        self._keep = _Keep(keep_last, keep_every, keep_best, values)
        self._remove_surplus()
        self._last: int | None = None
        name_format = ocp.path.step.standard_name_format(step_format_fixed_length=STEP_DIGITS)
        # Weights hardly compress, and the processor has better things to do.
        handlers = {group: ocp.PyTreeCheckpointHandler(use_compression=False) for group in groups}
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                step_name_format=name_format,
                preservation_policy=self._keep,
                cleanup_tmp_directories=True,
                save_root_metadata=False,
                # Made in the background, a folder that cannot be made is waited for, minutes long.
                async_options=ocp.options.AsyncOptions(
                    create_directories_asynchronously=False,
                    post_finalization_callback=self._write_sizes,
                ),
            ),
            item_handlers={**handlers, METADATA: ocp.JsonCheckpointHandler()},
        )

    @property
    def best(self) -> float | None:
        """The best value of the checkpoints in the folder, if there is one."""
        step = self._keep.best_step()
        return None if step is None else self._keep.values[step]

    def save(
        self,
        step: int,
        groups: Groups,
        metadata: Mapping[str, Any],
        *,
        value: float | None = None,
    ) -> None:
        """Begins to save; returns when the arrays were copied, so that they may be overwritten.

        Waits for the save before, if that is still under way. A step that is saved is not saved
        again.

        Args:
          step: updates done; the checkpoint's name.
          groups: arrays, none of them shared with frozen weights.
          metadata: what JSON can hold.
          value: what `keep_best` compares.

        Raises:
          OSError: too little space (looked at before), or this save or the one before failed.
        """
        import orbax.checkpoint as ocp

        if step == self._last or self._path(step).exists():
            return
        self.wait()
        arrays = {f"{group}/{n}": x for group, named in groups.items() for n, x in named.items()}
        digests = checksums.of_arrays(arrays)
        content = {
            **metadata,
            "step": step,
            "value": value,
            "arrays": {n: [*describe(x), digests[n]] for n, x in arrays.items()},
        }
        needed = sum(x.nbytes for x in arrays.values()) + OVERHEAD_BYTES
        path = self._path(step)
        atomic.require_space(path.parent, needed, what=str(path), remedy="nothing was written")
        self._keep.values[step] = value
        items = {group: ocp.args.PyTreeSave(dict(named)) for group, named in groups.items()}
        items[METADATA] = ocp.args.JsonSave({"sha256": sha256(content), "content": content})
        self._last = step
        self._try(lambda: self._manager.save(step, args=ocp.args.Composite(**items)))

    def wait(self) -> None:
        """Returns when nothing is being written any more. Raises an OSError if writing failed."""
        self._try(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits for the last save and ends. Raises as `wait`."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _remove_surplus(self) -> None:
        """Removes what a run left that was killed after a save, before it could."""
        if jax.process_index() == 0:
            kept = self._keep.chosen(sorted(self._keep.values))
            for path in steps(self._folder):
                if int(path.name) not in kept:
                    shutil.rmtree(path)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("surplus checkpoints removed")

    def _write_sizes(self) -> None:
        """Is called by orbax when all is written and the folder does not have its name yet."""
        if jax.process_index() == 0:
            (unnamed,) = self._folder.glob(f"{self._path(self._last).name}.*")
            (unnamed / SIZES).write_text(json.dumps(sizes(unnamed)))

    def _path(self, step: int | None) -> pathlib.Path:
        return self._folder / f"{step:0{STEP_DIGITS}d}"

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            failed, self._last = self._path(self._last or 0), None
            explained = _explain(error, failed)
            if jax.process_index() == 0:
                for rest in self._folder.glob(f"{failed.name}.*"):
                    shutil.rmtree(rest, ignore_errors=True)  # makes room, if that is what lacks
            left = [path.name for path in steps(self._folder)]
            good = f"the last good one is {left[0]}" if left else "there is none before it"
            raise atomic.WriteError(explained.errno, f"{explained}; {good}") from error


def _explain(error: Exception, failed: pathlib.Path) -> OSError:
    """Returns the error of a save in words: orbax says most of them within other texts."""
    text = str(error)
    code = re.search(r"os_error_code='(\d+)'", text)
    number = int(code[1]) if code else getattr(error, "errno", None)
    if isinstance(number, int):
        explained = atomic.explain(OSError(number, os.strerror(number)), failed)
        if isinstance(explained, atomic.WriteError):
            return explained
    # Of "Error writing ... : Failed writing ... : Failed to write 9 bytes: No space left".
    reason = ": ".join(text.splitlines()[0].split(" [os_error")[0].split(": ")[-2:])
    return atomic.WriteError(number or 0, f"{failed} is not written: {reason}")


def _leave_out_closed_loops() -> None:
    """Has errors of other threads left out that tell of an event loop which was closed.

    When one write of a checkpoint fails, orbax ends its loop, and tensorstore reports every other
    write to it, each with a traceback. The first failure is raised, and is enough.
    """
    show = sys.unraisablehook
    if getattr(show, "leaves_out_closed_loops", False):
        return

    def show_others(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            show(unraisable)

    setattr(show_others, "leaves_out_closed_loops", True)  # noqa: B010 (a function's own mark)
    sys.unraisablehook = show_others


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """A filter of lines: orbax logs, with a traceback, each error that it raises as well."""
    return record.levelno < logging.ERROR or "orbax" not in pathlib.Path(record.pathname).parts


@dataclasses.dataclass
class _Keep:
    """Which checkpoints stay, for orbax: it asks after each save."""

    last: int
    every: int | None
    mode: str | None
    values: dict[int, float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        chosen = self.chosen([one.step for one in checkpoints])
        return [one.step in chosen for one in checkpoints]

    def chosen(self, numbers: Sequence[int]) -> set[int]:
        """Returns which of these steps stay; they are in order."""
        kept = {*numbers[-self.last :], self.best_step()} & set(numbers)
        return kept | {number for number in numbers if self.every and number % self.every == 0}

    def best_step(self) -> int | None:
        """Returns the first step of the best value."""
        known = {step: value for step, value in self.values.items() if value is not None}
        if self.mode is None or not known:
            return None
        return (max if self.mode == "max" else min)(sorted(known), key=known.__getitem__)


def _read_value(path: pathlib.Path) -> float | None:
    try:
        return read_metadata(path)["value"]
    except Damaged:
        return None
