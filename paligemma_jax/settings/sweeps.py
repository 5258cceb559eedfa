"""The runs of a sweep: what `sweep(add)` of a config file asks for.

    def sweep(add):
        for lr in (1e-3, 3e-3):
            add(lr=lr)
            add(lr=lr, **{"input.batch_size": 64}, config_arg="res=448")

Each `add` is a run: config keys with their values, and `config_arg` in place of what stands behind
the file's name. As in big_vision, `sweep(add, arg)` gets that argument too.
"""

import ast
import dataclasses
import hashlib
import inspect
import re
from collections.abc import Iterable
from typing import Any

from paligemma_jax.settings import load

CONFIG_ARG = "config_arg"
MAX_NAME = 100  # letters, of the 255 bytes that a file system gives a folder


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
      name: what sets it apart, "lr=0.01,wd=0.0"; in letters that folders may have.
      source: "file.py:arg" of its config.
      overrides: "key=value" texts, those for all runs first.
      values: what was added, by key.
    """

    name: str
    source: str
    overrides: tuple[str, ...]
    values: dict[str, Any]


def read(source: str, overrides: Iterable[str] = ()) -> list[Run]:
    """Returns the runs of `"file.py:arg"` in their order, each of them with settings that load.

    Args:
      source: of a config file with `sweep(add)`.
      overrides: "key=value" texts for all runs; what `add` says goes before them.

    Raises:
      ValueError: no sweep, none added, one added twice, or settings that are wrong, named by run.
    """
    path, _, arg = source.partition(":")
    added: list[dict[str, Any]] = []
    with load.reading(path) as module:
        if not hasattr(module, "sweep"):
            raise ValueError(
                f"{path}: defines no sweep(add). Write one that calls add(lr=0.01) for each run"
            )
        takes_arg = len(inspect.signature(module.sweep).parameters) > 1
        arguments = [arg] if takes_arg else []
        module.sweep(lambda **values: added.append(values), *arguments)
    if not added:
        raise ValueError(f"{path}: sweep(add) added no run")
    runs = [_make(path, arg, values, tuple(overrides)) for values in added]
    _check(path, runs)
    return runs


def _make(path: str, arg: str, values: dict[str, Any], overrides: tuple[str, ...]) -> Run:
    values = {key: _plain(value) for key, value in values.items()}
    own = [f"{key}={value}" for key, value in values.items() if key != CONFIG_ARG]
    arg = str(values.get(CONFIG_ARG, arg))
    source = f"{path}:{arg}" if arg else path
    return Run(_name(values), source, (*overrides, *own), values)


def _plain(value: Any) -> Any:
    """Returns a value of numpy or jax as Python's; an override is text that Python reads."""
    value = value.item() if hasattr(value, "item") else value
    try:
        is_plain = isinstance(value, str) or ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        is_plain = False
    if not is_plain:
        raise ValueError(f"add(...={value!r}): expected numbers, texts, lists, dicts or None")
    return value


def _name(values: dict[str, Any]) -> str:
    """Returns "key=value,..." as a folder's name; what had to be changed gets a digest."""
    text = ",".join(f"{key}={value}" for key, value in values.items()) or "base"
    name = re.sub(r"[^\w.,=+-]+", "-", text)
    if name == text and len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: MAX_NAME - 9]}-{digest}"


def _check(path: str, runs: list[Run]) -> None:
    wrong, seen = [], set()
    for run in runs:
        if run.name in seen:
            wrong.append(f"{run.name}: added twice")
            continue
        seen.add(run.name)
        try:
            load.load(run.source, run.overrides)
        except ValueError as error:
            wrong.append(f"{run.name}: {error}")
    if wrong:
        text = "\n  ".join(wrong)
        raise ValueError(f"{path}: {len(wrong)} of the {len(runs)} runs of its sweep:\n  {text}")
