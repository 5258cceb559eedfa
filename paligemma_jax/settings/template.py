"""Config files, written: they take no argument and no key that they do not know."""

import dataclasses
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from paligemma_jax.files import atomic
from paligemma_jax.params import released_models
from paligemma_jax.settings import keys, presets, schema

# Models from nothing, by size: those that configs/demo.py and configs/digits.py train.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "img": dict(width=96, depth=3, mlp_dim=384, num_heads=3, posemb_init="sines"),
        "llm": dict(width=96, depth=3, mlp_dim=512, num_heads=3, num_kv_heads=1, head_dim=32),
    },
    "small": {
        "img": dict(width=128, depth=4, mlp_dim=512, num_heads=4, posemb_init="sines"),
        "llm": dict(width=128, depth=3, mlp_dim=512, num_heads=4, num_kv_heads=1, head_dim=32),
    },
}
FROM_NOTHING = "from_scratch"  # the preset of these
SCRATCH_RES = 112
USUAL_METHOD = "attention"
LINE = 100  # columns
TOKENIZER = "tokenizer.model"  # beside the data of a model from nothing


class Code(str):
    """A value that is written as it is: an expression."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """What a run starts from.

    Attributes:
      preset: name of a function of `presets`.
      values: its arguments, besides res and text_len.
      res: side of the images.
      keys: what is set besides, by dotted name.
    """

    preset: str
    values: Mapping[str, Any]
    res: int
    keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What a config file says.

    Attributes:
      title: its first line.
      name: of the run.
      command: that it was written for.
      start: what it starts from.
      task: what answers are.
      data: folder of the data, or the `Code` that gives it.
      train, valid: names of files in it; valid None: evaluate on what is trained on.
      text_len, batch_size, epochs: keys of the settings.
      keys: what is set besides, by dotted name.
    """

    title: str
    name: str
    start: Start
    command: str = ""
    task: str = schema.Settings.task
    data: str = "data/mine"
    train: str = "train.jsonl"
    valid: str | None = "valid.jsonl"
    text_len: int = 256
    batch_size: int = 8
    epochs: float = 10.0
    keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def start_from(model: str, method: str | None = None, res: int | None = None) -> Start:
    """Returns how a run starts from a released model, or from nothing in one of `SIZES`.

    Raises:
      ValueError: no such model, method or resolution, or a method for a model from nothing.
    """
    if model in SIZES:
        if method:
            raise ValueError(
                f"--method {method} is for weights to start from; '{model}' starts from nothing, "
                f"and all of it trains: leave --method out"
            )
        beside = {"tokenizer": Code(f'f"{{arg.data}}/{TOKENIZER}"')}
        return Start(preset=FROM_NOTHING, values=SIZES[model], res=res or SCRATCH_RES, keys=beside)
    shipped = released_models.SHIPPED.get(model)
    names = [*released_models.MODELS, *released_models.SHIPPED, *SIZES]
    if shipped is None and model not in released_models.MODELS:
        raise ValueError(
            f"--model {model} is not known. {keys.did_you_mean(model, names)}Known: "
            f"{', '.join(names)}, and paths of weights"
        )
    resolutions = shipped.resolutions if shipped else released_models.RESOLUTIONS
    if res is not None and res not in resolutions:
        known = ", ".join(map(str, resolutions))
        raise ValueError(f"--res {res}: {model} has weights for {known} pixels")
    return Start(
        preset="finetune",
        values=dict(model=model, method=check_method(method)),
        res=res or resolutions[0],
        keys={"tokenizer": shipped.tokenizer} if shipped else {},
    )


def check_method(method: str | None) -> str:
    """Returns what is trained of weights; a name that is not known is a ValueError."""
    if method is None:
        return USUAL_METHOD
    if method not in presets.METHODS:
        hint, known = keys.did_you_mean(method, presets.METHODS), ", ".join(presets.METHODS)
        raise ValueError(f"--method {method} is not known. {hint}Known: {known}")
    return method


def write(config: Config, path: pathlib.Path | str) -> str:
    """Returns the text of a config file that will lie at `path`."""
    codes = [x for x in (config.data, *config.keys.values()) if isinstance(x, Code)]
    is_located = any("HERE" in code for code in codes)
    values = {"data": config.data, "res": config.start.res, "batch_size": config.batch_size}
    values |= {"epochs": config.epochs, "overfit": False}
    preset = {"res": Code("arg.res"), "text_len": config.text_len, **config.start.values}
    valid = config.valid and Code(f'f"{{arg.data}}/{config.valid}"')
    evaluation = {"fname": valid or "input", "log_percent": Code("1 / 8")}
    lines = [
        *_describe(config, path),
        *(["", "import pathlib"] if is_located else []),
        "",
        "from paligemma_jax.settings import overfit, parse_arg, presets",
        *(["", "HERE = pathlib.Path(__file__).resolve().parent"] if is_located else []),
        *(["", f"COMMAND = {_repr(config.command)}"] if config.command else []),
        "",
        "",
        'def get_config(arg=""):',
        *_call("arg = parse_arg", values, first="arg"),
        "",
        *_call(f"c = presets.{config.start.preset}", preset),
        f"    c.task = {_repr(config.task)}",
        *(f"    c.{key} = {_repr(value)}" for key, value in config.start.keys.items()),
        f'    c.input.data.fname = f"{{arg.data}}/{config.train}"',
        "    c.input.batch_size = arg.batch_size",
        "    c.total_epochs = arg.epochs",
        *_call("c.evals.valid = dict", evaluation),
        *(f"    c.{key} = {_repr(value)}" for key, value in config.keys.items()),
        "    return overfit.make(c) if arg.overfit else c",
    ]
    return "\n".join(lines) + "\n"


def save(path: pathlib.Path, text: str) -> None:
    """Writes a file that is not there yet; one that is, or no Python file, is a ValueError."""
    if path.suffix != ".py":
        raise ValueError(f"{path}: a config is a Python file: write {path}.py")
    if path.exists():
        raise ValueError(f"{path} is there already: choose another name, or remove it")
    with atomic.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, text)


def _describe(config: Config, path: pathlib.Path | str) -> list[str]:
    """Returns the docstring of a config file."""
    path, name = _in_docstring(shlex.quote(str(path))), _in_docstring(config.name)
    return [
        f'"""{_in_docstring(config.title)}',
        "",
        f"    paligemma-jax check --config {path}",
        f"    paligemma-jax train --config {path}:overfit --workdir runs/{name}-8",
        f"    paligemma-jax train --config {path} --workdir runs/{name}-2",
        "",
        f"Arguments ({path}:batch_size=4): data, res, batch_size, epochs,",
        "overfit (8 examples until it repeats them). Another one is an error, and so is a key that",
        "is misspelled. All keys: docs/configs.md.",
        '"""',
    ]


def _in_docstring(text: str) -> str:
    return text.replace("\\", "/").replace('"', "'")


def _call(target: str, values: Mapping[str, Any], *, first: str = "") -> list[str]:
    """Returns a call with keywords, in one line where that is short enough."""
    words = [*([first] if first else []), *(f"{k}={_repr(x)}" for k, x in values.items())]
    short = f"    {target}({', '.join(words)})"
    if len(short) <= LINE:
        return [short]
    return [f"    {target}(", *(f"        {word}," for word in words), "    )"]


def _repr(value: Any) -> str:
    """Returns a value as a config file writes it."""
    if isinstance(value, str) and not isinstance(value, Code):
        quoted = repr(value)
        return quoted if '"' in value or quoted[0] != "'" else f'"{quoted[1:-1]}"'
    if isinstance(value, Mapping):
        is_plain = all(isinstance(k, str) and k.isidentifier() for k in value)
        pairs = ", ".join(f"{k}={_repr(x)}" for k, x in value.items())
        return f"dict({pairs})" if is_plain else repr(dict(value))
    return repr(value)
