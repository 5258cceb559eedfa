"""From a data set and a model's name to a run: its folder, its config, and its training."""

import ast
import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax

from paligemma_jax.assembly import model_functions, weights
from paligemma_jax.console import say
from paligemma_jax.data import prefix_lm
from paligemma_jax.preparing import data_search, model_search
from paligemma_jax.runs import saving, whole_run
from paligemma_jax.settings import load, schema, template

CONFIG, DATA = "config.py", "data"  # in the run's folder
COMMAND = "COMMAND"  # what a written config calls the line that it was written for
BATCH_SIZE, EPOCHS = 8, 10.0
# A model from nothing has all to learn: so many updates, of small pictures; but few pictures it
# knows by heart after so many passes.
SCRATCH_BATCH_SIZE, SCRATCH_STEPS, SCRATCH_EPOCHS = 16, 800, 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartOptions:
    """What to train on what; None: chosen.

    Attributes:
      wanted: the data.
      model: name of a released model, path of weights, or a size of a model from nothing.
      method: what of weights is trained, a key of `presets.METHODS`.
      res: side of the images in pixels.
      epochs: passes over the training data.
      batch_size: examples in a step.
      workdir: the run's folder; None: runs/NAME of the data.
      command: the line that asks for this, as the config will tell.
      overrides: "key=value" of the settings.
      resume_anyway: as in `whole_run.train`.
    """

    wanted: data_search.Wanted
    model: str
    method: str | None = None
    res: int | None = None
    epochs: float | None = None
    batch_size: int | None = None
    workdir: pathlib.Path | None = None
    command: str = ""
    overrides: Sequence[str] = ()
    resume_anyway: bool = False


def train(options: StartOptions) -> pathlib.Path:
    """Finds data and model, writes the run's config unless it is there, and trains.

    Returns:
      the run's folder.

    Raises:
      ValueError: as of `prepare` and `whole_run.train`.
    """
    config = prepare(options)
    settings = load.load(str(config))
    whole_run.train(settings, config.parent, resume_anyway=options.resume_anyway)
    return config.parent


def prepare(options: StartOptions) -> pathlib.Path:
    """Returns the config of a run, written into its folder unless the same command did before.

    Raises:
      ValueError: data or a model that are not data, or the folder has another command's config.
    """
    say.show_on_stderr()
    for name in ("epochs", "batch_size", "res"):
        if (value := getattr(options, name)) is not None and value <= 0:
            raise ValueError(
                f"--{name} {value:g}: expected more than 0; without it {name} is chosen"
            )
    workdir = options.workdir or pathlib.Path("runs") / name_of(options.wanted.data)
    config = workdir / CONFIG
    with saving.claim_folder(workdir):
        if config.exists():
            _check_same_command(config, options.command)
            say.info(f"config: {config}, written before by the same command")
            return config
        start = model_search.find(options.model, options.method, options.res)
        data = data_search.find(options.wanted, workdir / DATA)
        text = template.write(_describe(options, start, data, workdir), config)
        config.write_text(text, "utf-8")
        try:
            load.load(str(config))
        except ValueError:
            config.unlink()
            raise
    say.info(f"config: {config}: to change it, edit a copy and give that as --config")
    return config


def name_of(data: str) -> str:
    """Returns the name of a run on these data: that of their folder or file."""
    path = pathlib.Path(data)
    stem = path.parent.absolute().name if path.suffix == ".jsonl" else path.absolute().stem
    return re.sub(r"[^\w-]+", "-", stem).strip("-") or "run"


def _check_same_command(config: pathlib.Path, command: str) -> None:
    """Raises a ValueError if a config was not written for this command."""
    try:
        body = ast.parse(config.read_text("utf-8")).body
    except SyntaxError as error:
        raise ValueError(f"{config}:{error.lineno}: not Python: {error.msg}") from error
    values = [
        ast.literal_eval(node.value)
        for node in body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == COMMAND
    ]
    if values != [command]:
        before = f"was written for: {values[0]}" if values else "is another one"
        raise ValueError(
            f"{config} {before}\nTo go on with it: paligemma-jax train --config {config} --workdir "
            f"{config.parent}. For this command choose another --workdir"
        )


def _describe(
    options: StartOptions,
    start: template.Start,
    data: data_search.Data,
    workdir: pathlib.Path,
) -> template.Config:
    """Returns what the config of a run says."""
    out = workdir / DATA
    is_inside = data.folder.resolve() == out.resolve()
    values = dict(data.keys)
    if data.image_dir:
        values["input.data.image_dir"] = data.image_dir
        values["evals.valid.image_dir"] = data.image_dir
    values |= _tokenizer_key(start, data, out)
    batch_size, epochs = _length(options, start, data.num_train)
    most_images = max(len(one.images) for one in data.examples)
    if most_images > 1:
        values["input.max_images"] = most_images
    values |= dict(_read_override(text) for text in options.overrides)
    return template.Config(
        title=f"{options.model} on {options.wanted.data}.",
        name=workdir.name,
        command=options.command,
        start=start,
        task=data.task,
        data=template.Code(f'str(HERE / "{DATA}")') if is_inside else str(data.folder.absolute()),
        train=data.train,
        valid=data.valid,
        text_len=_text_len(start, data, out),
        batch_size=batch_size,
        epochs=epochs,
        keys=values,
    )


def _is_from_nothing(start: template.Start) -> bool:
    return start.preset == template.FROM_NOTHING


def _tokenizer_key(
    start: template.Start, data: data_search.Data, out: pathlib.Path
) -> dict[str, Any]:
    """Returns where the tokenizer of a model from nothing is, if that is not beside the data."""
    if not _is_from_nothing(start):
        return {}
    path = data_search.tokenizer_beside(data, out)
    if path.parent == data.folder:
        return {}
    return {"tokenizer": template.Code(f'str(HERE / "{DATA}" / "{path.name}")')}


def _text_len(start: template.Start, data: data_search.Data, out: pathlib.Path) -> int:
    """Returns a text_len that all examples fit in."""
    usual = schema.Settings().tokenizer
    source = str(start.keys.get("tokenizer", usual))
    if _is_from_nothing(start):
        path = data_search.tokenizer_beside(data, out)
    else:
        with weights.named_by("tokenizer", source, "paligemma-jax fetch tokenizer gets it before"):
            path = weights.fetch(source)
    tokenizer = model_functions.load_tokenizer(schema.ModelSettings().family, path)
    lengths = prefix_lm.measure(data.examples, tokenizer)
    report = prefix_lm.report(data.examples, lengths, text_len=1)
    return report.suggested_text_len


def _length(options: StartOptions, start: template.Start, num_train: int) -> tuple[int, float]:
    """Returns (batch size, epochs): as asked, else as the kind of run needs."""
    is_scratch = _is_from_nothing(start)
    usual = min(SCRATCH_BATCH_SIZE if is_scratch else BATCH_SIZE, num_train)
    num_devices = jax.device_count()
    batch_size = options.batch_size or -(-usual // num_devices) * num_devices
    epochs = options.epochs
    if epochs is None:
        needed = min(round(SCRATCH_STEPS * batch_size / num_train), SCRATCH_EPOCHS)
        epochs = max(EPOCHS, float(needed)) if is_scratch else EPOCHS
        steps = round(epochs * num_train / batch_size)
        say.info(f"length: {epochs:g} epochs, {steps} steps of {batch_size} (--epochs chooses)")
    return batch_size, epochs


def _read_override(text: str) -> tuple[str, Any]:
    """Returns (key, value) of "key=value"; the value as its key has it."""
    name, _, value = text.partition("=")
    known = {one.name: one.default for one in schema.KEYS}
    of_evaluation = {one.name: one.default for one in schema.EVAL_KEYS}
    like = known.get(name, of_evaluation.get(name.rpartition(".")[2]))
    return name, load.convert(value, like=like, where=name)
