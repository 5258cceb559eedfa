"""What the doors' command lines share: overrides, and errors as one clear line."""

import argparse
import ast
import contextlib
import functools
import json
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax

from paligemma_jax.console import process, say
from paligemma_jax.wording import phrases

P = ParamSpec("P")
T = TypeVar("T")

PACKAGE = pathlib.Path(__file__).parents[1]
PROGRAM = "paligemma-jax"
TRACEBACK = "PALIGEMMA_JAX_TRACEBACK"
# What other programs call an option, and a key of the settings.
OTHERS = {
    **dict.fromkeys(("imgsz", "img_size", "image_size"), "res"),
    **dict.fromkeys(("batch", "per_device_train_batch_size", "train_batch_size"), "batch_size"),
    **dict.fromkeys(("output_dir", "project", "name", "save_dir"), "workdir"),
    **dict.fromkeys(("learning_rate", "lr0"), "lr"),
    **dict.fromkeys(("resume", "resume_from_checkpoint"), "resume_anyway"),
    **dict.fromkeys(("dataset", "dataset_name", "val", "split"), "data"),
    **dict.fromkeys(("model", "ckpt", "resume_from"), "run"),
    **{"model_name_or_path": "model", "num_train_epochs": "epochs", "save": "pictures"},
}
# How messages name what a command is given: a key of the settings with its value, other arguments.
KEY_GIVEN, GIVEN = (
    re.compile(r"--config\.([\w.]+)=(\S+?)(?=[\s,;:)]|$)"),
    re.compile(r"(?<!\w)--(\w+)=?"),
)
SWITCHES = ("resume_anyway", "full", "overwrite", "merge")
# Stands in jax's notes on a traceback, which is not shown here.
FILTERED = "JAX_TRACEBACK_FILTERING"

# What a device says, and what a user can do about it.
DEVICE_ERRORS = {
    "RESOURCE_EXHAUSTED": (
        "out of device memory. Raise accumulation_steps (the result stays the same), lower "
        "input.batch_size, train less (trainable=REGEX), or compute in bfloat16"
    ),
    "by peer": (
        "another process of this run is gone: see what it said last. The same command in all of "
        "them goes on from the last checkpoint"
    ),
    "DNN library": (
        "cuDNN did not start: most often another program holds the GPU's memory; else the versions "
        "of driver, cuDNN and jax do not fit together"
    ),
}


def command(door: str) -> list[str]:
    """Returns the words that call a door in the way in which this program was called.

    That is as a module where it is the module of a door, else as the console command.
    """
    program = pathlib.Path(sys.argv[0])
    is_module = program.parent == PACKAGE and program.name != "__main__.py"
    return ["python", "-m", f"{PACKAGE.name}.{door}"] if is_module else [PROGRAM, door]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser that shows a door's docstring as its help.

    Every door begins with it, so from here on standard error shows what the door says.
    """
    say.show_on_stderr()
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def add_processes(made: argparse.ArgumentParser) -> None:
    """Adds the switch for runs of several processes (TPU pods, clusters)."""
    made.add_argument(
        "--distributed",
        action="store_true",
        help="one of several processes: jax finds the others on TPU pods and under Slurm; else set "
        "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID",
    )


def join_processes() -> None:
    """Connects this process with the others, or says within five minutes which one it is."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    numbers = [os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
    if address and not all(numbers):
        raise ValueError("JAX_COORDINATOR_ADDRESS needs JAX_NUM_PROCESSES and JAX_PROCESS_ID too")
    count, number = (int(text) if text else None for text in numbers)
    try:
        process.join(address, count=count, number=number)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"--distributed: process {number} of {count} could not join at {address}: {error}"
        ) from error


def add_source(made: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which settings and which weights to use."""
    made.add_argument("--run", metavar="FOLDER", help="of a run")
    made.add_argument("--config", metavar="FILE[:ARG]", help="a Python file, instead of --run")
    made.add_argument(
        "--weights",
        help="npz file, run, folder of transformers or PEFT, name or address; none: random",
    )
    add_checkpoint(made)
    add_base(made)


def add_checkpoint(made: argparse.ArgumentParser | argparse._ArgumentGroup) -> argparse.Action:
    """Adds the argument that says which state of a run to use, and returns it."""
    return made.add_argument(
        "--checkpoint", metavar="WHICH", help="of the run, not final.npz: best, last or a step"
    )


def add_base(made: argparse.ArgumentParser) -> None:
    """Adds the argument that says what a file of trained arrays only was trained from."""
    made.add_argument(
        "--base", metavar="PATH", help="of trainable-only weights; default: what they were made of"
    )


def parse(
    made: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    *,
    groups: Mapping[str, Collection[str]],
) -> tuple[argparse.Namespace, dict[str, list[str]]]:
    """Returns (arguments, {group: ["key=value", ...]} from --group.key=value).

    `groups`: name -> its keys, for a hint where one of them is given without its group.
    """
    overrides: dict[str, list[str]] = {group: [] for group in groups}
    rest, before = [], ""
    for word in sys.argv[1:] if argv is None else argv:
        _check_dashes(made, word, before)
        before = word
        group, dot, override = word.removeprefix("--").partition(".")
        if not word.startswith("--") or not dot or group not in overrides:
            rest.append(word)
        elif "=" in override:
            overrides[group].append(override)
        else:
            made.error(f"{word}: write {word}=VALUE, without a space")
    arguments, unknown = made.parse_known_args(rest)
    if unknown:
        made.error(
            f"unrecognized arguments: {' '.join(unknown)}. {_explain(unknown, made, groups)}"
        )
    return arguments, overrides


def _options(made: argparse.ArgumentParser) -> list[str]:
    names = [name for action in made._actions for name in action.option_strings]
    return [name.removeprefix("--") for name in names if name.startswith("--")]


def _check_dashes(made: argparse.ArgumentParser, word: str, before: str) -> None:
    """Ends with an error for `data=FOLDER`, which others read as an option."""
    name, is_given, value = word.partition("=")
    if is_given and not before.startswith("--") and name in _options(made):
        made.error(f"{word}: write --{name} {value}")


def _explain(
    unknown: Sequence[str], made: argparse.ArgumentParser, groups: Mapping[str, Collection[str]]
) -> str:
    """Returns what to give instead of arguments that there are not."""
    options = _options(made)
    for name in (word[2:].partition("=")[0] for word in unknown if word.startswith("--")):
        name = name.replace("-", "_")
        for group, keys in groups.items():
            if (key := OTHERS.get(name, name)) in keys and key not in options:
                return f"{key} is a key of the settings: --{group}.{key}=VALUE"
        if hint := phrases.did_you_mean(name, options, prefix="--", aliases=OTHERS):
            return hint.strip()
    if not unknown[0].startswith("--") and (names := _named(made)):
        return f"Each stands behind the name of an option: {', '.join(names)}; see --help"
    return "--help lists what there is"


def _named(made: argparse.ArgumentParser) -> list[str]:
    """Returns the options that a word without a name may have been meant for."""
    return [f"--{name}" for name in ("data", "run", "config") if name in _options(made)]


def print_result(result: Mapping[str, Any]) -> None:
    """Prints a door's result as JSON for the program that reads it; a person has seen the lines."""
    if not sys.stdout.isatty():
        with say.results():
            sys.stdout.write(json.dumps(result, ensure_ascii=False, indent=2) + "\n")


def run(main: Callable[[], None]) -> None:
    """Calls a door; an error that a user can mend is one message and exit status 2.

    A run that was asked to stop and can go on is status 75: see `process`.
    """
    say.show_on_stderr()
    process.prepare()
    try:
        _call(main)
    except Exception as error:
        if process.has_partners():
            traceback.print_exception(error)
            process.end_all(f"{type(error).__name__}: {error}", 1)
        raise


def status_of(main: Callable[[], None]) -> int:
    """Calls what `run` would; returns the exit status that a process of its own would have."""
    try:
        _call(main)
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else process.FAILED
    except Exception as error:  # a mistake of ours, as Python shows it at the end of a process
        traceback.print_exception(error)
        return 1
    return 0


def _call(main: Callable[[], None]) -> None:
    """Calls a door; exits with a message for errors that a user can mend."""
    try:
        main()
    except process.Preempted as stopped:
        say.warning(str(stopped))
        sys.exit(process.PREEMPTED)
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", status=130))
    except Exception as error:
        if (message := in_words(error)) is None:
            raise
        sys.exit(_fail(message, error=error))


def in_words(error: Exception) -> str | None:
    """Returns what an error that a user can mend says; None for another one."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        remedies = [text for sign, text in DEVICE_ERRORS.items() if sign in str(error)]
        return f"{remedies[0]}\n\n{str(error)[:2000]}" if remedies else None
    if isinstance(error, ValueError | OSError | FloatingPointError):
        return str(error)
    if isinstance(error, RuntimeError) and "initialize backend" in str(error):
        hint = "JAX_PLATFORMS names the device to use; without it jax takes what it finds"
        return f"no such device: {error}. {hint}"
    return None


def once_in_words(function: Callable[P, T]) -> Callable[P, T]:
    """Returns a function whose errors that a user can mend have words, those of Python's arguments.

    They are of the type that they were, and a notebook shows them without a traceback: IPython asks
    an error itself for what it shows of it. Elsewhere, and where the environment asks for
    tracebacks, that does not change.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if (message := in_words(error)) is None:
                raise
            message = as_arguments(message)
            shown = _with_text(error, message)
            if not os.environ.get(TRACEBACK):
                lines = [f"{type(error).__name__}: {message}", *_notes(error)]
                with contextlib.suppress(AttributeError):  # an error with no place for it
                    shown._render_traceback_ = lambda: lines  # pyright: ignore
            if shown is error:
                raise
            raise shown from error

    return call


def _with_text(error: Exception, text: str) -> Exception:
    """Returns an error of the same type and notes with this text, itself if that is its own."""
    if text == str(error) or error.args != (str(error),):
        return error
    try:
        changed = type(error)(text)  # those of jax keep the text that they were made with
    except TypeError:  # of a type that is made from more than a text
        return error
    for note in _notes(error):
        changed.add_note(note)
    return changed


def as_arguments(message: str) -> str:
    """Returns a message on what a command is given in the words of the function of that name."""

    def to_change(words: re.Match[str]) -> str:
        return f"changes={{{words[1]!r}: {_as_python(words[2])}}}"

    def to_argument(words: re.Match[str]) -> str:
        return f"{words[1]}=True" if words[1] in SWITCHES else f"{words[1]}="

    return GIVEN.sub(to_argument, KEY_GIVEN.sub(to_change, message))


def _as_python(text: str) -> str:
    """Returns a value of the command line as Python writes it."""
    try:
        return repr(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return repr(text)


def _notes(error: BaseException | None) -> list[str]:
    return [note for note in getattr(error, "__notes__", ()) if FILTERED not in note]


def _fail(message: str, *, error: BaseException | None = None, status: int = 2) -> int:
    """Writes a message, with the notes of its error and how to see more; returns `status`."""
    lines = [message, *_notes(error)]
    if error is not None and os.environ.get(TRACEBACK):
        traceback.print_exception(error)
    elif error is not None:
        lines.append(f"({type(error).__name__}; {TRACEBACK}=1 shows where it comes from)")
    say.error("\n".join(lines))
    process.end_all(message, status)
    return status
