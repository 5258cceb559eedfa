"""A command on a TPU of Google's cloud: made, followed, made anew when it is taken, and deleted."""

import dataclasses
import pathlib
import re
import tempfile
import time
from collections.abc import Sequence

from paligemma_jax.console import process, say
from paligemma_jax.launching import shell

FOLDER = "~/paligemma_jax"
WAIT_S = 20.0  # between two looks at a request
# Generation -> (accelerator type's name, chips or cores of one host, software of its machines).
KINDS = {
    "v4": ("v4", 8, "tpu-ubuntu2204-base"),
    "v5e": ("v5litepod", 8, "v2-alpha-tpuv5-lite"),
    "v5p": ("v5p", 8, "v2-alpha-tpuv5"),
    "v6e": ("v6e", 8, "v2-alpha-tpuv6e"),
}
CHIPS_OF_PARTS = 4  # of v5e and v6e: more than one host has this many chips in each
GONE = ("SUSPENDED", "SUSPENDING", "FAILED", "DELETING")


@dataclasses.dataclass(frozen=True)
class Request:
    """A TPU to ask for.

    Attributes:
      kind: "v5e-16".
      name: of the request and its node.
      zone, project: where, and who pays; project None: that of gcloud.
      is_spot: cheaper, and may be taken at any moment.
      is_kept: whether it stays when the command has ended.
      attempts: how often it is made, at most.
      setup: a shell's line for every machine, after the installation.
    """

    kind: str
    name: str
    zone: str
    project: str | None = None
    is_spot: bool = False
    is_kept: bool = False
    attempts: int = 10
    setup: str | None = None

    @property
    def accelerator(self) -> str:
        return f"{KINDS[self.generation][0]}-{self.size}"

    @property
    def generation(self) -> str:
        return self.kind.rpartition("-")[0]

    @property
    def size(self) -> int:
        return int(self.kind.rpartition("-")[2])

    @property
    def num_hosts(self) -> int:
        if self.size <= KINDS[self.generation][1]:
            return 1
        return self.size // (CHIPS_OF_PARTS if self.generation in ("v5e", "v6e") else 8)


def check(request: Request) -> None:
    """Raises a ValueError for a TPU that there is not."""
    if not re.fullmatch(rf"({'|'.join(KINDS)})-[1-9]\d*", request.kind):
        raise ValueError(
            f"--tpu {request.kind}: expected a generation ({', '.join(KINDS)}) and a size, as v5e-8"
        )
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", request.name):
        raise ValueError(f"--name {request.name}: expected at most 40 small letters, digits and -")


def launch(request: Request, words: Sequence[str], run: shell.Shell) -> int:
    """Does a command on a TPU; returns its status. The TPU is deleted, however this ends.

    Raises:
      ValueError: no gcloud, project, such TPU in the zone, quota: before anything costs.
    """
    check(request)
    words = shell.check_command(words, num_processes=request.num_hosts)
    code = shell.pack(words)
    run.require("gcloud", "install the Google Cloud CLI, then: gcloud auth login")
    if not request.project and not run.ask(["gcloud", "config", "get-value", "project"], dry="-"):
        raise ValueError("gcloud has no project: give --project, or: gcloud config set project ID")
    kinds = ["gcloud", "compute", "tpus", "accelerator-types", "list"]
    known = run.ask([*kinds, *_where(request), "--format=value(type)"], dry=request.accelerator)
    if request.accelerator not in known.split():
        near = sorted(one for one in known.split() if one.startswith(KINDS[request.generation][0]))
        raise ValueError(
            f"--zone {request.zone} has no {request.accelerator}; of this generation it has "
            f"{', '.join(near) or 'none'}"
        )
    for attempt in range(1, request.attempts + 1):
        status, is_gone = _once(request, words, code, run)
        if status == 0 or not (is_gone or status == process.PREEMPTED):
            return status
        say.warning(f"the TPU was taken (start {attempt} of {request.attempts} ended)")
    return process.PREEMPTED


def _once(
    request: Request, words: Sequence[str], code: bytes, run: shell.Shell
) -> tuple[int, bool]:
    """Makes the TPU, does the command, deletes the TPU; returns (status, whether it was taken)."""
    resources = ["gcloud", "compute", "tpus", "queued-resources"]
    delete = [*resources, "delete", request.name, *_where(request), "--force", "--quiet"]
    make = [
        *(*resources, "create", request.name, f"--node-id={request.name}", *_where(request)),
        f"--accelerator-type={request.accelerator}",
        f"--runtime-version={KINDS[request.generation][2]}",
        *(["--spot"] if request.is_spot else []),
    ]
    is_made = False
    try:
        is_made = True  # also where gcloud fails after it was made
        try:
            run.ask(make)
        except shell.ProgramError as error:
            is_made = "ALREADY_EXISTS" not in str(error) and "already exists" not in str(error)
            raise
        if not _wait(request, run):
            return 1, True
        return _do(request, words, code, run)
    finally:
        if is_made and not request.is_kept:
            run.take_down(delete, f"the TPU {request.name} in {request.zone}")


def _wait(request: Request, run: shell.Shell) -> bool:
    """Returns whether the TPU is there, once it is; False: the request failed."""
    with say.working(f"waiting for {request.accelerator} in {request.zone}"):
        while (state := _state(request, run)) != "ACTIVE":
            if state in GONE:
                say.warning(f"the request for {request.accelerator} is {state}")
                return False
            time.sleep(WAIT_S)
    return True


def _do(request: Request, words: Sequence[str], code: bytes, run: shell.Shell) -> tuple[int, bool]:
    vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    everywhere = [*_where(request), "--worker=all", "--quiet"]
    unpack = f"mkdir -p {FOLDER} && tar xzf ~/{shell.ARCHIVE} -C {FOLDER}"
    prepare = f"{unpack} && {shell.install(FOLDER, 'tpu,gcs', request.setup)}"
    start = f"bash -c {_quoted(shell.start(FOLDER, words))}"
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, shell.ARCHIVE)
            file.write_bytes(code)
            sent = str(file) if not run.is_dry else shell.ARCHIVE
            run.ask([*vm, "scp", sent, f"{request.name}:~/", *everywhere])
        run.ask([*vm, "ssh", request.name, *everywhere, f"--command={prepare}"])
        status = run.follow([*vm, "ssh", request.name, *everywhere, f"--command={start}"])
    except shell.ProgramError:
        if _state(request, run) not in GONE:
            raise
        return 1, True
    return status, status != 0 and _state(request, run) in GONE


def _state(request: Request, run: shell.Shell) -> str:
    words = ["gcloud", "compute", "tpus", "queued-resources", "describe", request.name]
    return run.ask([*words, *_where(request), "--format=value(state.state)"], dry="ACTIVE")


def _where(request: Request) -> list[str]:
    project = [f"--project={request.project}"] if request.project else []
    return [f"--zone={request.zone}", *project]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
