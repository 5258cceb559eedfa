"""A check, assembled: the sections of its report and everything that was found."""

import dataclasses
import pathlib
from typing import Any

from paligemma_jax.assembly import families, mask_codecs, weights
from paligemma_jax.checks import (
    check_data,
    check_example,
    check_memory,
    check_settings,
    environment,
    findings,
)
from paligemma_jax.console import say
from paligemma_jax.data import tokens
from paligemma_jax.files import atomic
from paligemma_jax.reports import sections
from paligemma_jax.settings import schema
from paligemma_jax.tasks import task

PAGE, VALUES = "check.html", "check.json"


@dataclasses.dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
      parts: of the report, in order.
      found: the worst first.
    """

    parts: tuple[sections.Section, ...]
    found: tuple[findings.Finding, ...]

    @property
    def num_errors(self) -> int:
        """How many findings must be mended."""
        return sum(one.severity == "error" for one in self.found)


def check_machine() -> Report:
    """Returns what there is to say without a config."""
    section, found = environment.look([])
    return Report((section,), tuple(findings.sort(found)))


def check(settings: schema.Settings, *, example: int | None, full: bool) -> Report:
    """Returns what there is to say of a run that was not started. Loads no weights.

    Args:
      settings: of the run.
      example: line of the training data to explain; None: the first with an answer.
      full: decode every image.

    Raises:
      ValueError: no such example.
    """
    needs_codec = task.look_up(settings.task).needs_codec
    codec = settings.mask_codec if needs_codec else None
    sources = [
        s for s in (settings.tokenizer, settings.model_init, settings.model_init_base, codec) if s
    ]
    machine, found = environment.look(sources)
    tokenizer = _load_tokenizer(settings, found)
    if needs_codec:
        found += _check_mask_codec(settings)
    read, problems, examples = check_data.look(settings, tokenizer, full=full)
    found += problems
    run, problems, model = check_settings.look(settings, tokenizer, examples=examples)
    found += problems
    if any(one.severity == "error" for one in found):
        memory, problems = check_memory.left_out("mend the errors first"), []
    else:
        memory, problems = check_memory.look(settings)
    found += problems
    parts = [read, run, memory, machine]
    record = check_example.choose(examples, example)
    if tokenizer is not None and model is not None and record is not None:
        number = model.num_image_tokens
        shown = check_example.look(
            settings, record, tokenizer, examples=examples, num_image_tokens=number
        )
        parts.insert(1, shown)
    return Report(tuple(parts), tuple(findings.sort(found)))


def to_text(report: Report) -> str:
    """Returns the report for a terminal, a summary at its end."""
    text = sections.to_text(report.parts, _as_rows(report))
    counts = (
        f"{n} {name}{'s' * (n != 1)}"
        for name in findings.SEVERITIES
        if (n := sum(one.severity == name for one in report.found))
    )
    return f"{text}\n{', '.join(counts) or 'nothing found'}"


def write(report: Report, folder: pathlib.Path, *, title: str) -> None:
    """Writes check.html and check.json into a folder."""
    found = _as_rows(report)
    atomic.write_text(folder / PAGE, sections.to_html(title, report.parts, found))
    atomic.write_json(folder / VALUES, sections.to_json(report.parts, found))
    say.info(f"report: {folder / PAGE}, {folder / VALUES}")


def _as_rows(report: Report) -> list[dict[str, Any]]:
    return [dataclasses.asdict(one) for one in report.found]


def _load_tokenizer(
    settings: schema.Settings, found: list[findings.Finding]
) -> tokens.Tokenizer | None:
    """Returns the tokenizer, fetched if need be; what keeps it away is added to `found`."""
    try:
        return families.load_tokenizer(settings.model.family, weights.fetch(settings.tokenizer))
    except (ValueError, OSError) as error:
        what = f"{error}\nwithout it these are left out: {check_settings.left_out(settings)}"
        remedy = (
            "set tokenizer to a file, or mend what the message says; for a model from scratch, "
            "import_data --train_tokenizer makes one of your texts"
        )
        found.append(findings.Finding("error", "no tokenizer", what, remedy, "tokenizer"))
        return None


def _check_mask_codec(settings: schema.Settings) -> list[findings.Finding]:
    """Returns why masks could not be drawn and scored."""
    try:
        mask_codecs.for_task(settings.mask_codec)
    except (ValueError, OSError) as error:
        remedy = " ".join(error.__notes__)
        return [findings.Finding("error", "no mask codec", str(error), remedy, "mask_codec")]
    return []
