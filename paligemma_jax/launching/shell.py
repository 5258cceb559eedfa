"""Programs that launchers call, or in a dry run only show; and the code that they send."""

import contextlib
import io
import pathlib
import shlex
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence

from paligemma_jax.console import say
from paligemma_jax.files import run_folder

PACKAGE = pathlib.Path(__file__).parents[1]
# Beside the package in a checkout: what an installation there needs.
BESIDE = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "configs")
ARCHIVE = "paligemma_jax.tar.gz"
LINES = 12  # of what a program says, in an error
PAUSES_S = (2.0, 5.0, 15.0)  # between two tries to take something down
AT_DOORS = ("train", "evaluate")  # what several processes may do together


class ProgramError(ValueError):
    """A program that a launcher called did not do what it was asked."""


class Shell:
    """Calls programs. In a dry run it writes what it would call, and all of it succeeds.

    Args:
      is_dry: whether to call nothing.
      write: takes the lines of a dry run.
    """

    def __init__(self, *, is_dry: bool, write: Callable[[str], object]):
        self.is_dry, self._write = is_dry, write

    def require(self, program: str, why: str) -> None:
        """Raises a ValueError if a program is not there."""
        if not self.is_dry and shutil.which(program) is None:
            raise ValueError(f"{program} is not on PATH: {why}")

    def ask(self, words: Sequence[str], *, given: bytes | None = None, dry: str = "") -> str:
        """Returns what a program writes; `dry`: in a dry run.

        Raises:
          ProgramError: its status is not 0; the text has its last lines.
        """
        if self.is_dry:
            self._write(shlex.join(words) + (f"  < {ARCHIVE}" if given else ""))
            return dry
        done = subprocess.run(words, input=given, capture_output=True, check=False)
        if done.returncode:
            text = (done.stderr or done.stdout).decode(errors="replace").strip()
            last = "\n  ".join(text.splitlines()[-LINES:])
            raise ProgramError(
                f"{shlex.join(words)[:300]}\nended with {done.returncode}:\n  {last}"
            )
        return done.stdout.decode(errors="replace").strip()

    def follow(self, words: Sequence[str]) -> int:
        """Runs a program whose lines are shown as they come; returns its status."""
        if self.is_dry:
            self._write(shlex.join(words))
            return 0
        with following(words) as program:
            return program.wait()

    def take_down(self, words: Sequence[str], what: str) -> None:
        """Calls what gives back something that costs, some times; says what to do if it stays."""
        for pause_s in (*PAUSES_S, None):
            try:
                self.ask(words)
                return
            except (ProgramError, OSError) as error:
                if pause_s is None:
                    say.error(f"{what} is STILL THERE and may cost: {shlex.join(words)}\n{error}")
                else:
                    time.sleep(pause_s)


@contextlib.contextmanager
def following(words: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Yields a program that runs beside this one, and ends it with the block."""
    program = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    try:
        yield program
    finally:
        if program.poll() is None:
            program.terminate()
            try:
                program.wait(20)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()


def check_command(words: Sequence[str], *, num_processes: int) -> list[str]:
    """Returns the words of a door as they are started elsewhere, in so many processes.

    Raises:
      ValueError: no command; one that several processes cannot do together, or not there.
    """
    words = [word for word in words if word != "--"] if words[:1] == ["--"] else list(words)
    if not words or words[0].startswith("-"):
        raise ValueError("what is to be started stands behind --, as: -- train --config demo ...")
    if num_processes > 1:
        if words[0] not in AT_DOORS:
            raise ValueError(
                f"{words[0]}: {num_processes} processes cannot do it together, only "
                f"{' and '.join(AT_DOORS)} can. Start it on one machine"
            )
        words += [] if "--distributed" in words else ["--distributed"]
        place = value_of(words, "--workdir")
        if place and run_folder.is_remote(place):
            raise ValueError(
                f"--workdir {place}: {num_processes} processes write one run into a folder that "
                f"all of them see. Mount the bucket on every machine (--setup 'gcsfuse ...') and "
                f"give that path, or take one machine"
            )
    return words


def value_of(words: Sequence[str], option: str) -> str | None:
    """Returns what an option of a command is given; None where it is not there."""
    for number, word in enumerate(words):
        if word == option and number + 1 < len(words):
            return words[number + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def pack(words: Sequence[str]) -> bytes:
    """Returns a .tar.gz of this package and of the config file that a command names.

    Raises:
      ValueError: the package is not in a checkout, so there is nothing to install from.
    """
    root = PACKAGE.parent
    if not (root / "pyproject.toml").is_file():
        raise ValueError(
            f"{PACKAGE} is installed, and launch sends a checkout: clone the repository, and call "
            f"it there as python -m paligemma_jax.launch"
        )
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name in (PACKAGE.name, *BESIDE):
            if (root / name).exists():
                archive.add(root / name, name, filter=_leave_out)
        config = (value_of(words, "--config") or "").partition(":")[0]
        file = pathlib.Path(config)
        if config.endswith(".py") and file.is_file() and not file.is_absolute():
            archive.add(file, file.as_posix(), filter=_leave_out)
        elif config.endswith(".py") and file.is_absolute():
            raise ValueError(
                f"--config {config}: give the path from the folder that launch is called in"
            )
    return made.getvalue()


def _leave_out(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return None if "__pycache__" in entry.name else entry


def install(folder: str, extras: str, setup: str | None) -> str:
    """Returns the shell's line that installs what was sent into a folder, and does the rest."""
    python = "python3.11"
    steps = [
        f"cd {folder}",
        f"{{ command -v {python} >/dev/null || sudo apt-get -qq install -y {python}-venv; }}",
        f"{{ [ -x .venv/bin/pip ] || {python} -m venv .venv; }}",
        f".venv/bin/pip install -q -c constraints.txt '.[{extras}]'",
    ]
    return " && ".join([*steps, *([setup] if setup else [])])


def start(folder: str, words: Sequence[str], environment: Sequence[str] = ()) -> str:
    """Returns the shell's line that starts a command in a folder, its process noted there.

    `environment`: NAME=VALUE texts.
    """
    door = [".venv/bin/python", "-m", f"{PACKAGE.name}.{words[0]}", *words[1:]]
    program = shlex.join([*(["env", *environment] if environment else []), *door])
    return f"cd {folder} && echo $$ > launch.pid && exec {program}"


def stop(folder: str) -> str:
    """Returns the shell's line that asks what `start` began to save and end, if it runs."""
    pid = f"$(cat {folder}/launch.pid)"
    # A number that another program has by now is left alone.
    is_ours = f"grep -q {PACKAGE.name} /proc/{pid}/cmdline"
    return f"{{ {is_ours} && kill -TERM {pid}; }} 2>/dev/null; true"
