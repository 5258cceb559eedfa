"""A run from its settings to its final weights: what the train door does."""

import json
import os
import pathlib
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import jax

from paligemma_jax.assembly import assembly, datasets, training_data
from paligemma_jax.console import arguments, process, say
from paligemma_jax.data import pipeline
from paligemma_jax.files import run_folder
from paligemma_jax.params import sharding
from paligemma_jax.reports import run_log
from paligemma_jax.runs import (
    auto_remat,
    embedding_cache,
    memory_plan,
    optimization,
    saving,
    training_log,
    training_run,
)
from paligemma_jax.settings import load, schema
from paligemma_jax.training import step

PROFILE = "profile"
ANSWERS, HUGGINGFACE = "answers", "huggingface"  # what the closing words propose as folders


def train(
    settings: schema.Settings,
    workdir: pathlib.Path,
    *,
    resume_anyway: bool = False,
    more_trackers: Sequence[run_log.Tracker] = (),
) -> None:
    """Runs a config to its end. Everything that can be wrong is looked at before weights load.

    Args:
      settings: as `load.load` returns them.
      workdir: the run's folder.
      resume_anyway: go on with the run of the folder although settings or data differ.
      more_trackers: of the run's numbers, beside those of the key `trackers`.

    Raises:
      process.Preempted: it was asked to stop before; the state is saved.
      ValueError: anything is wrong before it begins; or all is saved, and the file that its trained
        arrays need as their base has been replaced meanwhile.
    """
    say.show_on_stderr()
    options = {"--workdir": os.path.abspath(workdir), saving.ANYWAY: resume_anyway}
    process.require_same(
        "settings, folder, code or packages",
        lambda: {**json.loads(load.to_json(settings)), **options, "versions": process.versions()},
    )
    named = run_log.make(settings.trackers) if jax.process_index() == 0 else []
    with (
        saving.claim_folder(workdir),
        say.kept_in_file() as keep_lines,
        process.counting() as compiled,
    ):
        _train(settings, workdir, resume_anyway, [*named, *more_trackers], keep_lines, compiled)


def _train(
    settings: schema.Settings,
    workdir: pathlib.Path,
    resume_anyway: bool,
    trackers: Sequence[run_log.Tracker],
    keep_lines: Callable[[pathlib.Path], None],
    compiled: process.Count,
) -> None:
    built, planned, needed = _prepare(settings, workdir, resume_anyway=resume_anyway)
    state, about = _start(built, planned, workdir, resume_anyway)
    if jax.process_index() == 0:
        keep_lines(workdir / run_folder.LOG)
    settings, read_images = planned.settings, _read_images(built, planned, state)
    train_step = training_log.trace(needed.train_step, settings.profile_steps, workdir / PROFILE)
    total, measure = planned.total_steps, memory_plan.meter(needed, compiled)
    log = training_log.Log(
        workdir,
        every=settings.log_training_steps,
        total_steps=total,
        done=int(state.step),
        total_epochs=planned.passes(total),
        unit=planned.unit,
        settings=json.loads(load.to_json(settings)),
        trackers=trackers,
        measure=measure,
    )
    with (
        log,
        saving.Saver(planned.saving, about, workdir, total) as saver,
        process.StopRequest(sharding.batch_sharding(built.mesh)) as stop,
    ):
        begun = built, planned, state, train_step, workdir
        state = training_run.run(*begun, log=log, saver=saver, stop=stop, read_images=read_images)
        say.info(process.describe_count(compiled))
        is_finished, final = training_run.is_finished(planned, state), workdir / run_folder.FINAL
        if is_finished:
            try:
                saver.wait()  # a run that has this file is not begun again: it ends complete
            finally:
                training_run.save_or_rescue(built, planned, state, final, saver)
            say.info(closing_words(planned, workdir))
    if not is_finished:
        raise process.Preempted(
            f"preempted: {stop.signal or 'another process'} after step {int(state.step)} of "
            f"{total}. The state is saved; the same command goes on from there"
        )
    training_run.check_base(planned, built.model, final)


def closing_words(planned: training_run.Plan, workdir: pathlib.Path) -> str:
    """Returns where to look after a run, and what to do next as commands to paste into a shell."""
    lines = [f"report: {path}" for path in sorted(workdir.glob("report*.html"))]
    run = ["--run", str(workdir)]
    examples = training_run.all_records(planned.data, planned.evaluations[:1])[::-1]
    commands = [["evaluate", *run, *([] if planned.evaluations else ["--data", schema.INPUT])]]
    if shown := next((record for record in examples if record.images), None):
        prompt = [] if planned.data.asked.prompt else ["--prompt", shown.prefix]
        pictures = ["--pictures", str(workdir / ANSWERS)]
        together = ["--together"] if len(shown.images) > 1 else []
        commands.append(["predict", *run, *prompt, *pictures, *together, *shown.images])
    commands.append(["convert", str(workdir), str(workdir / HUGGINGFACE)])
    lines += ["next:"]
    lines += [f"  {shlex.join([*arguments.command(door), *rest])}" for door, *rest in commands]
    return "\n".join(lines)


def _prepare(
    settings: schema.Settings, workdir: pathlib.Path, *, resume_anyway: bool
) -> tuple[assembly.Assembly, training_run.Plan, memory_plan.Planned]:
    """Looks at everything that can be wrong before weights load."""
    settings = saving.keep_remat(settings, workdir)
    saving.check_folder(settings, workdir, resume_anyway=resume_anyway)
    built = assembly.assemble(settings)
    planned = training_run.plan(built)
    training_data.warn_of_task(settings, planned.data.records)
    # Before anything is compiled, which takes minutes.
    process.require_same("data or weights", lambda: _facts(built, planned))
    built, planned, needed = auto_remat.plan_run(built, planned)
    process.require_same("memory", lambda: {"remat_policy": built.settings.remat_policy})
    if not settings.allow_over_memory:
        auto_remat.require_fit(built, planned, needed)
    say.info(memory_plan.describe(needed))
    return built, planned, needed


def _start(
    built: assembly.Assembly, planned: training_run.Plan, workdir: pathlib.Path, resume_anyway: bool
) -> tuple[step.TrainState, dict[str, Any]]:
    """Returns the state to begin with and what checkpoints say of the run; writes its files."""
    state, about = saving.start(
        built,
        planned.optimizer,
        planned.data.records,
        planned.base,
        workdir,
        total_steps=planned.total_steps,
        resume_anyway=resume_anyway,
    )
    say.info(optimization.describe(state, planned.optimizer))
    assembly.write_run_files(built, workdir)
    training_data.write_asked(planned.data.asked, workdir)
    return state, about


def _facts(built: assembly.Assembly, planned: training_run.Plan) -> dict[str, Any]:
    """Returns what the processes of a run must have read alike."""
    records = {"data": planned.data.records}
    records |= {f"evals.{one.name}": one.records for one, _ in planned.evaluations}
    facts: dict[str, Any] = {
        name: datasets.digest(read, built.tokenizer) for name, read in records.items()
    }
    if planned.base:
        facts["model_init.fingerprint"] = planned.base.fingerprint
    return facts


def _read_images(
    built: assembly.Assembly, planned: training_run.Plan, state: step.TrainState
) -> pipeline.ReadImages | None:
    """Returns what reads cached embeddings in place of images, after making them; None without."""
    return embedding_cache.prepare(
        built,
        training_run.all_records(planned.data, planned.evaluations),
        state.params,
        datasets.spec(planned.settings),
        stored=planned.settings.input.embedding_cache,
    )
