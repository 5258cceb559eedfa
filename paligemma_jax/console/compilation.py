"""Compiled programs: kept for the next run, and counted."""

import dataclasses
import os
import pathlib

import jax

CACHE_ENV = "JAX_COMPILATION_CACHE_DIR"
DEFAULT_CACHE = "~/.cache/paligemma_jax/programs"

COMPILED, FROM_CACHE = (
    "/jax/core/compile/backend_compile_duration",
    "/jax/compilation_cache/cache_hits",
)


@dataclasses.dataclass
class Count:
    """Programs that this process needed so far.

    programs: all of them; from_cache: those that an earlier run had compiled; seconds: that they
    took, either way.
    """

    programs: int = 0
    from_cache: int = 0
    seconds: float = 0.0


def keep_programs() -> None:
    """Keeps what takes a second or more to compile in the user's cache folder, for later runs.

    JAX_COMPILATION_CACHE_DIR names another folder; JAX_ENABLE_COMPILATION_CACHE=false keeps none.
    """
    if not os.environ.get(CACHE_ENV):
        folder = pathlib.Path(DEFAULT_CACHE).expanduser()
        jax.config.update("jax_compilation_cache_dir", os.fspath(folder))


def start_counting() -> Count:
    """Returns a count that follows this process from now on."""
    count = Count()

    def add_program(event: str, duration_secs: float, **_: object) -> None:
        if event == COMPILED:
            count.programs += 1
            count.seconds += duration_secs

    def add_hit(event: str, **_: object) -> None:
        count.from_cache += event == FROM_CACHE

    jax.monitoring.register_event_duration_secs_listener(add_program)
    jax.monitoring.register_event_listener(add_hit)
    return count


def describe(count: Count) -> str:
    """Returns the count in words."""
    return (
        f"compiled {count.programs} programs in {count.seconds:.1f} s, {count.from_cache} of them "
        f"known from earlier runs"
    )
