"""The weights to convert: what a path holds, and which model they belong to."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from paligemma_jax.assembly import model_functions, run_weights
from paligemma_jax.assembly import weights as weights_of
from paligemma_jax.checkpoints import (
    config_files,
    huggingface,
    huggingface_config,
    partial_weights,
    peft,
)
from paligemma_jax.console import say
from paligemma_jax.data import jsonl
from paligemma_jax.files import large_files, run_folder
from paligemma_jax.models import family
from paligemma_jax.models.paligemma import as_family, paligemma, variants
from paligemma_jax.params import names
from paligemma_jax.settings import load

EXPECTED = "expected an .npz file, a run's folder (final.npz), or one with *.safetensors"


@dataclasses.dataclass(frozen=True)
class WeightsSource:
    """The weights that a path holds.

    Attributes:
      path: an npz file, or the folder that transformers reads.
      weights: of the npz file, with those of its base; None: it is a folder for transformers. Of an
        adapter of PEFT, the base.
      config: a run's config.json, if the weights are a run's.
      tokenizer: the sentencepiece file beside the weights, if there is one.
    """

    path: pathlib.Path
    weights: partial_weights.Weights | partial_weights.Merged | None
    config: pathlib.Path | None = None
    tokenizer: pathlib.Path | None = None

    @property
    def is_peft(self) -> bool:
        """Whether the weights are an adapter of PEFT."""
        return peft.is_folder(self.path)


def open_source(
    source: str, *, base: pathlib.Path | None = None, chosen: str | None = None
) -> WeightsSource:
    """Returns the weights that a file or folder holds.

    Args:
      source: path of an npz file, a run's folder or one with safetensors.
      base: of weights that are trained arrays only; None: the one that they name.
      chosen: a checkpoint of the run's folder, as in `checkpoint.choose`; None: its final.npz.

    Raises:
      ValueError: no such path, or a path that holds no weights of these formats.
    """
    path, suggestion = pathlib.Path(source), jsonl.suggest_import(source)
    if chosen is not None:
        return _open_checkpoint(path, chosen, base)
    path, *_ = [path] if path.exists() else large_files.find_parts(path)
    if path.is_file():
        if not re.search(r"\.npz(\.part\w+)?$", path.name):
            raise ValueError(f"{path}: {EXPECTED}. A data set? {suggestion}")
        return WeightsSource(path, _find(path, base), tokenizer=_tokenizer(path.parent))
    if not path.is_dir():
        raise ValueError(
            f"{path}: no such file or folder; nothing is downloaded here. "
            f"{EXPECTED}. A data set? {suggestion}"
        )
    return _open_folder(path, base, suggestion)


def _find(path: pathlib.Path, base: pathlib.Path | None) -> partial_weights.Weights:
    """Returns the weights of an npz file, and says which base completes them."""
    if base and base.is_dir():
        base, _ = weights_of.find_npz(str(base))
    weights = partial_weights.find(path, base=base)
    if weights.base and not base:
        say.info(f"{path}: what was not trained comes from its base {weights.base.path}")
    return weights


def _open_folder(path: pathlib.Path, base: pathlib.Path | None, suggestion: str) -> WeightsSource:
    config, final = path / run_folder.CONFIG, path / run_folder.FINAL
    if final.exists():
        return WeightsSource(
            final,
            _find(final, base),
            config=config if config.exists() else None,
            tokenizer=_tokenizer(path),
        )
    if peft.is_folder(path):
        if base is None:
            raise ValueError(f"{path}: an adapter of PEFT: give its model's npz file as --base")
        return WeightsSource(path, _find(base, None))
    if any(path.glob("*.safetensors")):
        if base:
            raise ValueError(f"--base {base}: {path} is a Hugging Face folder, which is whole")
        return WeightsSource(path, None, tokenizer=_tokenizer(path))
    held = ", ".join(sorted(os.listdir(path))[:8]) or "nothing"
    raise ValueError(f"{path}: {EXPECTED}; it holds {held}. A data set? {suggestion}")


def _open_checkpoint(run: pathlib.Path, chosen: str, base: pathlib.Path | None) -> WeightsSource:
    path = run_weights.choose(run, chosen)
    return WeightsSource(
        path,
        run_weights.find(path, os.fspath(base) if base else None),
        config=run / run_folder.CONFIG,
        tokenizer=_tokenizer(run),
    )


def _tokenizer(folder: pathlib.Path) -> pathlib.Path | None:
    path = folder / run_folder.TOKENIZER
    return path if path.exists() else None


def infer_model(
    source: WeightsSource,
    *,
    variant: str | None = None,
    config: str | None = None,
    final_logits_softcap: float | None = None,
) -> variants.PaliGemma:
    """Returns the model that weights belong to.

    Dimensions come from the arrays. What these cannot tell, soft-caps and the query scale, comes
    from the first of: `variant`, `config`, the file's metadata (of a Hugging Face folder:
    config.json), the run's config.json.

    Args:
      source: from `open_source`.
      variant: a released model ("paligemma2-3b"), or towers of the table ("So400m/14,gemma2_2b");
        its final soft-cap is 0, as in every transfer of big_vision.
      config: of the training, as `--config` takes it.
      final_logits_softcap: instead of that one.

    Raises:
      ValueError: no such model, arrays that are missing or of another shape, or no source for what
        the arrays cannot tell.
    """
    if source.weights is None:
        if variant or config:
            raise ValueError(
                f"{source.path}: config.json describes the model: leave out --variant, --config"
            )
        path = source.path / run_folder.CONFIG
        stored = config_files.read(path, "it describes the model of the weights")
        model = huggingface_config.model(stored, where=str(path))
        if not huggingface_config.is_tied(stored):
            huggingface.check_head(source.path)
    else:
        model = _infer_named(source, source.weights, variant, config)
        lora = partial_weights.describe_lora(source.weights)
        model = dataclasses.replace(model, lora=lora)
        names.check_shapes(source.weights.arrays, paligemma.shapes(model), where=str(source.path))
    if final_logits_softcap is None:
        return model
    llm = dataclasses.replace(model.llm, final_logits_softcap=final_logits_softcap)
    return dataclasses.replace(model, llm=llm)


def _infer_named(
    source: WeightsSource,
    stored: partial_weights.Weights | partial_weights.Merged,
    variant: str | None,
    config: str | None,
) -> variants.PaliGemma:
    """As `_infer_from_npz`; an error names the file, whose metadata may say anything."""
    where = str(source.path)
    try:
        return _infer_from_npz(source, stored, variant, config)
    except (TypeError, ValueError) as error:
        if where in str(error):
            raise
        named = ValueError(f"{where}: {error}. Give --variant or --config if the file is right")
        for note in getattr(error, "__notes__", ()):
            named.add_note(note)
        raise named from error


def _infer_from_npz(
    source: WeightsSource,
    stored: partial_weights.Weights | partial_weights.Merged,
    variant: str | None,
    config: str | None,
) -> variants.PaliGemma:
    shapes = {name: array.shape for name, array in stored.arrays.items()}
    if variant and config:
        raise ValueError("give one of --variant and --config, not both")
    if variant:
        return _from_table(shapes, variant)
    if not config and set(as_family.HIDDEN) <= set(stored.metadata):
        return variants.measure(shapes, {key: stored.metadata[key] for key in as_family.HIDDEN})
    rows = shapes.get(as_family.NAMES.embedding, (variants.VOCAB_SIZE,))[0]
    if config:
        return _dims(model_functions.describe(load.load(config), vocab_size=rows))
    if source.config:
        return _dims(model_functions.describe(load.from_json(source.config), vocab_size=rows))
    return _infer_from_shapes(shapes, source.path)


def _dims(model: family.Model) -> variants.PaliGemma:
    if not isinstance(model, as_family.Model):
        raise ValueError(
            f"the weights are of the family '{model.kind.name}', and no other format of these is "
            f"known; an npz file they are already"
        )
    return model.dims


def _from_table(shapes: Mapping[str, Sequence[int]], variant: str) -> variants.PaliGemma:
    towers = variants.RELEASED.get(variant) or tuple(variant.split(","))
    if len(towers) != 2:
        raise ValueError(
            f"--variant {variant}: expected one of {list(variants.RELEASED)}, or a vision tower "
            f"and a language model, as 'So400m/14,gemma2_2b'"
        )
    _, model = variants.infer(shapes, {variant: (towers[0], towers[1])})
    # big_vision trains without the final soft-cap, whatever the table of Gemma says.
    llm = dataclasses.replace(model.llm, final_logits_softcap=0.0)
    return dataclasses.replace(model, llm=llm)


def _infer_from_shapes(
    shapes: Mapping[str, Sequence[int]], path: pathlib.Path
) -> variants.PaliGemma:
    """Returns a released model of which arrays tell everything: Gemma 1 has nothing hidden."""
    try:
        name, model = variants.infer(shapes)
    except ValueError as error:
        error.add_note("--config FILE or --variant VIT,GEMMA says which other model it is")
        raise
    if model.llm.attn_logits_softcap or model.llm.final_logits_softcap:
        raise ValueError(
            f"{path}: these are the dimensions of {name}, but arrays cannot tell soft-caps and "
            f"query scale, and the file's metadata does not. Give --variant {name} (and "
            f"--final_logits_softcap, 0 unless it was trained with one), or --config FILE"
        )
    return model
