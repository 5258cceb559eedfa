"""A command on a cluster: as a job of Slurm, or in a process on each of a list of hosts."""

import contextlib
import dataclasses
import pathlib
import re
import shlex
import time
from collections.abc import Sequence

from paligemma_jax.console import process, say
from paligemma_jax.files import atomic
from paligemma_jax.launching import shell

LOOK_S = 0.2
GRACE_S = 45.0  # that the others have to end after one has
SSH = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15"]
WARNING_S = 120  # before its time is over, Slurm asks a job to save


@dataclasses.dataclass(frozen=True)
class Job:
    """A job of Slurm: see sbatch for what `time`, `partition` and `account` may be."""

    name: str
    nodes: int = 1
    gpus: int = 1
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    setup: str | None = None


def submit(job: Job, words: Sequence[str], run: shell.Shell) -> str:
    """Writes NAME.sbatch, hands it to Slurm, and returns the number of the job.

    A job whose time is over saves, and is queued again: it goes on by itself until it is done.
    """
    words = shell.check_command(words, num_processes=job.nodes)
    if not re.fullmatch(r"[\w.-]+", job.name):
        raise ValueError(f"--name {job.name}: expected letters, digits and . _ -")
    run.require("sbatch", "start this on a machine of the cluster that submits jobs")
    file, text = pathlib.Path(f"{job.name}.sbatch"), describe_job(job, words)
    if run.is_dry:
        run.ask(["cat", str(file)])
        say.info(text)
    else:
        atomic.write_text(file, text)
    number = run.ask(["sbatch", "--parsable", str(file)], dry="JOB").partition(";")[0]
    say.info(
        f"job {number}: its log is {job.name}-{number}.log; squeue -j {number} says how it is, "
        f"scancel {number} ends it"
    )
    return number


def describe_job(job: Job, words: Sequence[str]) -> str:
    """Returns the text of a job's sbatch file."""
    options = {
        "job-name": job.name,
        "output": f"{job.name}-%j.log",
        "open-mode": "append",
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": job.gpus,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "signal": f"TERM@{WARNING_S}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    command = shlex.join(["python", "-m", f"{shell.PACKAGE.name}.{words[0]}", *words[1:]])
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            "#SBATCH --requeue",
            *([job.setup] if job.setup else []),
            f"srun --kill-on-bad-exit=1 {command}",
            "status=$?",
            f"# {process.PREEMPTED}: it was asked to stop, and has saved.",
            f'[ $status -ne {process.PREEMPTED} ] || exec scontrol requeue "$SLURM_JOB_ID"',
            "exit $status",
            "",
        ]
    )


@dataclasses.dataclass(frozen=True)
class Hosts:
    """Machines that ssh reaches without a question.

    Attributes:
      names: the first one is where the others ask for each other.
      folder: on each, that the code is sent into.
      port: of the first one, that the others must reach.
      extras: of the package.
      setup: a shell's line for every machine, after the installation.
    """

    names: tuple[str, ...]
    folder: str = "~/paligemma_jax"
    port: int = 8476
    extras: str = "cuda12"
    setup: str | None = None


def run_on(hosts: Hosts, words: Sequence[str], run: shell.Shell) -> int:
    """Does a command in a process on each host; returns the first status that is not 0.

    When one ends with an error, or this program does, all others are asked to save and end.

    Raises:
      ValueError: no hosts, one of them twice, or one that ssh does not reach.
    """
    if not hosts.names or not all(re.fullmatch(r"[\w.@-]+", name) for name in hosts.names):
        raise ValueError(f"--hosts {','.join(hosts.names)}: expected names, as alpha,beta")
    if len(set(hosts.names)) < len(hosts.names):
        raise ValueError(f"--hosts {','.join(hosts.names)}: one of them is there twice")
    words = shell.check_command(words, num_processes=len(hosts.names))
    code = shell.pack(words)
    run.require("ssh", "install OpenSSH")
    for name in hosts.names:
        run.ask([*SSH, name, "true"])
    unpack = f"mkdir -p {hosts.folder} && tar xzf - -C {hosts.folder}"
    install = f"{unpack} && {shell.install(hosts.folder, hosts.extras, hosts.setup)}"
    for name in hosts.names:
        with say.working(f"installing on {name}"):
            run.ask([*SSH, name, install], given=code)
    first = hosts.names[0].rpartition("@")[2]
    commands = []
    for number, name in enumerate(hosts.names):
        environment = (
            f"JAX_COORDINATOR_ADDRESS={first}:{hosts.port}",
            f"JAX_NUM_PROCESSES={len(hosts.names)}",
            f"JAX_PROCESS_ID={number}",
        )
        several = environment if len(hosts.names) > 1 else ()
        commands.append([*SSH, name, shell.start(hosts.folder, words, several)])
    if run.is_dry:
        return max(map(run.follow, commands))
    return _follow_all(hosts, commands, run)


def _follow_all(hosts: Hosts, commands: Sequence[Sequence[str]], run: shell.Shell) -> int:
    with contextlib.ExitStack() as started:
        # Last of all that happens: what a host still does is asked to end.
        for name in hosts.names:
            stop = [*SSH, name, shell.stop(hosts.folder)]
            started.callback(run.take_down, stop, f"the process on {name}")
        programs = [started.enter_context(shell.following(words)) for words in commands]
        while True:
            statuses = [program.poll() for program in programs]
            for name, status in zip(hosts.names, statuses, strict=True):
                if status:
                    say.error(f"{name} ended with {status}: the others end too")
                    _wait(programs)
                    return status
            if all(status == 0 for status in statuses):
                return 0
            time.sleep(LOOK_S)


def _wait(programs: Sequence) -> None:
    """Waits for programs that end by themselves, as those of one run do."""
    end = time.monotonic() + GRACE_S
    while time.monotonic() < end and any(program.poll() is None for program in programs):
        time.sleep(LOOK_S)
