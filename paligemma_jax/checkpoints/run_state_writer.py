"""Checkpoints of a run, on orbax, written while training goes on. `run_state` has their layout."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from paligemma_jax.checkpoints import digests, npz, run_state

STEP_DIGITS = 6
OVERHEAD_BYTES = 64 * 1024  # at most, of a small checkpoint's tables


class Writer:
    """Saves checkpoints into a folder, in the background; with several processes, each its parts.

    Close it: that waits for the last one. What a killed run left half written is removed.

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
        values = {int(path.name): _read_value(path) for path in run_state.steps(folder)}
        self._keep = _Keep(keep_last, keep_every, keep_best, values)
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
                async_options=ocp.options.AsyncOptions(
                    post_finalization_callback=self._write_sizes
                ),
            ),
            item_handlers={**handlers, run_state.METADATA: ocp.JsonCheckpointHandler()},
        )

    @property
    def best(self) -> float | None:
        """The best value of the checkpoints in the folder, if there is one."""
        step = self._keep.best_step()
        return None if step is None else self._keep.values[step]

    def save(
        self,
        step: int,
        groups: run_state.Groups,
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
          metadata: what JSON can say.
          value: what `keep_best` compares.

        Raises:
          OSError: too little space (looked at before), or this save or the one before failed.
        """
        import orbax.checkpoint as ocp

        if step == self._last or self._path(step).exists():
            return
        self.wait()
        arrays = {f"{group}/{n}": x for group, named in groups.items() for n, x in named.items()}
        found = digests.of(arrays)
        content = {
            **metadata,
            "step": step,
            "value": value,
            "arrays": {n: [*run_state.describe(x), found[n]] for n, x in arrays.items()},
        }
        needed = sum(x.nbytes for x in arrays.values()) + OVERHEAD_BYTES
        npz.check_space(self._path(step), needed)
        self._keep.values[step] = value
        items = {group: ocp.args.PyTreeSave(dict(named)) for group, named in groups.items()}
        items[run_state.METADATA] = ocp.args.JsonSave(
            {"sha256": run_state.sha256(content), "content": content}
        )
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

    def _write_sizes(self) -> None:
        """Is called by orbax when all is written and the folder does not have its name yet."""
        if jax.process_index() == 0:
            (unnamed,) = self._folder.glob(f"{self._path(self._last).name}.*")
            (unnamed / run_state.SIZES).write_text(json.dumps(run_state.sizes(unnamed)))

    def _path(self, step: int | None) -> pathlib.Path:
        return self._folder / f"{step:0{STEP_DIGITS}d}"

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            failed, self._last = self._path(self._last or 0), None
            if jax.process_index() == 0:
                for rest in self._folder.glob(f"{failed.name}.*"):
                    shutil.rmtree(rest, ignore_errors=True)  # makes room, if that is what lacks
            left = [path.name for path in run_state.steps(self._folder)]
            good = f"the last good one is {left[0]}" if left else "there is none before it"
            # Of "Error writing ... : Failed writing ... : Failed to write 9 bytes: No space left".
            reason = ": ".join(str(error).splitlines()[0].split(" [os_error")[0].split(": ")[-2:])
            raise OSError(f"{failed} is not written, {good}: {reason}") from error


@dataclasses.dataclass
class _Keep:
    """Which checkpoints stay, for orbax: it asks after each save."""

    last: int
    every: int | None
    mode: str | None
    values: dict[int, float | None]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        chosen = {*(one.step for one in checkpoints[-self.last :]), self.best_step()}
        return [
            one.step in chosen or bool(self.every and one.step % self.every == 0)
            for one in checkpoints
        ]

    def best_step(self) -> int | None:
        """Returns the first step of the best value."""
        known = {step: value for step, value in self.values.items() if value is not None}
        if self.mode is None or not known:
            return None
        return (max if self.mode == "max" else min)(sorted(known), key=known.__getitem__)


def _read_value(path: pathlib.Path) -> float | None:
    try:
        return run_state.read_metadata(path)["value"]
    except run_state.Damaged:
        return None
