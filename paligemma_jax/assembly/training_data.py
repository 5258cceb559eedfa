"""What a run trains on: records of one source or several, checked, and how they are changed."""

import dataclasses
import json
import pathlib

import jax

from paligemma_jax.assembly import datasets
from paligemma_jax.console import say
from paligemma_jax.data import augment, images, index_sampler, noise_boxes, pipeline, tokens
from paligemma_jax.files import atomic, run_folder
from paligemma_jax.settings import keys, schema
from paligemma_jax.tasks import box_text, task, text_metrics
from paligemma_jax.wording import phrases

EPOCHS = "epochs/"  # before the name of a source, in metrics


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a run is asked.

    Attributes:
      prompt: that any image can be given; None: each has a question of its own.
      classes: the labels that it knows, sorted; () where answers have none.
    """

    prompt: str | None = None
    classes: tuple[str, ...] = ()


NOTHING_ASKED = Asked()


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Everything that `pipeline.train_batches` reads.

    Attributes:
      records: of all sources, one after the other.
      sources: what they are from.
      augmentation: changes them; None: nothing does.
      noise: fills their answers up; None: nothing does.
      asked: what they ask.
    """

    records: datasets.Records
    sources: tuple[index_sampler.Source, ...]
    augmentation: augment.Augmenter | None
    noise: noise_boxes.NoiseBoxes | None
    asked: Asked = NOTHING_ASKED

    def describe(self, *, steps: int, batch_size: int) -> str:
        """Returns how many examples there are, and how often a run of so many steps reads them."""
        seen = index_sampler.passes(self.sources, steps * batch_size)
        lines = [
            f"training data: {phrases.count(len(self.records), 'examples')}; "
            f"{phrases.count(steps, 'steps')} of {batch_size}, "
            f"{steps * batch_size / len(self.records):.1f} passes"
        ]
        if len(self.sources) > 1:
            lines += [
                f"  {source.name}: {phrases.count(source.num_records, 'examples')}, "
                f"weight {source.weight:g}, "
                f"{seen[source.name]:.1f} passes"
                for source in self.sources
            ]
        return "\n".join(lines)

    def epochs(self, num_examples: int) -> dict[str, float]:
        """Returns {"epochs/NAME": passes over each source so far}; of a single source nothing."""
        seen = index_sampler.passes(self.sources, num_examples) if len(self.sources) > 1 else {}
        return {f"{EPOCHS}{name}": passes for name, passes in seen.items()}


def read(settings: schema.Settings, tokenizer: tokens.Tokenizer) -> TrainingData:
    """Reads and checks all records, and says how long they are and how they are changed."""
    records, sources = read_sources(settings)
    learnt = _with_every_answer(records) if settings.input.draw_answers else records
    datasets.check_lengths(settings, learnt, tokenizer, name="training data")
    pipeline.check_records(records, datasets.spec(settings))
    augmentation = make_augmenter(settings)
    if augmentation:
        augmentation.check(records)
        say.info(f"augmentation: {describe_augmentation(settings)}")
    noise = datasets.make_noise(settings, tokenizer, records)
    asked = find_asked(settings.task, records)
    return TrainingData(records, sources, augmentation, noise, asked)


def _with_every_answer(records: datasets.Records) -> datasets.Records:
    """Returns a record for each answer that may be drawn."""
    return [
        dataclasses.replace(record, suffix=answer)
        for record in records
        for answer in dict.fromkeys(text_metrics.find_references(record.suffix, record.extra))
    ]


def find_asked(task_name: str, examples: datasets.Records) -> Asked:
    """Returns what examples of a task ask.

    Prompts that differ, as "detect cat" and "detect dog", are one for all of their classes, those
    of a task whose prompts name classes; other prompts that differ are none.
    """
    asked = task.look_up(task_name)
    prompts = list(dict.fromkeys(record.prefix for record in examples))
    alone = prompts[0] if len(prompts) == 1 else None
    if asked.grammar is None:
        return Asked(alone)
    verb = asked.grammar.verb
    named = {label for p in prompts for label in box_text.prefix_classes(p, verb=verb)}
    answers = [] if named else [record.suffix or "" for record in examples]
    classes = named or {label for text in answers for label in asked.labels(asked.parse(text))}
    together = f"{verb} {' ; '.join(sorted(classes))}" if classes else None
    return Asked(alone or together, tuple(sorted(classes)))


def write_asked(asked: Asked, workdir: pathlib.Path) -> None:
    """Writes what a run is asked into its folder; the first process does, for all."""
    if jax.process_index() == 0:
        atomic.write_json(workdir / run_folder.PROMPT, dataclasses.asdict(asked))


def read_asked(run: pathlib.Path) -> Asked:
    """Returns what a run was asked; nothing if it is older than the file that says so."""
    try:
        values = json.loads((run / run_folder.PROMPT).read_text())
        return Asked(values["prompt"], tuple(values["classes"]))
    except FileNotFoundError:
        return NOTHING_ASKED
    except (ValueError, KeyError, TypeError) as error:
        path = run / run_folder.PROMPT
        raise ValueError(f"{path}: not what a run writes ({error!r}): remove it") from error


def warn_of_task(settings: schema.Settings, examples: datasets.Records) -> None:
    """Warns if nearly all answers look like those of another task, though this one trains on them.

    All sources count together: a mixture may well have a source of each task.
    """
    if other := task.find_mismatch(settings.task, [record.suffix or "" for record in examples]):
        say.warning(f"training data: {other.what}: {other.remedy}")


def read_sources(
    settings: schema.Settings,
) -> tuple[datasets.Records, tuple[index_sampler.Source, ...]]:
    """Returns the records of all sources, one after the other, and the sources."""
    parts = _read_mixture(settings) if settings.input.mixture else {"data": _read_single(settings)}
    records = [record for source_records, _ in parts.values() for record in source_records]
    sources = tuple(
        index_sampler.Source(name, len(source_records), weight)
        for name, (source_records, weight) in parts.items()
    )
    return records, sources


def _read_single(settings: schema.Settings) -> tuple[datasets.Records, float]:
    data = settings.input.data
    records = datasets.read_records(
        settings, data.fname, key="input.data.fname", image_dir=data.image_dir
    )
    return records[: settings.input.num_examples], 1.0


def _read_mixture(settings: schema.Settings) -> dict[str, tuple[datasets.Records, float]]:
    """Returns {name: (records, weight)} of every source."""
    parts = {}
    for name, source in settings.input.mixture.items():
        key = f"input.mixture.{name}"
        if not source.weight > 0:
            raise ValueError(f"config: {key}.weight={source.weight}: expected a number above 0")
        records = datasets.read_records(
            settings,
            source.fname,
            key=f"{key}.fname",
            image_dir=source.image_dir,
            fields=source.fields,
            prefix_template=source.prefix_template,
        )
        parts[name] = records[: settings.input.num_examples], source.weight
    return parts


def make_augmenter(settings: schema.Settings) -> augment.Augmenter | None:
    """Returns what changes training examples, or None where nothing does.

    Raises:
      ValueError: a setting out of its range.
    """
    try:
        chosen = augment.Augmentation(**dataclasses.asdict(settings.input.augment))
    except ValueError as error:
        raise ValueError(f"config: input.{error}") from error
    if not keys.changed(settings.input.augment).keys() - {"min_visible"}:
        return None
    resampling = datasets.resampling(settings)
    if chosen.has_windows and resampling != images.BILINEAR:
        raise ValueError(
            f"config: input.augment: crop, aspect and scale resize images bilinearly with "
            f"antialiasing, and models of the family '{settings.model.family}' see them resized by "
            f"{resampling}: leave these out; flips, colours and jpeg_quality work"
        )
    convention = settings.coordinates if task.look_up(settings.task).moves_boxes else None
    return augment.Augmenter(chosen, settings.seed, convention)


def describe_augmentation(settings: schema.Settings) -> str:
    """Returns what is not as by default, "flip_lr 0.5, crop 0.6"."""
    return ", ".join(f"{k} {x}" for k, x in keys.changed(settings.input.augment).items())
