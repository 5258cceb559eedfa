"""What a run would need of a device, planned as training does, without fetching its weights."""

import dataclasses

from paligemma_jax.assembly import assembly
from paligemma_jax.checks import check_settings, findings
from paligemma_jax.hub import addresses
from paligemma_jax.reports import sections
from paligemma_jax.runs import auto_remat, memory_plan, training_run
from paligemma_jax.settings import schema
from paligemma_jax.wording import quantities

Finding = findings.Finding


def look(settings: schema.Settings) -> tuple[sections.Section, list[Finding]]:
    """Returns (memory and work, whether it does not fit). Compiles the step.

    Weights that are not here yet are planned in the type that their name tells.
    """
    try:
        built = assembly.assemble(_without_download(settings))
        planned = training_run.plan(built)
    except ValueError as error:
        return left_out(str(error)), []
    built, needed = auto_remat.plan_run(built, planned)
    section = _section(memory_plan.facts(needed))
    if needed.fits or needed.limit is None:
        return section, []
    changes = auto_remat.find_changes(built, planned, limit=needed.limit)
    remedy = "; or ".join(auto_remat.describe(*change) for change in changes)
    peak, limit = quantities.size(needed.memory.peak), quantities.size(needed.limit)
    what = f"a device needs {peak} and has {limit}"
    remedy = remedy or "use more devices, or a smaller model"
    return section, [Finding("error", "does not fit", what, remedy, "memory")]


def left_out(reason: str) -> sections.Section:
    """Returns the section of a run that is not planned, with the reason why."""
    return _section([("not planned", reason)])


def _section(facts: list[tuple[str, str]]) -> sections.Section:
    return sections.Section("memory", "Memory and work", (sections.Facts(tuple(facts)),))


def _without_download(settings: schema.Settings) -> schema.Settings:
    """Returns settings for random weights in the types of those that are not here yet."""
    sources = [source for source in (settings.model_init, settings.model_init_base) if source]
    if all(addresses.find(source) for source in sources):
        return settings
    frozen_dtype = settings.frozen_dtype
    if frozen_dtype is None and check_settings.stored_bytes(settings.model_init) == 2:
        frozen_dtype = "bfloat16"
    return dataclasses.replace(
        settings, frozen_dtype=frozen_dtype, model_init=None, model_init_base=None, save="all"
    )
