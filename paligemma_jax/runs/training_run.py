"""A training run, assembled: what is checked before weights load, the state, hooks and the log."""

import dataclasses
import errno
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from paligemma_jax.assembly import assembly, datasets, training_data, weights
from paligemma_jax.checkpoints import partial_weights
from paligemma_jax.console import process, say
from paligemma_jax.data import pipeline
from paligemma_jax.evaluation import evaluator, report
from paligemma_jax.files import atomic, run_folder
from paligemma_jax.models import family
from paligemma_jax.runs import (
    early_stopping,
    embedding_cache,
    optimization,
    run_length,
    training_log,
)
from paligemma_jax.runs import saving as runs_saving
from paligemma_jax.settings import schema
from paligemma_jax.tasks import task
from paligemma_jax.training import loop, optimizer, step

# A value of the key `save`.
TRAINABLE = "trainable"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will do, before it has weights.

    Attributes:
      settings: of the run.
      data: to train on.
      total_steps: updates.
      optimizer: of the trainable parameters.
      evaluations: with the number of steps between two of them; 0: only at the end.
      base: the weights to start from, not read yet; None: random ones.
      saving: when the state is saved.
      goal: what ends the run before that.
    """

    settings: schema.Settings
    data: training_data.TrainingData
    total_steps: int
    optimizer: optimizer.Optimizer
    evaluations: tuple[tuple[evaluator.Evaluation, int], ...]
    base: partial_weights.Weights | None
    saving: runs_saving.Plan
    goal: early_stopping.Goal

    def passes(self, steps: int) -> float:
        """Returns how often so many updates have read the training data."""
        return steps * self.settings.input.batch_size / len(self.data.records)

    @property
    def unit(self) -> str:
        """What its examples are called: each may be one image."""
        are_images = all(len(record.images) == 1 for record in self.data.records)
        return "images" if are_images else "examples"


def all_records(
    read: training_data.TrainingData, evaluations: Iterable[tuple[evaluator.Evaluation, int]]
) -> datasets.Records:
    """Returns the records of training and of evaluations."""
    return [*read.records, *(record for one, _ in evaluations for record in one.records)]


def plan(built: assembly.Assembly) -> Plan:
    """Reads and checks all data and every rule on parameters. Loads no weights."""
    settings = built.settings
    weights.check_divisible(
        settings.input.batch_size,
        built.mesh,
        key="input.batch_size",
        parts=settings.accumulation_steps,
    )
    datasets.text_lens(settings)
    read = training_data.read(settings, built.tokenizer)
    data_size = len(read.records)
    steps = run_length.total_steps(settings, data_size=data_size)
    say.info(read.describe(steps=steps, batch_size=settings.input.batch_size))
    training_log.check_profile(settings.profile_steps, total_steps=steps)
    saving = runs_saving.plan(settings, total_steps=steps, data_size=data_size)
    made = optimization.make(settings, built.model.shapes(), steps=steps, data_size=data_size)
    evaluations = tuple(
        _plan_evaluation(built, settings, name, steps=steps, data_size=data_size)
        for name in settings.evals
    )
    early_stopping.check_scores(settings, {one.name: one.score_names for one, _ in evaluations})
    weights.check_name(settings, built.model)
    embedding_cache.check(
        settings,
        built.model,
        trainable=made.trainable,
        augmentation=read.augmentation,
        examples=all_records(read, evaluations),
    )
    base = assembly.find_weights(settings, settings.model_init)
    if lora := built.model.lora:
        say.info(f"LoRA: rank {lora.rank}, scale {lora.scale:g}, beside {settings.lora.targets}")
    what_is_saved(settings, built.model)
    goal = early_stopping.make(settings)
    return Plan(settings, read, steps, made, evaluations, base, saving, goal)


def run(
    built: assembly.Assembly,
    planned: Plan,
    state: step.TrainState,
    train_step: Callable[..., Any],
    workdir: pathlib.Path,
    *,
    log: training_log.Log,
    saver: runs_saving.Saver,
    stop: process.StopRequest,
    read_images: pipeline.ReadImages | None = None,
) -> step.TrainState:
    """Trains to the end, to the goal, or till it is asked to stop; returns the last state.

    Of a run that was asked to stop, the state is saved. `read_images`: as in
    `pipeline.train_batches`, of evaluations too.
    """
    batches = _make_batches(built, planned, int(state.step), read_images)
    rates = optimization.learning_rates(planned.optimizer, total_steps=planned.total_steps)

    def log_row(row: Mapping[str, float]) -> None:
        number = int(row["step"])
        used = {name: float(values[number - 1]) for name, values in rates.items() if number}
        passes = {training_log.EPOCH: planned.passes(number)}
        num_examples = number * planned.settings.input.batch_size
        log.append({**row, **used, **passes, **planned.data.epochs(num_examples)})

    hooks = [
        _make_hook(built, planned, one, every, workdir, log, read_images)
        for one, every in planned.evaluations
    ]
    with say.progress("training", unit="steps", first="reading the first images") as tell:
        state = loop.run(
            state,
            datasets.on_mesh(batches, built.mesh),
            train_step,
            total_steps=planned.total_steps,
            log=log_row,
            hooks=hooks,
            groups=optimization.gradient_groups(planned.optimizer),
            progress=lambda done: tell(done, planned.total_steps),
            save=saver.keep,
            save_every=planned.saving.save_every,
            stop=stop,
            is_enough=planned.goal,
            rescue=lambda last: _rescue(saver, last),
        )
    if not is_finished(planned, state):
        log.status = "stopped"
        saver.stop(state)
    elif goal := planned.goal.describe(step=int(state.step)):
        tell_goal = say.info if planned.goal.is_reached else say.warning
        tell_goal(goal)
    return state


def is_finished(planned: Plan, state: step.TrainState) -> bool:
    """Whether a run has all its updates, or what it was trained for."""
    return planned.goal.is_reached or int(state.step) >= planned.total_steps


def _make_batches(
    built: assembly.Assembly,
    planned: Plan,
    start_step: int,
    read_images: pipeline.ReadImages | None,
) -> Iterator[pipeline.Batch]:
    return pipeline.train_batches(
        planned.data.records,
        built.tokenizer,
        datasets.spec(planned.settings),
        seed=planned.settings.seed,
        total_steps=planned.total_steps,
        start_step=start_step,
        sources=planned.data.sources,
        augmentation=planned.data.augmentation,
        noise=planned.data.noise,
        read_images=read_images,
        text_lens=datasets.text_lens(planned.settings),
        largest=process.make_largest(),
    )


def what_is_saved(settings: schema.Settings, model: family.Model) -> str:
    """Returns "all" or "trainable", as the key `save` says, or LoRA or a quantized base suggests.

    Raises:
      ValueError: trained weights alone, of a run that starts from random ones.
    """
    if settings.save == TRAINABLE and settings.model_init is None:
        raise ValueError(
            "save='trainable' leaves out the weights that are not trained, and random ones are in "
            "no other file: set model_init, or save='all'"
        )
    is_adapted = model.lora is not None or settings.quantize is not None
    return settings.save or (TRAINABLE if is_adapted and settings.model_init else "all")


def save(
    built: assembly.Assembly, planned: Plan, state: step.TrainState, path: pathlib.Path
) -> None:
    """Writes the weights as one npz file: all, or what the base lacks, as `save` says."""
    params = state.averaged
    metadata = weights.metadata(
        planned.settings, built.model, step=int(state.step), base=planned.base
    )
    what = what_is_saved(planned.settings, built.model)
    if what == TRAINABLE and planned.base:
        metadata[partial_weights.NUM_ARRAYS] = len(params)
        kept = state.trainable.keys() | partial_weights.differing(params, planned.base)
        params = {name: array for name, array in params.items() if name in kept}
    weights.save(path, params, metadata)


def save_or_rescue(
    built: assembly.Assembly,
    planned: Plan,
    state: step.TrainState,
    path: pathlib.Path,
    saver: runs_saving.Saver,
) -> None:
    """As `save`; where the disk refuses the file, a checkpoint, which may be smaller, is tried."""
    try:
        save(built, planned, state, path)
    except OSError as error:
        try:
            _rescue(saver, state)
        except (OSError, ValueError) as another:
            error.add_note(f"And the state could not be rescued: {another}")
        raise


def check_base(planned: Plan, model: family.Model, path: pathlib.Path) -> None:
    """Raises a ValueError if the saved weights need a base whose file has been replaced since.

    An error, although all is saved: no command that follows can use the weights before the first
    file is back, and whoever still has it should hear of it now.
    """
    if planned.base and what_is_saved(planned.settings, model) == TRAINABLE:
        try:
            partial_weights.check_unchanged(planned.base)
        except ValueError as error:
            raise ValueError(
                f"{path} is saved, and can be read with no other base than its own. {error}"
            ) from error


def _plan_evaluation(
    built: assembly.Assembly,
    settings: schema.Settings,
    name: str,
    *,
    steps: int,
    data_size: int,
) -> tuple[evaluator.Evaluation, int]:
    made = evaluator.make(built, name)
    try:
        every = run_length.steps_between_evaluations(
            settings.evals[name],
            data_size=data_size,
            batch_size=settings.input.batch_size,
            total_steps=steps,
        )
    except ValueError as error:
        raise ValueError(f"evals.{name}: {error}") from error
    return made, every


def _make_hook(
    built: assembly.Assembly,
    planned: Plan,
    one: evaluator.Evaluation,
    every: int,
    workdir: pathlib.Path,
    log: training_log.Log,
    read_images: pipeline.ReadImages | None,
) -> loop.Hook:
    """Returns the hook that evaluates and writes predictions, scores and the report."""
    started, settings = time.monotonic(), planned.settings

    def evaluate(state: step.TrainState, number: int) -> Mapping[str, float]:
        before = time.monotonic()
        rows, scores = evaluator.run(built, one, state.averaged, read_images=read_images)
        numbers = {f"{one.name}/{key}": value for key, value in task.scalars(scores).items()}
        passed = {"training": before - started, "this evaluation": time.monotonic() - before}
        files = report.write(
            workdir,
            rows,
            {"evaluation": one.name, "step": number, **scores},
            subject=report.Subject(
                title=f"{workdir.name}: {one.name} after step {number}",
                name=one.name,
                data=settings.evals[one.name].fname,
                num_examples=len(one.records),
                weights=f"after step {number} of {planned.total_steps}, from "
                f"{settings.model_init or 'random ones'}",
                seconds=passed,
                settings=settings,
                classes=planned.data.asked.classes,
            ),
            run=workdir,
            now={"step": number, **numbers},
            predictions=run_folder.predictions(one.name, number),
            evaluation=one.name if len(planned.evaluations) > 1 else "",
        )
        log.append_files(number, one.name, files)
        return numbers

    return loop.Hook(every=every, fn=evaluate)


def _rescue(saver: runs_saving.Saver, state: step.TrainState) -> None:
    """Saves the last good state of a run that stops because of an error.

    Several processes save together, which they can only for an error that all of them have, as a
    loss that is not finite is: the others would wait for ever.
    """
    error = sys.exception()
    if jax.process_count() > 1 and not isinstance(error, FloatingPointError):
        say.error(f"process {jax.process_index()} stops, its state unsaved: {error}")
        return
    if isinstance(error, atomic.WriteError) and error.errno == errno.ENOENT:
        saver.check_place()
    saver.stop(state)
