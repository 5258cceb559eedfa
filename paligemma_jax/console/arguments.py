"""What the doors' command lines share: overrides, and errors as one clear line."""

import argparse
import contextlib
import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax

from paligemma_jax.console import process, say

P = ParamSpec("P")
T = TypeVar("T")

TRACEBACK = "PALIGEMMA_JAX_TRACEBACK"
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
    rest = []
    for word in sys.argv[1:] if argv is None else argv:
        group, dot, override = word.removeprefix("--").partition(".")
        if not word.startswith("--") or not dot or group not in overrides:
            rest.append(word)
        elif "=" in override:
            overrides[group].append(override)
        else:
            made.error(f"{word}: write {word}=VALUE, without a space")
    arguments, unknown = made.parse_known_args(rest)
    if unknown:
        made.error(f"unrecognized arguments: {' '.join(unknown)}{_explain(unknown, groups)}")
    return arguments, overrides


def _explain(unknown: Sequence[str], groups: Mapping[str, Collection[str]]) -> str:
    """Returns how arguments are given that name a key of a config."""
    for word in unknown:
        name = word.removeprefix("--").partition("=")[0]
        for group, keys in groups.items():
            if name in keys:
                return f". {name} is a key of the settings: --{group}.{name}=VALUE"
    return ""


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
    process.keep_freed_memory()
    process.keep_programs()
    try:
        _call(main)
    except Exception as error:
        if process.has_partners():
            traceback.print_exception(error)
            process.end_all(f"{type(error).__name__}: {error}", 1)
        raise


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
    """Returns a function whose errors that a user can mend a notebook shows without a traceback.

    They are raised as they are; IPython asks an error itself for what it shows of it. Elsewhere,
    and where the environment asks for tracebacks, nothing changes.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            message = in_words(error)
            if message is not None and not os.environ.get(TRACEBACK):
                lines = [f"{type(error).__name__}: {message}", *_notes(error)]
                with contextlib.suppress(AttributeError):  # an error with no place for it
                    error._render_traceback_ = lambda: lines  # pyright: ignore
            raise

    return call


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
