"""A run's state between its processes: where to begin, and what is saved on the way.

A checkpoint holds what trains and the optimizer; the number of updates says where in the data to go
on (see data.pipeline). Frozen weights are named, by their file and its fingerprint; made from the
seed, they are made again and their digest is compared.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from paligemma_jax.assembly import assembly, datasets, model_functions, run_weights
from paligemma_jax.checkpoints import checksums, partial_weights, train_checkpoint
from paligemma_jax.console import say
from paligemma_jax.files import atomic, run_folder
from paligemma_jax.runs import early_stopping, run_length
from paligemma_jax.settings import load, schema
from paligemma_jax.training import loop, optimizer, step

TRAINABLE, OPTIMIZER = run_weights.TRAINABLE, run_weights.OPTIMIZER


@dataclasses.dataclass(frozen=True)
class Plan:
    """When a checkpoint is made and how long it stays; see the keys ckpt_* and keep_*."""

    every: int
    keep_last: int
    keep_every: int | None
    keep_best: str | None

    @property
    def save_every(self) -> int:
        """Updates between two steps at which there may be something to save; 0: none."""
        return math.gcd(self.every, self.keep_every or 0)

    @property
    def mode(self) -> str | None:
        """Which values of `keep_best` are best, "min" or "max"."""
        return None if self.keep_best is None else train_checkpoint.best_is(self.keep_best)


def plan(settings: schema.Settings, *, total_steps: int, data_size: int) -> Plan:
    """Returns when to save, or raises a ValueError for settings that contradict each other."""
    every = run_length.steps_between_saves(settings, total_steps=total_steps, data_size=data_size)
    if settings.keep_best:
        early_stopping.check(settings.keep_best, list(settings.evals), key="keep_best")
    return Plan(every, settings.keep_last, settings.keep_every, settings.keep_best)


def start(
    built: assembly.Assembly,
    made: optimizer.Optimizer,
    records: datasets.Records,
    base: partial_weights.Weights | None,
    workdir: pathlib.Path,
    *,
    total_steps: int,
    resume_anyway: bool = False,
) -> tuple[step.TrainState, dict[str, Any]]:
    """Returns the state to begin with, and what checkpoints of this run say of it.

    That is the state of the newest checkpoint that is whole, and newer damaged ones are removed;
    where there are none, the state before the first update.

    Raises:
      ValueError: all checkpoints are damaged; or they are of another base, data or optimizer, or
        of more updates than `total_steps`.
    """
    settings, layout = built.settings, assembly.lay_out(built, base, tuple(made.trainable))
    about = {
        "base": _describe_base(settings, layout, made),
        "data": datasets.digest(records, built.tokenizer),
        "settings": load.to_keep(settings, workdir),
    }
    with say.working(f"reading what {workdir} has of an earlier start"):
        path, groups = _read_newest(workdir, about, _like(layout, made), resume_anyway)
    if path is not None and int(path.name) > total_steps:
        raise ValueError(
            f"{path} has {int(path.name)} updates, and these settings ask for {total_steps}: raise "
            f"total_steps (or total_epochs, total_examples), or choose another --workdir"
        )
    if path is None:
        params = assembly.load(built, layout)
        with say.working("making the optimizer's state"):
            state = step.init_state(params, made.trainable, made.tx)
    else:
        frozen = [name for name in layout.shapes if name not in made.trainable]
        state = step.TrainState(
            step=step.count_updates(int(path.name), groups[TRAINABLE]),
            trainable=groups[TRAINABLE],
            frozen=assembly.load(built, layout, names=frozen) if frozen else {},
            opt_state=_unflatten(made, layout, groups[OPTIMIZER]),
        )
        say.info(f"going on after step {int(path.name)}, from {path}")
    if about["base"] and layout.stored is None:
        about["base"]["digest"] = _digest(state.frozen)
        if path is not None:
            _check_base(path, about)
    return state, about


class Saver:
    """Saves a run's state when its plan says so, in the background. Close it: see `with`."""

    def __init__(self, chosen: Plan, about: Mapping[str, Any], workdir: pathlib.Path, total: int):
        self._plan, self._about, self._total = chosen, dict(about), total
        self._folder = workdir / run_folder.CHECKPOINTS
        self._writer: train_checkpoint.Writer | None = None

    def keep(self, state: step.TrainState, row: Mapping[str, float]) -> None:
        """Saves after a step that the plan names, the last one, or the best evaluation so far."""
        number, value = int(row["step"]), self._value(row)
        chosen = self._plan
        is_due = number == self._total and bool(chosen.every)
        is_due |= any(every and number % every == 0 for every in (chosen.every, chosen.keep_every))
        if is_due or (value is not None and self._is_best(value)):
            self._save(state, value)

    def check_place(self) -> None:
        """Raises a ValueError if another run may be where this one's folder was."""
        if (self._folder.parent / run_folder.CONFIG).exists():
            raise ValueError(f"{self._folder.parent} may hold another run now")

    def stop(self, state: step.TrainState) -> None:
        """Saves the state that a run ends with before its time.

        Raises:
          ValueError: it holds a NaN: the checkpoint before is the last good one.
        """
        broken = loop.non_finite({**state.trainable, **_flat(state.opt_state)})
        if broken:
            raise ValueError(f"not finite: {', '.join(broken[:3])}")
        if int(state.step):
            try:
                self._save(state, None)
            except OSError:
                # Of the save before: what that had written is gone, so there may be room now.
                self._save(state, None)

    def wait(self) -> None:
        """Returns when the last save is whole on the disk, and what it replaces is removed."""
        if self._writer is not None:
            with say.working("writing the last checkpoint"):
                self._writer.wait()

    def __enter__(self) -> "Saver":
        if self._folder.is_dir():
            self._open()  # removes what a killed run left
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        except OSError as another:
            if error is None:
                raise
            if str(another) != str(error):
                error.add_note(f"And {another}")

    def _value(self, row: Mapping[str, float]) -> float | None:
        metric = self._plan.keep_best
        return None if metric is None else early_stopping.find(row, metric, key="keep_best")

    def _is_best(self, value: float) -> bool:
        best = self._open().best
        return best is None or (value < best if self._plan.mode == "min" else value > best)

    def _open(self) -> train_checkpoint.Writer:
        if self._writer is None:
            self._writer = train_checkpoint.Writer(
                self._folder,
                (TRAINABLE, OPTIMIZER),
                keep_last=self._plan.keep_last,
                keep_every=self._plan.keep_every,
                keep_best=self._plan.mode,
            )
        return self._writer

    def _save(self, state: step.TrainState, value: float | None) -> None:
        groups = {TRAINABLE: state.trainable, OPTIMIZER: _flat(state.opt_state)}
        self._open().save(int(state.step), groups, self._about, value=value)


def _read_newest(
    workdir: pathlib.Path,
    about: Mapping[str, Any],
    like: train_checkpoint.Groups,
    resume_anyway: bool,
) -> tuple[pathlib.Path | None, dict[str, dict[str, jax.Array]]]:
    """Returns (checkpoint, its groups) of the newest one that is whole; (None, {}) without any."""
    damaged = []
    for path in train_checkpoint.steps(workdir / run_folder.CHECKPOINTS):
        try:
            stored = train_checkpoint.read_metadata(path)
            if about["base"] and "path" in about["base"]:
                _check_base(path, about)
            _check_run(path, stored, about, resume_anyway)
            groups = train_checkpoint.read(path, like)
        except train_checkpoint.Damaged as problem:
            say.warning(f"{path} is damaged ({problem}): taking the one before it")
            damaged.append(path)
        else:
            for other in damaged:
                train_checkpoint.remove(other)
            return path, groups
    if damaged:
        raise ValueError(
            f"{damaged[0].parent}: all checkpoints are damaged ({len(damaged)}). Remove the folder "
            f"to begin anew"
        )
    return None, {}


def _check_run(
    path: pathlib.Path, stored: Mapping[str, Any], about: Mapping[str, Any], resume_anyway: bool
) -> None:
    """Raises a ValueError if a checkpoint was made with other settings, or on other data."""
    # Those of before they were kept with a checkpoint are taken for this run's.
    run = path.parents[1]
    then = load.complete(stored.get("settings") or about["settings"], run)
    now = load.complete(about["settings"], run)
    load.follow_moves(then, now)
    allow(
        load.differences(then, now) + load.differences(stored["data"], about["data"], "data."),
        f"{path} is not of the run that this command begins or goes on with in "
        f"{run}: it was made with other settings or data",
        resume_anyway=resume_anyway,
        remedy="Remove that checkpoint, choose another --workdir",
    )


def _describe_base(
    settings: schema.Settings, layout: assembly.Layout, made: optimizer.Optimizer
) -> dict[str, Any] | None:
    """Returns where frozen weights come from; None where nothing is frozen."""
    if layout.shapes.keys() == set(made.trainable):
        return None
    if layout.stored is None:
        return {"seed": settings.seed, **model_functions.describe_quantized(layout.shapes)}
    return {
        "model_init": settings.model_init,
        "path": str(layout.stored.path),
        "fingerprint": "+".join(checksums.of_file(file) for file in layout.stored.files),
        **model_functions.describe_quantized(layout.shapes),
    }


def _check_base(path: pathlib.Path, about: Mapping[str, Any]) -> None:
    """Raises a ValueError if frozen weights are not those that a checkpoint was trained with."""
    then, now = train_checkpoint.read_metadata(path)["base"] or {}, about["base"]
    if any(then.get(key) != now.get(key) for key in ("fingerprint", "digest", "quantized")):
        raise ValueError(
            f"{path} was trained on other frozen weights: {_base_in_words(then)}; these are "
            f"{_base_in_words(now)}. Give it its own base, or choose another --workdir"
        )


def _base_in_words(base: Mapping[str, Any]) -> str:
    kinds = f", quantized: {base['quantized']}" if "quantized" in base else ""
    if "path" in base:
        return f"{base['path']} (fingerprint {base['fingerprint'][:12]}{kinds})"
    return f"random ones of seed {base.get('seed')} (digest {base.get('digest')}{kinds})"


def _like(layout: assembly.Layout, made: optimizer.Optimizer) -> train_checkpoint.Groups:
    """Returns shape, type and place of everything that a checkpoint holds."""
    trainable = _trainable_like(layout, made)
    places = step.opt_state_shardings(trainable, made.tx)
    moments = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(made.tx.init, trainable),
        places,
    )
    return {TRAINABLE: trainable, OPTIMIZER: _flat(moments)}


def _trainable_like(
    layout: assembly.Layout, made: optimizer.Optimizer
) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(
            layout.shapes[name].shape, layout.shapes[name].dtype, sharding=layout.where[name]
        )
        for name in made.trainable
    }


def _flat(tree: Any) -> dict[str, Any]:
    """Returns the leaves of an optimizer's state by name: 1/mu/llm/layers/attn/q_einsum/w."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): leaf for k, leaf in leaves}


def _unflatten(
    made: optimizer.Optimizer, layout: assembly.Layout, leaves: Mapping[str, jax.Array]
) -> Any:
    tree = jax.eval_shape(made.tx.init, _trainable_like(layout, made))
    return jax.tree.unflatten(jax.tree.structure(tree), [leaves[name] for name in _flat(tree)])


def _digest(arrays: Mapping[str, Any]) -> str:
    text = json.dumps(sorted(checksums.of_arrays(_flat(arrays)).items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# The folder of a run: may this run begin in it, or go on there?

ANYWAY = "--resume_anyway"


@contextlib.contextmanager
def claim_folder(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other trainings out of a run's folder. The first process of a run does, for all.

    Raises:
      ValueError: another one works in it, or nothing can be written there.
    """
    assembly.check_writable(workdir, option="--workdir")
    with contextlib.ExitStack() as claims:
        if jax.process_index() == 0:
            with atomic.writing(workdir / run_folder.OWNER):
                before = claims.enter_context(run_folder.claimed(workdir))
            if before:
                say.info(f"{workdir}: {before} did not end by itself; its folder is taken over")
        yield


def check_folder(
    settings: schema.Settings, workdir: pathlib.Path, *, resume_anyway: bool = False
) -> None:
    """Raises a ValueError if the folder holds a finished run, or one of other settings."""
    if (workdir / run_folder.FINAL).exists():
        raise ValueError(
            f"{workdir} holds a finished run ({run_folder.FINAL}): choose another --workdir. "
            f"To make it longer, remove {workdir / run_folder.FINAL} alone, raise total_steps (or "
            f"total_epochs) and give {ANYWAY}"
        )
    if load.read_values(workdir / run_folder.CONFIG) is None:
        _check_no_data(settings, workdir)
        return
    check_same_settings(settings, workdir, resume_anyway=resume_anyway)


def check_same_settings(
    settings: schema.Settings, workdir: pathlib.Path, *, resume_anyway: bool = False
) -> None:
    """Raises a ValueError if the run of a folder, which has begun, has other settings.

    A key that is newer than the run had its default then.
    """
    then = load.read_values(workdir / run_folder.CONFIG) or {}
    now = load.complete(load.to_dict(settings), workdir)
    load.follow_moves(then, now)
    allow(
        load.differences(then, now),
        f"{workdir} holds a run with other settings",
        resume_anyway=resume_anyway,
    )


def keep_remat(settings: schema.Settings, workdir: pathlib.Path) -> schema.Settings:
    """Returns the settings, with the remat_policy of the folder's run in place of an automatic one.

    It is chosen when a run begins: another one gives the same numbers but for their rounding.
    """
    stored = load.read_values(workdir / run_folder.CONFIG)
    if stored is None or settings.remat_policy != model_functions.AUTO:
        return settings
    return dataclasses.replace(settings, remat_policy=stored["remat_policy"])


def _check_no_data(settings: schema.Settings, workdir: pathlib.Path) -> None:
    """Raises a ValueError if the folder is one that data is read from."""
    sources = {"input.data": settings.input.data}
    sources |= {f"input.mixture.{name}": one for name, one in settings.input.mixture.items()}
    sources |= {f"evals.{name}": one for name, one in settings.evals.items()}
    for key, source in sources.items():
        fname = source.fname or schema.INPUT
        if fname != schema.INPUT and pathlib.Path(fname).resolve().parent == workdir.resolve():
            raise ValueError(
                f"--workdir {workdir}: {key}.fname={fname!r} lies in it. Choose a folder of the "
                f"run's own, as runs/{workdir.resolve().name}"
            )


def allow(
    differing: list[str],
    what: str,
    *,
    resume_anyway: bool,
    remedy: str = "Choose another --workdir",
) -> None:
    """Says what differs; raises a ValueError, with a remedy, unless `--resume_anyway`."""
    if not differing:
        return
    text = f"{what}:\n  " + "\n  ".join(differing)
    if not resume_anyway:
        raise ValueError(f"{text}\n{remedy}, or go on with {ANYWAY}")
    say.warning(text)
