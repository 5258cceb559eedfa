"""The commands as Python functions: train, evaluate, compare, check, import_data, convert.

    import paligemma_jax
    from paligemma_jax import api

    data = api.import_data("data/coco", "data/mine", task="detection")
    run = api.train("configs/mine.py", "runs/mine", changes={"lr": 0.01})
    api.evaluate(run)
    paligemma_jax.load(run).predict("scans/*.png")

Each does what its command does, says the same on standard error, leaves the same files, and returns
a small object that shows itself in a notebook. What is wrong is a ValueError in the words of the
command.
"""

import argparse
import dataclasses
import os
import pathlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from paligemma_jax.assembly import datasets
from paligemma_jax.checks import checking
from paligemma_jax.console import arguments, process, say
from paligemma_jax.evaluation import evaluating
from paligemma_jax.export import converting
from paligemma_jax.importers import import_report, importing, options
from paligemma_jax.preparing import data_search, starting
from paligemma_jax.results import outcomes
from paligemma_jax.runs import whole_run
from paligemma_jax.settings import load
from paligemma_jax.wording import phrases

Path = str | os.PathLike[str]
Changes = Mapping[str, Any]
NO_CHANGES: Changes = {}
OF_IMPORT = ("classes", "columns", "prompt", "mask_codec", "split", "only", "first", "group")


@arguments.once_in_words
def train(
    config: Path, workdir: Path, *, changes: Changes = NO_CHANGES, resume_anyway: bool = False
) -> outcomes.Run:
    """Fine-tunes, and returns the run; the same call goes on with a run that was stopped.

    Args:
      config: a file with get_config, as FILE or FILE:ARG, or the name of a shipped one.
      workdir: the run's folder.
      changes: {key of the settings: value}, as {"lr": 0.03, "input.batch_size": 4}.
      resume_anyway: go on with the run of the folder although settings or data differ.

    Raises:
      ValueError: whatever is wrong, before the first step.
      process.Preempted: it was interrupted; its state is saved.
    """
    _begin()
    settings = load.load(os.fspath(config), _overrides(changes))
    folder = pathlib.Path(workdir)
    whole_run.train(settings, folder, resume_anyway=resume_anyway)
    return outcomes.Run(folder)


@arguments.once_in_words
def finetune(
    data: Path,
    model: Path,
    workdir: Path | None = None,
    *,
    method: str | None = None,
    res: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    task: str | None = None,
    changes: Changes = NO_CHANGES,
    resume_anyway: bool = False,
    **chosen: Any,
) -> outcomes.Run:
    """Fine-tunes without a config, which it writes into the run's folder; returns the run.

    Args:
      data: a folder or file of JSONL, or a data set of another tool, which is imported first.
      model: a released model, as "paligemma2-3b", or one from nothing: "tiny", "small".
      workdir: the run's folder; None: runs/NAME of the data.
      method: "attention", "lora", "qlora" or "full"; None: attention.
      res: side of the images in px.
      epochs: passes over the data.
      batch_size: examples in a step.
      task: what answers are; None: as the data are.
      changes: {key of the settings: value}.
      resume_anyway: as of `train`.
      chosen: of the import, by name: classes, columns, prompt, mask_codec, split, only, first,
        group.
    """
    _begin()
    of_import = _words(chosen, OF_IMPORT, what="finetune")
    given = dict(method=method, res=res, epochs=epochs, batch_size=batch_size, task=task)
    words = [*_words(given, given, what="finetune"), *of_import]
    words += [f"--config.{text}" for text in _overrides(changes)]
    names = os.path.abspath(data) if os.path.exists(data) else os.fspath(data), os.fspath(model)
    start = starting.StartOptions(
        wanted=data_search.Wanted(data=os.fspath(data), task=task, words=of_import),
        model=os.fspath(model),
        method=method,
        res=res,
        epochs=epochs,
        batch_size=batch_size,
        workdir=None if workdir is None else pathlib.Path(workdir),
        command=shlex.join(["api.finetune", *names, *words]),
        overrides=_overrides(changes),
        resume_anyway=resume_anyway,
    )
    return outcomes.Run(starting.train(start))


@arguments.once_in_words
def evaluate(
    run: Path | None = None,
    data: Path | None = None,
    *,
    config: Path | None = None,
    weights: Path | None = None,
    checkpoint: str | int | None = None,
    base: Path | None = None,
    name: str | None = None,
    out: Path | None = None,
    changes: Changes = NO_CHANGES,
    decoding: Changes = NO_CHANGES,
) -> outcomes.Evaluation:
    """Scores weights on a data set, and returns scores and answers.

    Args:
      run: a run's folder, or what `train` returned; or a config instead.
      data: a JSONL file with answers, or "input"; None: the validation set of the settings.
      config: a config file, instead of a run.
      weights: instead of those of the run or the config; "none": random ones.
      checkpoint: of the run: "best", "last" or a step; None: its final weights.
      base: of weights that are trained arrays only, if it is not where it was.
      name: of the evaluation; None: that of the data's file.
      out: folder of the results; None: evaluation-NAME in the run.
      changes: {key of the settings: value}.
      decoding: {key of evals.NAME: value}, as {"max_new_tokens": 64, "constrain": "task"}.
    """
    _begin()
    chosen = evaluating.EvaluateOptions(
        data=_text(data),
        run=_text(run),
        config=_text(config),
        weights=_text(weights),
        checkpoint=None if checkpoint is None else str(checkpoint),
        base=_text(base),
        name=name,
        out=_text(out),
        config_overrides=_overrides(changes),
        eval_overrides=_overrides(decoding),
    )
    folder, _ = evaluating.evaluate_into(chosen)
    return outcomes.Evaluation(folder, datasets.open_image)


@arguments.once_in_words
def compare(
    run: Path,
    against: Path = evaluating.BASE,
    data: Path | None = None,
    *,
    name: str | None = None,
    changes: Changes = NO_CHANGES,
    decoding: Changes = NO_CHANGES,
) -> outcomes.Comparison:
    """Scores a run and another model on the same data, and returns both beside each other.

    Args:
      run: a run's folder, or what `train` returned.
      against: "base", what the run started from; another run; or released weights, by name.
      data, name, changes, decoding: as of `evaluate`.
    """
    _begin()
    chosen = evaluating.EvaluateOptions(
        data=_text(data),
        run=_text(run),
        name=name,
        config_overrides=_overrides(changes),
        eval_overrides=_overrides(decoding),
    )
    folder, made = evaluating.evaluate_against(chosen, os.fspath(against))
    other = outcomes.Evaluation(folder / evaluating.AGAINST, datasets.open_image)
    after = outcomes.Evaluation(folder, datasets.open_image)
    header, rows = made.table()
    return outcomes.Comparison(folder, other, after, made.summary(), header, tuple(rows))


@arguments.once_in_words
def check(
    config: Path | None = None,
    *,
    out: Path | None = None,
    full: bool = False,
    augment: Path | None = None,
    example: int | None = None,
    device: str | None = None,
    changes: Changes = NO_CHANGES,
) -> outcomes.Check:
    """Looks at a run before it costs anything, and returns what it found. Loads no weights.

    Args:
      config: a config file; None: the machine alone is looked at.
      out: folder for check.html and check.json.
      full: decode every image.
      augment: PNG file that shows what augmentation does.
      example: line of the training data to explain; None: the first with an answer.
      device: a machine that is not here, to plan the run for, or "all".
      changes: {key of the settings: value}.
    """
    say.show_on_stderr()
    report = checking.check(
        checking.CheckOptions(
            config=_text(config),
            out=_text(out),
            full=full,
            augment=_text(augment),
            example=example,
            device=device,
            config_overrides=_overrides(changes),
        )
    )
    return outcomes.Check([dataclasses.asdict(one) for one in report.findings], report.parts)


@arguments.once_in_words
def import_data(source: Path, target: Path, *, task: str, **chosen: Any) -> outcomes.DataSet:
    """Imports a data set of another tool, and returns where it is and what was read and dropped.

    Args:
      source: file, folder, or an address: roboflow:// hf:// gs:// kaggle://.
      target: the folder to write.
      task: what rows are made for: "detection", "segmentation", "counting", "vqa", "caption".
      chosen: the command's other options by name, as split={"train": 0.8, "valid": 0.2},
        classes=["cat", "dog"], columns={"question": "q"}, overwrite=True.

    Raises:
      ValueError: an option that there is not, a source that cannot be read.
    """
    say.show_on_stderr()
    parser = _Parser(allow_abbrev=False)
    options.add(parser)
    known = [action.dest for action in parser._actions if action.option_strings]
    words = [os.fspath(source), os.fspath(target), "--task", task]
    given = options.read(parser.parse_args([*words, *_words(chosen, known, what="import_data")]))
    summary = importing.import_data(given)
    return outcomes.DataSet(given.target, summary, given.target / import_report.SHEET)


@arguments.once_in_words
def convert(source: Path, target: Path, **chosen: Any) -> outcomes.Weights:
    """Converts weights into the format that the target's name asks for, and returns them.

    Args:
      source: an npz file, a run's folder or what `train` returned, a folder with safetensors.
      target: an npz file by its ending, or a folder for transformers or PEFT.
      chosen: fields of `export.converting.ConvertOptions`, as the command names them: overwrite,
        checkpoint, base, merge, dtype, variant, config, final_logits_softcap, tokenizer, openpi,
        verify.
    """
    say.show_on_stderr()
    known = [field.name for field in dataclasses.fields(converting.ConvertOptions)]
    _words(chosen, known[2:], what="convert")  # for the names alone
    paths = {key: pathlib.Path(chosen[key]) for key in ("base",) if chosen.get(key)}
    given = converting.ConvertOptions(
        os.fspath(source), pathlib.Path(target), **{**chosen, **paths}
    )
    return outcomes.Weights(given.target, converting.convert(given))


class _Parser(argparse.ArgumentParser):
    """The command's own, whose errors are errors of Python."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _begin() -> None:
    """Does what the command does for the process: lines, kept programs, memory used again."""
    say.show_on_stderr()
    process.keep_freed_memory()
    process.keep_programs()


def _text(path: Path | None) -> str | None:
    return None if path is None else os.fspath(path)


def _overrides(changes: Changes) -> list[str]:
    """Returns {key: value} as the command line has it: "key=value"."""
    return [f"{key}={x if isinstance(x, str) else repr(x)}" for key, x in changes.items()]


def _words(chosen: Mapping[str, Any], known: Iterable[str], *, what: str) -> list[str]:
    """Returns options as words of the command: True is a switch, None and False are nothing.

    Raises:
      ValueError: a name that the command does not know.
    """
    known, words = list(known), []
    for name, value in chosen.items():
        if name not in known:
            hint = phrases.did_you_mean(name, known)
            raise ValueError(f"{what}: no option {name!r}. {hint}Known: {', '.join(known)}")
        if isinstance(value, Mapping):
            value = ",".join(f"{key}={part}" for key, part in value.items())
        elif isinstance(value, Sequence) and not isinstance(value, str):
            value = ",".join(map(str, value))
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words.append(f"--{name}={value}")
    return words
