"""Settings from a Python file (`file.py:arg`) or from a run's config.json, and overrides of them.

A config file has `get_config(arg)` that returns an `ml_collections.ConfigDict` made by
`presets.finetune`. It ends here: what the other rooms get is `schema.Settings`.
"""

import ast
import contextlib
import copy
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

import ml_collections

from paligemma_jax.files import run_folder
from paligemma_jax.params import released_models
from paligemma_jax.settings import keys, presets, schema, validation

Class = TypeVar("Class")

# Errors of Python whose text says what is wrong by itself.
NAMED_BY_TEXT = (LookupError, AttributeError, TypeError, NameError, ImportError)

# The configs that come with the package, and those of them that are transfers, in their folder.
OWN = """demo digits counting_digits segmentation converted fracture_224 water_segmentation_224
    counting_224 caption_224 colab_longcap_224 vqa_448 structured_vqa_448 moondream_counting"""
NAMES = """activitynet_cap activitynet_qa ai2d aokvqa_da aokvqa_mc chartqa coco35l cococap docvqa
    gqa infovqa msrvtt_cap msrvtt_qa msvd_qa nlvr2 ocrvqa okvqa pope refcoco_seg rsvqa_hr rsvqa_lr
    scicap science_qa screen2words stvqa tallyqa textcaps textvqa vatex_cap vizwizvqa vqav2
    widgetcap"""
TRANSFERS = tuple(NAMES.split())
SHIPPED = (*OWN.split(), *(f"transfers/{name}" for name in TRANSFERS))

# For config files from before the package was laid out anew.
MOVED = (
    "write `from paligemma_jax.settings import parse_arg, presets` instead of `from "
    "paligemma_jax.config import presets, settings`, and parse_arg for settings.parse_arg"
)


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
                f"config argument '{key}' is not known. {keys.did_you_mean(key, defaults)}"
                f"Known: {', '.join(f'{k}={v}' for k, v in defaults.items()) or 'none'}"
            )
        if not has_value:
            if not isinstance(defaults[key], bool):
                raise ValueError(f"config argument '{key}' needs a value, as in {key}=...")
            text = "True"
        values[key] = convert(text, like=defaults[key], where=f"config argument '{key}'")
    return ml_collections.ConfigDict(values)


def load(source: str, overrides: Iterable[str] = ()) -> schema.Settings:
    """Returns the settings of `"file.py:arg"` with `key.sub=value` overrides applied."""
    path, _, arg = source.partition(":")
    with reading(path) as module:
        given = validation.Argument(arg)
        config = module.get_config(given)
        if not given.is_read and _is_same(config, module.get_config):
            raise ValueError(
                f"{path}: get_config makes nothing of the argument '{arg:.200}' behind the colon. "
                f"Leave it out, or let the file name what it takes: arg = parse_arg(arg, res=224)"
            )
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"{path}: get_config returned {type(config).__name__}, expected what presets.finetune "
            f"does"
        )
    override(config, overrides)
    return typed(config)


def find(path: str) -> pathlib.Path:
    """Returns a config file: one that is there, or by its name one that is shipped.

    Raises:
      ValueError: there is no such file, with the nearest of those beside it and of the shipped.
    """
    file = pathlib.Path(path)
    if file.is_file() and file.suffix == ".py":
        return file
    what = f"{path} is no Python file" if file.is_file() else f"no file {path}"
    shipped = shipped_configs()
    if path.removesuffix(".py") in shipped:
        return shipped[path.removesuffix(".py")]
    beside = [p.name for p in file.parent.glob("*.py")]
    near = keys.did_you_mean(file.name, beside) or keys.did_you_mean(file.stem, shipped)
    raise ValueError(
        f"--config: {what}. {near}Expected FILE.py or FILE.py:ARGUMENT, or the name of a "
        f"shipped one (paligemma-jax configs lists them)"
    )


def shipped_configs() -> dict[str, pathlib.Path]:
    """Returns name -> file of the configs that come with the package.

    They lie in it where it is installed, and beside it in a checkout; a user's own files there are
    not among them.
    """
    package = pathlib.Path(__file__).parents[1]
    inside, beside = package / "shipped_configs", package.parent / "configs"
    folder = inside if inside.is_dir() else beside
    return {name: folder / f"{name}.py" for name in SHIPPED if (folder / f"{name}.py").is_file()}


@contextlib.contextmanager
def reading(path: str) -> Iterator[Any]:
    """Within `with`, the module of a config file; what Python finds wrong in it has its line.

    Raises:
      ValueError: no such file, no Python, no get_config, or any mistake in what is called of it.
    """
    file = find(path)
    module_spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ValueError(f"{path}: defines no get_config(arg)")
        yield module
    except SyntaxError as error:
        raise ValueError(f"{path}:{error.lineno or 1}: not Python: {error.msg}") from error
    except (ValueError, OSError) as error:  # the settings' own, and of files that it reads
        if _line_in(file, error) is None or path in str(error):
            raise
        raise ValueError(f"{path}:{_line_in(file, error)}: {error}") from error
    except (Exception, SystemExit) as error:  # a config may do anything
        name = "" if isinstance(error, NAMED_BY_TEXT) else f"{type(error).__name__}: "
        where = f"{path}:{_line_in(file, error) or 0}"
        raise ValueError(f"{where}: {name}{_in_words(error)}") from error


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
        if not has_value or not key:
            raise ValueError(f"override '{text:.200}': expected key=value")
        assign(config, key, value)


def assign(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    """Sets a dotted key from text, in the type that the key has. A typo is a ValueError."""
    *folders, leaf = key.split(".")
    node = config
    for depth, folder in enumerate(folders):
        if folder not in node:
            path = ".".join(folders[: depth + 1])
            raise ValueError(_unknown(path, folder, node, whole=f"{key}={text:.80}"))
        if not isinstance(node[folder], ml_collections.ConfigDict):
            group = ".".join(folders[: depth + 1])
            raise ValueError(f"config key '{key}' is not known: {group} is a value without keys")
        node = node[folder]
    if leaf not in node:
        if node.is_locked:
            raise ValueError(_unknown(key, leaf, node, whole=key))
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
        try:
            return float(value)
        except OverflowError:
            digits = len(text)
            raise ValueError(
                f"{where}: a number of {digits} digits; expected one below 1e308"
            ) from None
    if kind in (bool, int, float) and type(value) is not kind:
        raise ValueError(
            f"{where}={text:.200}: expected {kind.__name__}, found {type(value).__name__}"
        )
    return value


def typed(config: ml_collections.ConfigDict) -> schema.Settings:
    """Returns the settings that a config says, complete.

    Raises:
      ValueError: lists every key that is unknown, of a wrong type or out of its range.
    """
    validation.validate(config)
    return _build(schema.Settings, config.to_dict())


def eval_settings(name: str, values: Mapping[str, Any]) -> schema.EvalSettings:
    """Returns the settings of one evaluation, checked as a config's are."""
    validation.check_eval(name, values)
    return _build(schema.EvalSettings, values)


def change(settings: schema.Settings, overrides: Iterable[str]) -> schema.Settings:
    """Returns settings with "key.sub=value" texts applied, checked."""
    config = presets.defaults(to_dict(settings))
    override(config, overrides)
    return typed(config)


def with_evaluation(
    settings: schema.Settings, name: str, fname: str, overrides: Iterable[str] = ()
) -> schema.Settings:
    """Returns settings with `name` as the only evaluation, of a file; overrides are of its keys."""
    only = schema.replace(settings, {"evals": {name: schema.EvalSettings(fname=fname)}})
    return change(only, [f"evals.{name}.{text}" for text in overrides])


def to_dict(settings: schema.Settings) -> dict[str, Any]:
    """Returns all values, nested as the keys are, in the order of the schema.

    Of an evaluation, and of a source of a mixture, only what is not as by default.
    """
    return _shorten(dataclasses.asdict(settings))


def to_json(settings: schema.Settings) -> str:
    """Returns all values as JSON text."""
    return json.dumps(to_dict(settings), indent=2, default=str)


def to_keep(settings: schema.Settings, run: pathlib.Path) -> dict[str, Any]:
    """Returns all values as a run's folder keeps them: it may be moved, and used from anywhere."""
    values = json.loads(to_json(settings))
    for node, key in _paths(values).values():
        node[key] = run_folder.keep_path(node[key], run)
    return values


def read_values(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns what a run's config.json holds, not checked; None where there is no such file.

    As JSON has it, and `to_dict` arranges it; paths are whole ones. A key that is newer than the
    run has its default.
    """
    return _as_json(_stored(path)) if path.exists() else None


def complete(values: Mapping[str, Any], run: pathlib.Path) -> dict[str, Any]:
    """Returns settings as `read_values` does, of what is kept elsewhere than in config.json."""
    values = copy.deepcopy(dict(values))
    _find_paths(values, run)
    return _as_json(presets.defaults(values))


def follow_moves(then: dict[str, Any], now: Mapping[str, Any]) -> None:
    """Lets paths of a run be those of now where files of these names lie now, and none then did.

    That they hold the same is compared elsewhere, by what they hold.
    """
    places = _paths(now)
    for name, (node, key) in _paths(then).items():
        new = places[name][0][places[name][1]] if name in places else ""
        if os.path.basename(new) == os.path.basename(node[key]) and not os.path.exists(node[key]):
            node[key] = new


def _find_paths(values: Any, run: pathlib.Path) -> None:
    for node, key in _paths(values).values():
        node[key] = run_folder.find_path(node[key], run)


def _paths(values: Any) -> dict[str, tuple[Any, str]]:
    """Returns dotted key -> (what holds it, its name there) of every path of this machine."""
    texts = keys.texts_of_paths(values, schema.KEYS)
    return {name: (node, key) for name, (node, key) in texts.items() if _is_local(node[key])}


def _is_local(path: str) -> bool:
    is_name = path in {*schema.NO_PATHS, *released_models.FILES, *released_models.SHIPPED_FILES}
    return bool(path) and "://" not in path and not is_name


def _as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    values = json.loads(json.dumps(_shorten(config.to_dict()), default=str))
    for node, key in _paths(values).values():
        node[key] = os.path.abspath(os.path.expanduser(node[key]))
    return values


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns a line for each dotted key whose value is not the same."""
    lines = []
    for key in [*then, *(key for key in now if key not in then)]:
        old, new = then.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new or (key in then) != (key in now):
            shown = [repr(d[key]) if key in d else "not set" for d in (then, now)]
            lines.append(f"{prefix}{key}: {shown[0]} there, {shown[1]} now")
    return lines


def from_json(path: pathlib.Path, overrides: Iterable[str] = ()) -> schema.Settings:
    """Returns the settings of a run's folder (config.json), checked like fresh ones."""
    config = _stored(path)
    override(config, overrides)
    try:
        return typed(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _stored(path: pathlib.Path) -> ml_collections.ConfigDict:
    """Returns what a run's config.json holds, the keys that it lacks by default. Checks no value.

    Raises:
      ValueError: no such file, or it is none of ours.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: not found. Is {path.parent} the --workdir of a run?") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, or too deep or long for Python
        raise ValueError(f"{path}: not JSON that can be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object, found a {type(values).__name__}")
    _find_paths(values, path.parent)
    try:
        return presets.defaults(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _shorten(values: dict[str, Any]) -> dict[str, Any]:
    """Returns all values, without those of evaluations and sources that are as by default."""

    def shorten(named: Mapping[str, Any], known: Iterable[keys.Key]) -> dict[str, Any]:
        defaults = {one.name: one.default for one in known}
        return {
            name: {k: x for k, x in one.items() if k not in defaults or x != defaults[k]}
            for name, one in named.items()
        }

    def is_named(named: Any) -> bool:  # else it is of another type, which `typed` says
        return isinstance(named, Mapping) and all(isinstance(x, Mapping) for x in named.values())

    values = dict(values)
    if is_named(values["evals"]):
        values["evals"] = shorten(values["evals"], schema.EVAL_KEYS)
    data = values["input"]
    if isinstance(data, Mapping) and is_named(data["mixture"]):
        values["input"] = {**data, "mixture": shorten(data["mixture"], schema.SOURCE_KEYS)}
    return values


def _build(settings_class: type[Class], values: Mapping[str, Any]) -> Class:
    """Returns an instance of a settings class; what is not among the values has its default."""
    hints, built = typing.get_type_hints(settings_class), {}
    for field in dataclasses.fields(cast(Any, settings_class)):
        if field.name not in values:
            continue
        value, hint = values[field.name], hints[field.name]
        if dataclasses.is_dataclass(hint):
            value = _build(cast(type, hint), value)
        elif item := keys.item_class(hint):
            value = {name: _build(item, one) for name, one in value.items()}
        built[field.name] = _freeze(value)
    return settings_class(**built)


def _freeze(value: Any) -> Any:
    """Returns a value whose lists are tuples; what ConfigDicts hold is plain dictionaries."""
    if isinstance(value, Mapping | ml_collections.ConfigDict):
        return {name: _freeze(one) for name, one in value.items()}
    return tuple(map(_freeze, value)) if isinstance(value, list | tuple) else value


def _is_same(config: Any, get_config: Callable[[str], Any]) -> bool:
    """Whether a config is what the file gives without an argument, if it gives anything then."""
    try:
        return config.to_json_best_effort() == get_config("").to_json_best_effort()
    except Exception:  # a config may do anything
        return False


def _line_in(file: pathlib.Path, error: BaseException) -> int | None:
    """Returns the line of a file that an error was raised in or below; None elsewhere."""
    lines = [
        frame.lineno or 0
        for frame in traceback.extract_tb(error.__traceback__)
        if pathlib.Path(frame.filename).resolve() == file.resolve()
    ]
    return lines[-1] if lines else None


def _in_words(error: BaseException) -> str:
    """Returns what an error in a config file says; of a locked config, in our own words."""
    text = str(error.args[0] if error.args else error)
    if "paligemma_jax.config" in text:
        return f"{text}: {MOVED}"
    if unknown := re.search(r'Key "([^"]+)" does not exist', text):
        hint = keys.did_you_mean(unknown[1], schema.names())
        return f"config key '{unknown[1]}' is not known. {hint}"
    return text


def _unknown(path: str, key: str, node: ml_collections.ConfigDict, *, whole: str) -> str:
    """Returns that a key, or the part of it up to `path`, is not among those of a node."""
    prefix, every = path.removesuffix(key), schema.names()
    beside = [*node] if prefix else [*node, *every]
    hint = keys.did_you_mean(key, beside, prefix=prefix) or keys.did_you_mean(key, every)
    hint = hint or "docs/configs.md lists all keys. "
    return f"config key '{path}' is not known. {hint}" + (f"In {whole}" if whole != path else "")


def _literal(text: str) -> Any:
    """Returns what a text says in Python, or the text itself where it says nothing.

    Brackets or signs by the thousand are a MemoryError or a RecursionError of Python's parser.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
