"""The folder of a run: may this run begin in it, or go on there?"""

import copy
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from paligemma_jax.assembly import assembly, model_functions
from paligemma_jax.console import say
from paligemma_jax.files import run_folder
from paligemma_jax.settings import eval_keys, load, presets

ANYWAY = "--resume_anyway"


def check(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, *, resume_anyway: bool = False
) -> None:
    """Raises a ValueError if the folder holds a finished run, or one of other settings."""
    assembly.check_writable(workdir, option="--workdir")
    if (workdir / run_folder.FINAL).exists():
        raise ValueError(
            f"{workdir} holds a finished run ({run_folder.FINAL}): choose another --workdir. "
            f"To make it longer, remove {workdir / run_folder.FINAL} alone, raise total_steps (or "
            f"total_epochs) and give {ANYWAY}"
        )
    if _read(workdir) is None:
        _check_no_data(config, workdir)
        return
    check_same(config, workdir, resume_anyway=resume_anyway)


def check_same(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, *, resume_anyway: bool = False
) -> None:
    """Raises a ValueError if the run of a folder, which has begun, has other settings.

    A key that is newer than the run had its default then.
    """
    stored = presets.defaults(_read(workdir))
    then, now = (json.loads(load.to_json(one)) for one in (stored, config))
    allow(
        differences(then, now),
        f"{workdir} holds a run with other settings",
        resume_anyway=resume_anyway,
    )


def keep_remat(
    config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> ml_collections.ConfigDict:
    """Returns the settings, with the remat_policy of the folder's run in place of an automatic one.

    It is chosen when a run begins: another one gives the same numbers but for their rounding.
    """
    stored = _read(workdir)
    if stored is None or config.remat_policy != model_functions.AUTO:
        return config
    kept = copy.deepcopy(config)
    kept.remat_policy = stored.get("remat_policy", model_functions.AUTO)
    return kept


def _read(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Returns the settings of the folder's run, None where none has begun."""
    path = workdir / run_folder.CONFIG
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error


def _check_no_data(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Raises a ValueError if the folder is one that data is read from."""
    sources = {"input.data": config.input.data}
    sources |= {f"input.mixture.{name}": one for name, one in config.input.mixture.items()}
    sources |= {f"evals.{name}": one for name, one in config.evals.items()}
    for key, source in sources.items():
        fname = source.get("fname") or eval_keys.INPUT
        if fname != eval_keys.INPUT and pathlib.Path(fname).resolve().parent == workdir.resolve():
            raise ValueError(
                f"--workdir {workdir}: {key}.fname={fname!r} lies in it. Choose a folder of the "
                f"run's own, as runs/{workdir.resolve().name}"
            )


def allow(found: list[str], what: str, *, resume_anyway: bool) -> None:
    """Says what differs; raises a ValueError unless `--resume_anyway`."""
    if not found:
        return
    text = f"{what}:\n  " + "\n  ".join(found)
    if not resume_anyway:
        raise ValueError(f"{text}\nChoose another --workdir, or go on with {ANYWAY}")
    say.warning(text)


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
