"""Settings in, parts out: what every door starts from."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from paligemma_jax.assembly import datasets, model_functions, run_weights, weights
from paligemma_jax.checkpoints import partial_weights
from paligemma_jax.console import say
from paligemma_jax.data import tokens
from paligemma_jax.files import atomic, run_folder
from paligemma_jax.hub import addresses
from paligemma_jax.models import family
from paligemma_jax.params import names, released_models, sharding
from paligemma_jax.settings import load as load_settings
from paligemma_jax.settings import presets, schema
from paligemma_jax.tasks import task
from paligemma_jax.wording import phrases

NUM_MODELS = 4  # whose functions a process keeps
NAMED = (*released_models.MODELS, *released_models.SHIPPED)
MIN_PIECES = 2048  # of a vocabulary that has all <loc> and <seg> tokens


@dataclasses.dataclass(frozen=True)
class Assembly:
    """What training, evaluation and prediction share.

    Attributes:
      settings: of the run.
      tokenizer: of the run.
      task: reads and scores answers.
      model: dimensions.
      functions: the model on batches.
      mesh: the devices.
    """

    settings: schema.Settings
    tokenizer: tokens.Tokenizer
    task: task.Task
    model: family.Model
    functions: family.Functions
    mesh: Mesh


def assemble(settings: schema.Settings, *, weights_of: str | None = None) -> Assembly:
    """Builds everything that needs neither data nor weights.

    `weights_of`: the weights that will be read, if these are not `model_init`: a tokenizer beside
    them is theirs.
    """
    say.info(f"devices: {weights.describe_devices()}")
    hint = (
        "It may be a path; for a model from scratch import_data --train_tokenizer makes a small one"
    )
    source = choose_tokenizer(settings, weights_of or settings.model_init)
    with weights.named_by("tokenizer", source, hint):
        tokenizer = model_functions.load_tokenizer(settings.model.family, weights.fetch(source))
    model = model_functions.describe(settings, vocab_size=tokenizer.vocab_size)
    if model.vocab_size != tokenizer.vocab_size:
        say.warning(
            f"tokenizer: {tokenizer.vocab_size} pieces for {model.vocab_size} rows of the "
            f"embedding. Is it the tokenizer that the weights were trained with?"
        )
    compute = model_functions.make_compute(settings)
    model_functions.check_attention(settings, model, compute)
    if settings.compute_dtype == model_functions.AUTO:
        _, why = model_functions.choose_dtype(settings.compute_dtype)
        say.info(f"compute_dtype: {compute.dtype} ({why})")
    mesh = weights.make_mesh(settings)
    return Assembly(
        settings=settings,
        tokenizer=tokenizer,
        task=datasets.make_task(settings),
        model=model,
        functions=make_functions(settings, model, compute, mesh),
        mesh=mesh,
    )


def choose_tokenizer(settings: schema.Settings, source: str | None) -> str:
    """Returns the tokenizer of the settings; where they name none of their own, that of weights.

    It lies beside an npz file, or in the folder of a run, of transformers or of an adapter's base.
    """
    if settings.tokenizer != schema.Settings().tokenizer or source is None or "://" in source:
        return settings.tokenizer
    path = pathlib.Path(source).expanduser()
    if source in released_models.FILES or not path.exists():
        return settings.tokenizer
    folders = [path if path.is_dir() else path.parent]
    if (folders[0] / addresses.ADAPTER).exists():
        with contextlib.suppress(ValueError):  # said where the weights are read
            folders.append(pathlib.Path(addresses.base_of_adapter(folders[0])))
    for beside in (folder / run_folder.TOKENIZER for folder in folders):
        if beside.is_file():
            say.info(f"tokenizer: {beside}, beside the weights")
            return str(beside)
    return settings.tokenizer


def make_functions(
    settings: schema.Settings,
    model: family.Model,
    compute: family.Compute,
    mesh: Mesh,
) -> family.Functions:
    """Returns the model's functions; each of several devices keeps the cache of its own rows."""
    layout = None
    if mesh.size > 1:
        layout = sharding.make_layout(mesh, _sharding_rules(settings), model.shapes())
    device = mesh.devices.flat[0]
    cache_dtype, _ = model_functions.choose_dtype(settings.cache_dtype, device)
    compute = dataclasses.replace(compute, layout=layout)
    return _functions(model, compute, cache_dtype, is_padded=device.platform != "cpu")


# Programs are known by the functions that they were traced from, so the runs of a process whose
# models are equal have the same ones.
@family.made_once(maxsize=NUM_MODELS)
def _functions(
    model: family.Model, compute: family.Compute, cache_dtype: str, *, is_padded: bool
) -> family.Functions:
    sharding = None if compute.layout is None else compute.layout.rows
    made = model.functions(compute, cache_dtype=cache_dtype, cache_sharding=sharding)
    return model_functions.pad_sequences(made, model) if is_padded else made


def _sharding_rules(settings: schema.Settings) -> list[tuple[str, sharding.Tactic]]:
    return [(str(regex), tactic) for regex, tactic in settings.sharding_strategy]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Parameters before they are loaded.

    Attributes:
      stored: what they are read from; None: random ones are made.
      shapes: name -> shape and type in memory; a `quantize.Quantized` of these, if it will be one.
      where: name -> place, or places.
    """

    stored: partial_weights.Weights | None
    shapes: dict[str, Any]
    where: dict[str, Any]


def lay_out(
    built: Assembly, stored: partial_weights.Weights | None, trainable: tuple[str, ...] = ()
) -> Layout:
    """Returns what `load` will do, after making sure that stored weights fit the model.

    Args:
      built: what they are for.
      stored: from `find_weights`; None: random ones.
      trainable: names to be held in float32.
    """
    arrays = None
    if stored:
        weights.check(built.settings, stored, built.model)
        arrays = stored.arrays
    shapes = weights.expected_shapes(built.settings, built.model, trainable, arrays)
    possible = built.model.kind.names.quantizable
    kinds = model_functions.choose_quantized(
        built.settings, shapes, possible, trainable=trainable, stored=stored
    )
    shapes = model_functions.quantize_shapes(shapes, kinds, possible)
    rules = _sharding_rules(built.settings)
    return Layout(stored, shapes, sharding.shardings(shapes, rules, built.mesh))


def load(
    built: Assembly, layout: Layout, *, names: Collection[str] | None = None
) -> dict[str, jax.Array]:
    """Returns parameters on their devices, those of `names` or all."""
    chosen = {n: shape for n, shape in layout.shapes.items() if names is None or n in names}
    model, seed = built.model, built.settings.seed
    if layout.stored is None:
        # All of them are made: the program is then the same one, and so is every bit.
        made = weights.init_random(model, layout.shapes, layout.where, seed=seed)
        return {name: made[name] for name in chosen}
    params = weights.load(layout.stored, chosen, layout.where, model=model)
    if len(params) < len(chosen):
        say.info("LoRA: the weights have no factors: new ones, which change nothing yet")
        params |= weights.init_factors(model, layout.where, seed=seed)
    return params


def load_weights(built: Assembly, stored: partial_weights.Weights | None) -> dict[str, jax.Array]:
    """Returns all parameters on their devices, as `lay_out` and `load` do, to answer with.

    Raises:
      ValueError: weights that do not fit, or that lack the low-rank factors of the settings: it
        would be their base that answers.
    """
    layout = lay_out(built, stored)
    if stored and built.model.lora and not any(map(names.is_factor, stored.arrays)):
        raise ValueError(
            f"{stored.path} has none of the LoRA factors that lora.targets='"
            f"{built.settings.lora.targets}' names: it is a model that they are not trained into. "
            f"To use it as it is, add --config.lora.targets=None; else give the run's own weights"
        )
    return load(built, layout)


def open_run(
    run: str | None, config: str | None, overrides: list[str], *, weights_alone: str | None = None
) -> tuple[schema.Settings, str | None]:
    """Returns (settings, weights) of a finished run's folder, of a config file, or of weights.

    A run brings its own tokenizer and final weights, and these are in the types that they should
    have: `frozen_dtype` would change trained ones too. A config names a tokenizer and
    `model_init`. `weights_alone`, where there is neither, are of a released model or of a run.
    """
    if run is None and config is None and weights_alone and weights_alone != "none":
        if (pathlib.Path(weights_alone) / run_folder.CONFIG).exists():
            return open_run(weights_alone, None, overrides)
        return _settings_of_weights(weights_alone, overrides), weights_alone
    if (run is None) == (config is None):
        raise ValueError("give one of --run FOLDER and --config FILE, or --weights alone")
    if config is not None:
        loaded = load_settings.load(config, overrides)
        return loaded, loaded.model_init
    folder = pathlib.Path(str(run))
    own = {"tokenizer": run_folder.TOKENIZER, "mask_codec": run_folder.MASK_CODEC}
    kept = [f"{key}={folder / file}" for key, file in own.items() if (folder / file).exists()]
    overrides = ["frozen_dtype=None", *kept, *overrides]
    loaded = load_settings.from_json(folder / run_folder.CONFIG, overrides)
    try:
        _check_names(loaded)
    except ValueError as error:
        raise ValueError(f"{folder / run_folder.CONFIG}: {error}") from error
    return loaded, str(folder / run_folder.FINAL)


def _settings_of_weights(source: str, overrides: list[str]) -> schema.Settings:
    """Returns settings to ask weights as they are: those of the released model that they are of.

    Raises:
      ValueError: of no released model. FileNotFoundError: no such name or file.
    """
    if entry := released_models.FILES.get(source):
        name, res = entry.model, entry.res
    elif source in released_models.SHIPPED:
        name, res = source, released_models.SHIPPED[source].resolutions[0]
    else:
        stored = weights.find(source)
        name, res = _recognize(stored)
        if name is None:
            raise ValueError(
                f"{source}: weights of none of the released models ({', '.join(NAMED)}), so a "
                f"config must tell their dimensions: give --config FILE too, or --run FOLDER"
            )
    config = presets.finetune(name, res=res, text_len=released_models.TEXT_LENS.get(res, 128))
    config.model_init = source
    load_settings.override(config, overrides)
    chosen = load_settings.typed(config)
    say.info(f"settings: those of {name} at {chosen.res} px (--config.KEY=VALUE changes them)")
    return chosen


def _recognize(stored: partial_weights.Weights) -> tuple[str | None, int]:
    """Returns (the released model that weights are of, side of its images)."""
    kind = model_functions.choose_family(schema.ModelSettings().family)
    shapes = {n: x.shape for n, x in stored.arrays.items() if not names.is_factor(n)}
    name = kind.recognize(shapes)
    if name is None:
        return None, 0
    patches = next(shape for n, shape in shapes.items() if n.endswith("pos_embedding"))
    return name, math.isqrt(patches[-2]) * released_models.PATCH_SIZE


def _check_names(settings: schema.Settings) -> None:
    """Raises a ValueError for a task, a family or a policy that nobody knows, and wrong sizes."""
    task.look_up(settings.task, task.Options(convention=settings.coordinates))
    model_functions.make_compute(settings)
    model_functions.describe(settings, vocab_size=settings.model.llm.vocab_size or MIN_PIECES)


def find_weights(
    settings: schema.Settings, source: str | None, base: str | None = None
) -> partial_weights.Weights | None:
    """Returns the weights of a name, an address or a path; None, for random ones, gives None.

    Args:
      settings: its `model_init_base` goes with its `model_init`.
      source: what to find.
      base: of weights that are trained arrays only; None: the one that they name.
    """
    if source is None:
        if base:
            raise ValueError(f"the base {base} is given, but weights are random: they need none")
        return None
    if run_weights.is_checkpoint(source):
        if source == settings.model_init:
            raise ValueError(
                f"model_init={source}: a run begins with a file; convert RUN FILE.npz --checkpoint "
                f"{pathlib.Path(source).name} writes it"
            )
        return run_weights.find(pathlib.Path(source), base)
    if source != settings.model_init:
        return weights.find(source, base)
    hint = "It may be a published name, an address or a path of an .npz"
    with weights.named_by("model_init", source, hint):
        return weights.find(source, base or settings.model_init_base)


def choose_weights(
    asked: str | None, default: str | None, *, chosen: str | None = None
) -> str | None:
    """Returns the weights that a door uses.

    Args:
      asked: --weights, where "none" stands for random ones.
      default: from `open_run`.
      chosen: --checkpoint, of a run; see `checkpoint.choose`.

    Raises:
      ValueError: two of these; no such checkpoint; or the default is a run's final weights, and
        there are none yet.
    """
    path = pathlib.Path(default or "")
    if chosen is not None and (asked is not None or path.name != run_folder.FINAL):
        raise ValueError("--checkpoint is of a run: give --run FOLDER, and no --weights")
    if chosen is not None:
        return str(run_weights.choose(path.parent, chosen))
    if asked is not None:
        return None if asked == "none" else asked
    if path.name == run_folder.FINAL and not path.exists():
        raise ValueError(
            f"{path}: not found, so the run did not end. The command that began it goes on with "
            f"it; or name others: --checkpoint=last, or --weights=FILE"
        )
    return default


def check_writable(folder: pathlib.Path, *, option: str) -> None:
    """Raises a ValueError if nothing can be written into a folder that is there or to be made."""
    nearest = atomic.nearest_existing(folder)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        problem = "may not be written to" if nearest.is_dir() else "is a file"
        raise ValueError(f"{option} {folder}: {nearest} {problem}; choose another folder")


def write_run_files(built: Assembly, workdir: pathlib.Path) -> None:
    """Writes what makes a run's folder complete without the files it was started from."""
    if jax.process_index() == 0:
        kept = json.dumps(load_settings.to_keep(built.settings, workdir), indent=2)
        atomic.write_text(workdir / run_folder.CONFIG, kept + "\n")
        atomic.write_bytes(workdir / run_folder.TOKENIZER, built.tokenizer.model)
        if built.task.needs_codec:
            codec = weights.load_codec(built.settings.mask_codec)
            atomic.write_bytes(workdir / run_folder.MASK_CODEC, codec.path.read_bytes())


def parameter_counts(params: Mapping[str, jax.Array]) -> str:
    """Returns "2,923,335,408 parameters, 5.45 GiB"."""
    count = sum(array.size for array in params.values())
    return f"{count:,} parameters, {phrases.size(sum(a.nbytes for a in params.values()))}"
