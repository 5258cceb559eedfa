"""What a run would do: its length, what it trains, fetches and writes, its memory; what forbids it.

The same functions are called that training calls before it loads weights.
"""

import dataclasses
import pathlib

import jax

from paligemma_jax.assembly import assembly, datasets, model_functions, training_data, weights
from paligemma_jax.checks import findings
from paligemma_jax.data import tokens
from paligemma_jax.evaluation import evaluator
from paligemma_jax.files import atomic
from paligemma_jax.hub import addresses
from paligemma_jax.models import family
from paligemma_jax.params import released_models
from paligemma_jax.reports import run_log, sections
from paligemma_jax.runs import (
    auto_remat,
    early_stopping,
    embedding_cache,
    memory_plan,
    optimization,
    run_length,
    training_run,
)
from paligemma_jax.settings import schema
from paligemma_jax.training import optimizer
from paligemma_jax.wording import phrases

Finding = findings.Finding

# Bytes of a number in a published file, by a part of its name; float32 otherwise.
HALF = (".f16.", ".b16.", ".bf16.")
REMEDY = "correct it in the config file, or with --config.KEY=VALUE"
# Rows that the optimizer is checked with where no training data could be read.
ASSUMED_ROWS = 1_000_000
# What the model and its optimizer are checked with where the number of pieces is the tokenizer's,
# and there is none.
ASSUMED_PIECES = 2048


def look(
    settings: schema.Settings,
    tokenizer: tokens.Tokenizer | None,
    *,
    examples: datasets.Records,
) -> tuple[sections.Section, list[Finding], family.Model | None]:
    """Returns (what the run would do, what forbids it, the model's dimensions).

    Args:
      settings: of the run.
      tokenizer: of the run; None where it cannot be had: see `left_out`.
      examples: to train on.
    """
    all_problems: list[Finding] = []
    facts: list[tuple[str, str]] = []
    model, made = None, None
    vocab_size = tokenizer.vocab_size if tokenizer else settings.model.llm.vocab_size
    try:
        model = model_functions.describe(settings, vocab_size=vocab_size or ASSUMED_PIECES)
        model_functions.check_attention(settings, model, model_functions.make_compute(settings))
    except ValueError as error:
        all_problems.append(_refused("model", error))
    if model is not None:
        shapes = model.shapes()
        made, more, problems = _plan(settings, model, shapes, len(examples))
        all_problems += problems
        if vocab_size:
            count = sum(shape.size for shape in shapes.values())
            facts += [("model", f"{count:,} parameters, {settings.res} px"), *more]
            all_problems += _weights(settings, model) + _space(settings, model, shapes, made)
    all_problems += _examples(settings, model, made, examples)
    for name in settings.evals:
        all_problems += _evaluation(name, settings, tokenizer)
    all_problems += _on_the_way(settings)
    return sections.Section("run", "The run", (sections.Facts(tuple(facts)),)), all_problems, model


def left_out(settings: schema.Settings) -> str:
    """Returns what a check cannot look at without a tokenizer."""
    parts = ["token lengths", "one example", "how evaluations decode", "memory"]
    if not settings.model.llm.vocab_size:
        parts.append("the model's size (model.llm.vocab_size is the tokenizer's)")
    return ", ".join(parts)


def _plan(
    settings: schema.Settings,
    model: family.Model,
    shapes: dict[str, jax.ShapeDtypeStruct],
    data_size: int,
) -> tuple[optimizer.Optimizer | None, list[tuple[str, str]], list[Finding]]:
    """Returns (optimizer, facts, findings) on steps, rules and the mesh."""
    problems, facts = [], []
    batch_size = settings.input.batch_size
    try:
        mesh, parts = weights.make_mesh(settings), settings.accumulation_steps
        weights.check_divisible(batch_size, mesh, key="input.batch_size", parts=parts)
    except (ValueError, RuntimeError) as error:
        problems.append(_refused("mesh", error))
    size = data_size or ASSUMED_ROWS
    try:
        steps = run_length.total_steps(settings, data_size=size)
        made = optimization.make(settings, shapes, steps=steps, data_size=size)
        possible = model.kind.names.quantizable
        kinds = model_functions.choose_quantized(
            settings, shapes, possible, trainable=made.trainable, stored=None
        )
    except ValueError as error:
        return None, facts, [*problems, _refused("optimizer", error)]
    passes = f"{steps * batch_size / size:.1f} passes"
    length = f"{phrases.count(steps, 'steps')} of {batch_size}, {passes}"
    facts.append(("length", length if data_size else "not known: no training data could be read"))
    held = {"trained": list(made.trainable)}
    for kind in sorted(set(kinds.values())):
        held[f"held as {kind}"] = [name for name in kinds if kinds[name] == kind]
    for what, members in held.items():
        count = sum(shapes[name].size for name in members)
        arrays = phrases.count(len(members), "arrays")
        facts.append((what, f"{count:,} parameters in {arrays}"))
    return made, facts, problems


def _examples(
    settings: schema.Settings,
    model: family.Model | None,
    made: optimizer.Optimizer | None,
    examples: datasets.Records,
) -> list[Finding]:
    """Returns why training examples could not be changed, cut or embedded as the settings say."""
    key = "input.augment"
    try:
        if augmentation := training_data.make_augmenter(settings):
            augmentation.check(examples)
        key = "input.text_lens"
        datasets.text_lens(settings)
        key = "input.embedding_cache"
        if model is not None and made is not None:
            embedding_cache.check(
                settings,
                model,
                trainable=made.trainable,
                augmentation=augmentation,
                examples=examples,
            )
    except ValueError as error:
        return [_refused(key, error)]
    return []


def _evaluation(
    name: str, settings: schema.Settings, tokenizer: tokens.Tokenizer | None
) -> list[Finding]:
    """Returns what the settings of one evaluation contradict."""
    try:
        chosen = settings.evals[name]
        if tokenizer is not None:
            noise, size = datasets.make_noise(settings, tokenizer), tokenizer.vocab_size
            evaluator.check_decoding(chosen, noise)
            evaluator.constrain_answers(
                settings, chosen.constrain, tokenizer=tokenizer, vocab_size=size, noise=noise
            )
        run_length.steps_between_evaluations(chosen, data_size=1, batch_size=1, total_steps=1)
    except ValueError as error:
        return [_refused(f"evals.{name}", error)]
    return []


def _on_the_way(settings: schema.Settings) -> list[Finding]:
    """Returns why a run could not end where `stop_at` says, or be followed by its `trackers`."""
    problems = []
    for key, look in (
        ("stop_at", lambda: early_stopping.make(settings)),
        ("trackers", lambda: run_log.make(settings.trackers)),
    ):
        try:
            look()
        except ValueError as error:
            problems.append(_refused(key, error))
    return problems


def _weights(settings: schema.Settings, model: family.Model) -> list[Finding]:
    """Returns why the starting weights do not fit, where they are here already."""
    source, base = settings.model_init, settings.model_init_base
    try:
        weights.check_name(settings, model)
        if source is None or not all(addresses.find(s) for s in (source, base) if s):
            return []
        weights.check(settings, weights.find(source, base), model)
    except (ValueError, OSError) as error:
        return [_refused("model_init", error)]
    return []


def _space(
    settings: schema.Settings,
    model: family.Model,
    shapes: dict[str, jax.ShapeDtypeStruct],
    made: optimizer.Optimizer | None,
) -> list[Finding]:
    """Returns what would not fit on the disk: the download, and the weights that are written."""
    problems = []
    source = settings.model_init
    stored = stored_bytes(source)
    if source in released_models.FILES and not addresses.find(source):
        size = sum(shape.size for shape in shapes.values()) * stored
        for address in released_models.FILES[source].sources[:1]:
            problems += _too_large(size, addresses.cache_of(address), "the download")
    try:
        saved = training_run.what_is_saved(settings, model)
    except ValueError as error:
        return [*problems, _refused("save", error)]
    if made is not None:
        is_saved = shapes if saved == "all" else made.trainable
        size = sum(
            shapes[name].size * (4 if name in made.trainable else stored) for name in is_saved
        )
        problems += _too_large(size, pathlib.Path.cwd(), "final.npz")
    return problems


def stored_bytes(source: str | None) -> int:
    """Returns the bytes of a number in a file of weights, told by its name."""
    file = (
        released_models.FILES[source].sources[0]
        if source in released_models.FILES
        else source or ""
    )
    return 2 if any(part in file for part in HALF) else 4


def _too_large(size: float, folder: pathlib.Path, what: str) -> list[Finding]:
    free = atomic.free_bytes(folder)
    if size <= free:
        return []
    text = f"{what} takes about {phrases.size(size)}, and {folder} has {phrases.size(free)} free"
    remedy = "make room, or choose a folder on another disk (KAGGLEHUB_CACHE, HF_HOME, --workdir)"
    return [Finding("error", "disk too small", text, remedy, what)]


def _refused(subject: str, error: Exception) -> Finding:
    return Finding("error", "settings", str(error), REMEDY, subject)


def look_at_memory(settings: schema.Settings) -> tuple[sections.Section, list[Finding]]:
    """Returns (memory and work, whether it does not fit or the run refuses). Compiles the step.

    No weights are fetched: what is not here yet is planned in the type that its name tells. Called
    where nothing else is wrong: the run is planned as training plans it, evaluations included, so
    whatever this refuses is an error that no other look has seen.
    """
    try:
        built = assembly.assemble(without_download(settings))
        planned = training_run.plan(built)
    except (ValueError, OSError) as error:
        return memory_left_out("mend the errors first"), [_refused("run", error)]
    built, planned, needed = auto_remat.plan_run(built, planned)
    section = _memory_section(memory_plan.facts(needed))
    if needed.fits or needed.limit is None:
        return section, []
    changes = auto_remat.find_changes(built, planned, limit=needed.limit)
    remedy = "; or ".join(auto_remat.describe(*change) for change in changes)
    peak, limit = phrases.size(needed.memory.peak), phrases.size(needed.limit)
    what = f"a device needs {peak} and has {limit}"
    remedy = remedy or "use more devices, or a smaller model"
    return section, [Finding("error", "does not fit", what, remedy, "memory")]


def memory_left_out(reason: str) -> sections.Section:
    """Returns the section of a run that is not planned, with the reason why."""
    return _memory_section([("not planned", reason)])


def _memory_section(facts: list[tuple[str, str]]) -> sections.Section:
    return sections.Section("memory", "Memory and work", (sections.Facts(tuple(facts)),))


def without_download(settings: schema.Settings) -> schema.Settings:
    """Returns settings for random weights in the types of those that are not here yet."""
    sources = [source for source in (settings.model_init, settings.model_init_base) if source]
    if all(addresses.find(source) for source in sources):
        return settings
    frozen_dtype = settings.frozen_dtype
    if frozen_dtype is None and stored_bytes(settings.model_init) == 2:
        frozen_dtype = "bfloat16"
    return dataclasses.replace(
        settings, frozen_dtype=frozen_dtype, model_init=None, model_init_base=None, save="all"
    )
