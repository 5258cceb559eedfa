"""The folder of a run: may this run begin in it, or go on there?"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator

import jax

from paligemma_jax.assembly import assembly, model_functions
from paligemma_jax.console import say
from paligemma_jax.files import atomic, run_folder
from paligemma_jax.settings import load, schema

ANYWAY = "--resume_anyway"


@contextlib.contextmanager
def claim(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other trainings out of a run's folder. The first process of a run does, for all.

    Raises:
      ValueError: another one works in it, or nothing can be written there.
    """
    assembly.check_writable(workdir, option="--workdir")
    with contextlib.ExitStack() as claims:
        if jax.process_index() == 0:
            with atomic.writing(workdir / run_folder.OWNER):
                before = claims.enter_context(run_folder.claimed(workdir))
            if before:
                say.info(f"{workdir}: {before} did not end by itself; its folder is taken over")
        yield


def check(settings: schema.Settings, workdir: pathlib.Path, *, resume_anyway: bool = False) -> None:
    """Raises a ValueError if the folder holds a finished run, or one of other settings."""
    if (workdir / run_folder.FINAL).exists():
        raise ValueError(
            f"{workdir} holds a finished run ({run_folder.FINAL}): choose another --workdir. "
            f"To make it longer, remove {workdir / run_folder.FINAL} alone, raise total_steps (or "
            f"total_epochs) and give {ANYWAY}"
        )
    if load.read_values(workdir / run_folder.CONFIG) is None:
        _check_no_data(settings, workdir)
        return
    check_same(settings, workdir, resume_anyway=resume_anyway)


def check_same(
    settings: schema.Settings, workdir: pathlib.Path, *, resume_anyway: bool = False
) -> None:
    """Raises a ValueError if the run of a folder, which has begun, has other settings.

    A key that is newer than the run had its default then.
    """
    then = load.read_values(workdir / run_folder.CONFIG) or {}
    allow(
        load.differences(then, json.loads(load.to_json(settings))),
        f"{workdir} holds a run with other settings",
        resume_anyway=resume_anyway,
    )


def keep_remat(settings: schema.Settings, workdir: pathlib.Path) -> schema.Settings:
    """Returns the settings, with the remat_policy of the folder's run in place of an automatic one.

    It is chosen when a run begins: another one gives the same numbers but for their rounding.
    """
    stored = load.read_values(workdir / run_folder.CONFIG)
    if stored is None or settings.remat_policy != model_functions.AUTO:
        return settings
    return dataclasses.replace(settings, remat_policy=stored["remat_policy"])


def _check_no_data(settings: schema.Settings, workdir: pathlib.Path) -> None:
    """Raises a ValueError if the folder is one that data is read from."""
    sources = {"input.data": settings.input.data}
    sources |= {f"input.mixture.{name}": one for name, one in settings.input.mixture.items()}
    sources |= {f"evals.{name}": one for name, one in settings.evals.items()}
    for key, source in sources.items():
        fname = source.fname or schema.INPUT
        if fname != schema.INPUT and pathlib.Path(fname).resolve().parent == workdir.resolve():
            raise ValueError(
                f"--workdir {workdir}: {key}.fname={fname!r} lies in it. Choose a folder of the "
                f"run's own, as runs/{workdir.resolve().name}"
            )


def allow(
    differing: list[str],
    what: str,
    *,
    resume_anyway: bool,
    remedy: str = "Choose another --workdir",
) -> None:
    """Says what differs; raises a ValueError, with a remedy, unless `--resume_anyway`."""
    if not differing:
        return
    text = f"{what}:\n  " + "\n  ".join(differing)
    if not resume_anyway:
        raise ValueError(f"{text}\n{remedy}, or go on with {ANYWAY}")
    say.warning(text)
