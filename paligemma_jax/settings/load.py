"""Settings from a Python file: `file.py:arg`, overrides on the command line, durations in steps.

A config file has `get_config(arg)` that returns an `ml_collections.ConfigDict` made by
`presets.finetune`. The names of keys and durations follow big_vision.
"""

import ast
import contextlib
import importlib.util
import json
import pathlib
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_collections

from paligemma_jax.settings import keys, presets, spec

# For config files from before the package was laid out anew.
MOVED = (
    "write `from paligemma_jax.settings import parse_arg, presets` instead of `from "
    "paligemma_jax.config import presets, settings`, and parse_arg for settings.parse_arg"
)
UNITS = ("steps", "epochs", "examples", "percent")


def parse_arg(arg: str, **defaults: Any) -> ml_collections.ConfigDict:
    """Returns `"res=448,overfit"` as a ConfigDict, typed by `defaults`; unknown keys are errors.

    A key without `=` is a switch and becomes True. Source of the idea: big_vision's
    `configs/common.py::parse_arg`.
    """
    values = dict(defaults)
    for part in filter(None, (part.strip() for part in (arg or "").split(","))):
        key, has_value, text = part.partition("=")
        if key not in defaults:
            raise ValueError(
                f"config argument '{key}' is not known. {spec.did_you_mean(key, defaults)}"
                f"Known: {', '.join(f'{k}={v}' for k, v in defaults.items()) or 'none'}"
            )
        if not has_value:
            if not isinstance(defaults[key], bool):
                raise ValueError(f"config argument '{key}' needs a value, as in {key}=...")
            text = "True"
        values[key] = convert(text, like=defaults[key], where=f"config argument '{key}'")
    return ml_collections.ConfigDict(values)


def load(source: str, overrides: Iterable[str] = ()) -> ml_collections.ConfigDict:
    """Returns the locked config of `"file.py:arg"` with `key.sub=value` overrides applied."""
    path, _, arg = source.partition(":")
    with reading(path) as module:
        config = module.get_config(arg)
    if not isinstance(config, ml_collections.ConfigDict):
        found = type(config).__name__
        raise ValueError(
            f"{path}: get_config returned {found}, expected what presets.finetune does"
        )
    override(config, overrides)
    presets.validate(config)
    return config


@contextlib.contextmanager
def reading(path: str) -> Iterator[Any]:
    """Within `with`, the module of a config file; what Python finds wrong in it has its line.

    Raises:
      ValueError: no such file, no Python, no get_config, or any mistake in what is called of it.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        near = spec.did_you_mean(file.name, [p.name for p in file.parent.glob("*.py")])
        raise ValueError(f"--config: no file {path}. {near}Expected FILE.py or FILE.py:ARGUMENT")
    module_spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ValueError(f"{path}: defines no get_config(arg)")
        yield module
    except SyntaxError as error:
        raise ValueError(f"{path}:{error.lineno}: not Python: {error.msg}") from error
    except (LookupError, AttributeError, TypeError, NameError, ImportError) as error:
        raise ValueError(f"{path}:{_line_in(file, error)}: {_in_words(error)}") from error


def override(config: ml_collections.ConfigDict, overrides: Iterable[str]) -> None:
    """Applies "key.sub=value" texts in their order.

    "lora.targets=None" first takes back what else the config says of factors: of none, it would be
    an error.
    """
    overrides = list(overrides)
    if "lora.targets=None" in overrides:
        config.lora.update(presets.defaults().lora)
    for text in overrides:
        key, has_value, value = text.partition("=")
        if not has_value:
            raise ValueError(f"override '{text}': expected key=value")
        assign(config, key, value)


def assign(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    """Sets a dotted key from text, in the type that the key has. A typo is a ValueError."""
    *folders, leaf = key.split(".")
    node = config
    for depth, folder in enumerate(folders):
        if folder not in node or not isinstance(node[folder], ml_collections.ConfigDict):
            raise ValueError(_unknown(".".join(folders[: depth + 1]), folder, node))
        node = node[folder]
    if leaf not in node:
        if node.is_locked:
            raise ValueError(_unknown(key, leaf, node))
        node[leaf] = _literal(text)
        return
    node[leaf] = convert(text, like=node[leaf], where=key)


def convert(text: str, *, like: Any, where: str) -> Any:
    """Returns `text` as a value of the type of `like`, or None; a switch is no number."""
    kind = type(like)
    if kind is str:
        return None if text == "None" else text
    value = _literal(text)
    if kind is type(None) or value is None:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (bool, int, float) and type(value) is not kind:
        raise ValueError(f"{where}={text}: expected {kind.__name__}, found {type(value).__name__}")
    return value


def steps(
    prefix: str,
    settings: Mapping[str, Any],
    *,
    data_size: int | None = None,
    batch_size: int | None = None,
    total_steps: int | None = None,
    default: int | None = None,
) -> int | None:
    """Returns a duration in steps, from `{prefix}_steps|_epochs|_examples|_percent`.

    Percent is a fraction of `total_steps`: 0.1 is a tenth. Rounding is big_vision's
    (`utils.py::steps`): Python's `round`, and at least 1 unless 0 is asked for.

    Raises:
      ValueError: two of the spellings are set at once, or none and there is no default, or what
        the conversion needs (for example the number of examples) is not known.
    """
    found = {
        unit: settings[f"{prefix}_{unit}"]
        for unit in UNITS
        if settings.get(f"{prefix}_{unit}") is not None
    }
    if not found:
        if default is None and prefix == "total":
            raise ValueError("set one of total_steps, total_epochs, total_examples: none is set")
        return default
    if len(found) > 1:
        raise ValueError(f"set one of {[f'{prefix}_{unit}' for unit in found]}, not all of them")
    unit, amount = next(iter(found.items()))
    if not isinstance(amount, int | float) or isinstance(amount, bool) or amount < 0:
        raise ValueError(f"{prefix}_{unit}={amount!r}: expected a number that is not negative")
    if unit == "steps":
        return int(amount)
    if unit == "percent":
        if total_steps is None:
            raise ValueError(f"{prefix}_percent: a part of total_steps, which is not known")
        if amount > 1:
            raise ValueError(f"{prefix}_percent={amount}: a fraction, so between 0 and 1")
        exact = amount * total_steps
    else:
        if not batch_size or (unit == "epochs" and not data_size):
            raise ValueError(f"{prefix}_{unit}: needs the batch size and the number of examples")
        exact = (
            amount * ((data_size or 0) / batch_size) if unit == "epochs" else amount / batch_size
        )
    return max(1, round(exact)) if amount else 0


def to_json(config: ml_collections.ConfigDict) -> str:
    """Returns the resolved config as JSON text, keys in the order of the presets."""
    return json.dumps(config.to_dict(), indent=2, default=str)


def from_json(path: pathlib.Path, overrides: Iterable[str] = ()) -> ml_collections.ConfigDict:
    """Returns the config of a run's folder (config.json), locked and checked like a fresh one."""
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: not found. Is {path.parent} the --workdir of a run?") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    config = presets.defaults(stored)
    override(config, overrides)
    presets.validate(config)
    return config


def _line_in(file: pathlib.Path, error: BaseException) -> int:
    lines = [
        frame.lineno or 0
        for frame in traceback.extract_tb(error.__traceback__)
        if pathlib.Path(frame.filename).resolve() == file.resolve()
    ]
    return lines[-1] if lines else 0


def _in_words(error: BaseException) -> str:
    """Returns what an error in a config file says; of a locked config, in our own words."""
    text = str(error.args[0] if error.args else error)
    if "paligemma_jax.config" in text:
        return f"{text}: {MOVED}"
    if found := re.search(r'Key "([^"]+)" does not exist', text):
        known = [key.name for key in keys.KEYS]
        return f"config key '{found[1]}' is not known. {spec.did_you_mean(found[1], known)}"
    return text


def _unknown(path: str, key: str, node: ml_collections.ConfigDict) -> str:
    prefix, every = path.removesuffix(key), [known.name for known in keys.KEYS]
    beside = [*node] if prefix else [*node, *every]
    hint = spec.did_you_mean(key, beside, prefix=prefix) or spec.did_you_mean(key, every)
    return f"config key '{path}' is not known. {hint}"


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text
