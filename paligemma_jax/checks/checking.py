"""A check, assembled: the sections of its report and everything that was found."""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from paligemma_jax.assembly import assembly, model_functions, weights
from paligemma_jax.checks import (
    data_sets,
    devices,
    environment,
    findings,
    planned_run,
    shown_examples,
)
from paligemma_jax.console import say
from paligemma_jax.data import tokens
from paligemma_jax.files import atomic
from paligemma_jax.reports import sections
from paligemma_jax.settings import load, schema
from paligemma_jax.tasks import task
from paligemma_jax.wording import phrases

READY = "READY"  # nothing that must be mended
PAGE, VALUES = "check.html", "check.json"


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """What to check, how closely, and where the report goes.

    Attributes:
      config: a Python file; None: the machine alone is checked.
      out: folder for check.html and check.json; None: neither is written.
      full: whether every image is decoded.
      augment: PNG file that shows what augmentation does; None: none is drawn.
      example: line of the training data to explain; None: the first with an answer.
      device: a machine that is not here, to plan the run for, or "all"; data is not read then.
      config_overrides: "key=value", of the settings.
    """

    config: str | None = None
    out: str | None = None
    full: bool = False
    augment: str | None = None
    example: int | None = None
    device: str | None = None
    config_overrides: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
      parts: of the report, in order.
      findings: the worst first.
    """

    parts: tuple[sections.Section, ...]
    findings: tuple[findings.Finding, ...]

    @property
    def num_errors(self) -> int:
        """How many findings must be mended."""
        return sum(one.severity == "error" for one in self.findings)


def check(options: CheckOptions) -> Report:
    """Checks a config, or the machine alone; writes the report and the sheet that are asked for.

    Raises:
      ValueError: options that need a config, a folder that cannot be written, no such example.
    """
    if options.out:
        assembly.check_writable(pathlib.Path(options.out), option="--out")
    if options.config:
        settings = load.load(options.config, list(options.config_overrides))
        if options.device:
            _check_device_alone(options)
            section, problems = devices.look(settings, options.device)
            report = Report((section,), tuple(findings.sort(problems)))
        else:
            report = check_run(settings, example=options.example, full=options.full)
        if options.augment and not report.num_errors:
            shown_examples.write_augment_sheet(settings, options.augment)
    elif (
        options.config_overrides
        or options.full
        or options.example is not None
        or options.augment
        or options.device
    ):
        raise ValueError(
            "--full, --example, --augment, --device and --config.KEY belong to a --config FILE"
        )
    else:
        report = check_machine()
    if options.out:
        title = f"Check of {options.config or 'machine'}"
        write(report, pathlib.Path(options.out), title=title)
    return report


def _check_device_alone(options: CheckOptions) -> None:
    """Raises a ValueError for options that look at data, where a machine is what is looked at."""
    if options.full or options.example is not None or options.augment:
        raise ValueError(
            "--device looks at a machine, not at data: leave out --full, --example and --augment"
        )


def check_machine() -> Report:
    """Returns what there is to say without a config."""
    section, problems = environment.look([])
    return Report((section,), tuple(findings.sort(problems)))


def check_run(settings: schema.Settings, *, example: int | None, full: bool) -> Report:
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
    machine, all_problems = environment.look(sources)
    tokenizer = _load_tokenizer(settings, all_problems)
    if needs_codec:
        all_problems += _check_mask_codec(settings)
    read, problems, examples = data_sets.look(settings, tokenizer, full=full)
    all_problems += problems
    run, problems, model = planned_run.look(settings, tokenizer, examples=examples)
    all_problems += problems
    if any(one.severity == "error" for one in all_problems):
        memory, problems = planned_run.memory_left_out("mend the errors first"), []
    else:
        memory, problems = planned_run.look_at_memory(settings)
    all_problems += problems
    parts = [read, run, memory, machine]
    record = shown_examples.choose(examples, example)
    if tokenizer is not None and model is not None and record is not None:
        number = model.num_image_tokens
        shown = shown_examples.look(
            settings, record, tokenizer, examples=examples, num_image_tokens=number
        )
        parts.insert(1, shown)
    return Report(tuple(parts), tuple(findings.sort(all_problems)))


def to_text(report: Report) -> str:
    """Returns the report for a terminal; its last line is READY, or how many errors there are."""
    text = sections.to_text(report.parts, _as_rows(report))
    counts = collections.Counter(one.severity for one in report.findings)
    verdict = phrases.count(counts.pop("error"), "errors") if report.num_errors else READY
    others = [
        phrases.count(counts[name], f"{name}s") for name in findings.SEVERITIES if counts[name]
    ]
    return "\n".join([text, ", ".join(others) or "nothing to note", verdict])


def write(report: Report, folder: pathlib.Path, *, title: str) -> None:
    """Writes check.html and check.json into a folder."""
    rows = _as_rows(report)
    atomic.write_text(folder / PAGE, sections.to_html(title, report.parts, rows))
    atomic.write_json(folder / VALUES, sections.to_json(report.parts, rows))
    say.info(f"report: {folder / PAGE}, {folder / VALUES}")


def _as_rows(report: Report) -> list[dict[str, Any]]:
    return [dataclasses.asdict(one) for one in report.findings]


def _load_tokenizer(
    settings: schema.Settings, problems: list[findings.Finding]
) -> tokens.Tokenizer | None:
    """Returns the tokenizer, fetched if need be; what keeps it away is added to `problems`."""
    try:
        return model_functions.load_tokenizer(
            settings.model.family, weights.fetch(settings.tokenizer)
        )
    except (ValueError, OSError) as error:
        what = f"{error}\nwithout it these are left out: {planned_run.left_out(settings)}"
        remedy = (
            "set tokenizer to a file, or mend what the message says; for a model from scratch, "
            "import_data --train_tokenizer makes one of your texts"
        )
        problems.append(findings.Finding("error", "no tokenizer", what, remedy, "tokenizer"))
        return None


def _check_mask_codec(settings: schema.Settings) -> list[findings.Finding]:
    """Returns why masks could not be drawn and scored."""
    try:
        weights.codec_of_task(settings.mask_codec)
    except (ValueError, OSError) as error:
        remedy = " ".join(error.__notes__)
        return [findings.Finding("error", "no mask codec", str(error), remedy, "mask_codec")]
    return []
