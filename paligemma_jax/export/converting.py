"""Weights from one format to another: opens SRC, writes DST, and compares the two if asked."""

import dataclasses
import pathlib
import time

from paligemma_jax.checkpoints import (
    huggingface_names,
    moondream_names,
    partial_weights,
    tensor_files,
)
from paligemma_jax.console import say
from paligemma_jax.export import moondream_folder, parity, weights_source, writers
from paligemma_jax.models.paligemma import variants
from paligemma_jax.params import names
from paligemma_jax.wording import phrases

DTYPES = ("float32", "float16", "bfloat16")
# What openpi's loader of PaliGemma weights expects.
OPENPI_PREFIX, OPENPI_DTYPE = "params/", "float32"
NO_TOKENIZER = "none"


@dataclasses.dataclass(frozen=True)
class ConvertOptions:
    """What to convert, and how.

    Attributes:
      source: path of an npz file, a run's folder, or a folder with safetensors.
      target: an npz file (by its ending), or a folder for transformers or PEFT.
      overwrite: whether `target` may be replaced.
      checkpoint: of a run's folder: "best", "last" or a step; None: its final.npz.
      base: npz file that completes weights which are trained arrays only, or an adapter.
      merge: whether LoRA factors are added into the weights.
      dtype: one of `DTYPES` for all arrays; None: as they are.
      variant, config, final_logits_softcap: see `weights_source.infer_model`.
      tokenizer: a sentencepiece file; None: the one beside SRC; "none": no tokenizer.
      openpi: whether the npz file is written as openpi reads it.
      verify: whether the logits of both sides are compared.
    """

    source: str
    target: pathlib.Path
    overwrite: bool = False
    checkpoint: str | None = None
    base: pathlib.Path | None = None
    merge: bool = False
    dtype: str | None = None
    variant: str | None = None
    config: str | None = None
    final_logits_softcap: float | None = None
    tokenizer: str | None = None
    openpi: bool = False
    verify: bool = False


def convert(options: ConvertOptions) -> dict[str, float]:
    """Converts weights; returns the number of arrays, bytes, seconds, and what `verify` measured.

    Raises:
      ValueError: a SRC that is not what was expected, a DST that may not be written, options that
        do not go together, or logits that differ by more than rounding.
    """
    start = time.monotonic()
    source = weights_source.open_source(
        options.source, base=options.base, chosen=options.checkpoint
    )
    if options.merge:
        source = _merge(source)
    if options.verify:
        parity.check_installed()
    _check_target(options.target, source, overwrite=options.overwrite)
    write = _to_npz if options.target.suffix == ".npz" else _to_folder
    if _is_moondream(source):
        model, written = None, _convert_moondream(source, options)
    else:
        model, written = write(source, options)
    say.info(
        f"{phrases.count(written.num_arrays, 'arrays')}, "
        f"{phrases.size(written.num_bytes)} in {time.monotonic() - start:.1f} s: "
        f"{source.path} -> {options.target}"
    )
    result = {"arrays": written.num_arrays, "bytes": written.num_bytes}
    if options.verify:
        assert model is not None, "writers describe the model where it is needed"
        result |= _verify(source, options.target, model)
    return result | {"seconds": time.monotonic() - start}


def _check_target(
    target: pathlib.Path, source: weights_source.WeightsSource, *, overwrite: bool
) -> None:
    """Raises a ValueError if DST may not be written: it is SRC, or exists and is to be kept."""
    read = source.weights.files if source.weights else [source.path]
    taken = {path.resolve() for path in (*read, source.path.parent)}
    if target.exists() and target.resolve() in taken:
        raise ValueError(f"DST {target} is where SRC is: choose another place")
    if target.exists() and (target.suffix == ".npz") != target.is_file():
        raise ValueError(f"DST {target} is a {'file' if target.is_file() else 'folder'} already")
    is_taken = target.is_file() or (target.is_dir() and any(target.iterdir()))
    if is_taken and not overwrite:
        raise ValueError(f"DST {target} is there already; --overwrite replaces it")


def _merge(source: weights_source.WeightsSource) -> weights_source.WeightsSource:
    """Returns the weights of SRC with their LoRA factors added in."""
    if not isinstance(source.weights, partial_weights.Weights) or source.is_peft:
        raise ValueError(f"--merge: {source.path} must be an npz file or a run: convert it first")
    pieces = moondream_names.pieces if _is_moondream(source) else huggingface_names.pieces
    return dataclasses.replace(source, weights=partial_weights.merge(source.weights, pieces))


def _is_moondream(source: weights_source.WeightsSource) -> bool:
    """Whether weights are those of a Moondream2, ours or its authors'."""
    if source.weights is not None:
        return moondream_folder.is_npz(source.weights)
    return moondream_folder.is_folder(source.path)


def _convert_moondream(
    source: weights_source.WeightsSource, options: ConvertOptions
) -> writers.Written:
    """Writes an npz file of the authors' folder or of an adapter, or either of an npz file."""
    for name in ("config", "final_logits_softcap", "openpi", "verify"):
        if getattr(options, name) not in (None, False):
            raise ValueError(f"--{name}: there is no such thing for a Moondream2; leave it out")
    is_to_npz, target = options.target.suffix == ".npz", options.target
    if (source.weights is None or source.is_peft) and not is_to_npz:
        raise ValueError(f"DST {target}: expected an .npz file, as SRC is a folder")
    if source.weights is None:
        given = {"variant": options.variant, "dtype": options.dtype}
        return writers.Written(*moondream_folder.read(source.path, target, **given))
    if options.variant:
        raise ValueError("--variant is for the authors' folder: an npz file says it itself")
    has_factors = any(map(names.is_factor, source.weights.arrays))
    if isinstance(source.weights, partial_weights.Weights) and source.is_peft:
        _check_adapter_options(options)
        return writers.Written(*moondream_folder.from_peft(source.path, target, source.weights))
    if is_to_npz:
        return writers.rewrite(source.weights, target, dtype=options.dtype, prefix="")
    if isinstance(source.weights, partial_weights.Weights) and has_factors:
        _check_adapter_options(options)
        return writers.Written(*moondream_folder.to_peft(source.weights, target))
    _check_types(source, options)
    tokenizer = pathlib.Path(options.tokenizer) if options.tokenizer else source.tokenizer
    if options.tokenizer == NO_TOKENIZER:
        tokenizer = None
    given = {"dtype": options.dtype, "tokenizer": tokenizer}
    return writers.Written(*moondream_folder.write(source.weights, target, **given))


def _to_npz(
    source: weights_source.WeightsSource, options: ConvertOptions
) -> tuple[variants.PaliGemma | None, writers.Written]:
    """Writes an npz file, and returns the model where it was needed."""
    prefix = OPENPI_PREFIX if options.openpi else ""
    dtype = OPENPI_DTYPE if options.openpi else options.dtype
    if source.weights is None:
        model = _infer_model(source, options)
        written = writers.from_huggingface(
            source.path, options.target, model, dtype=dtype, prefix=prefix
        )
        return model, written
    if source.is_peft and isinstance(source.weights, partial_weights.Weights):
        _check_adapter_options(options)
        model = _infer_model(source, options)
        return model, writers.from_peft(source.path, options.target, source.weights, model)
    if options.openpi and partial_weights.describe_lora(source.weights):
        raise ValueError(f"{source.path}: openpi cannot read LoRA factors: add --merge")
    if options.verify:
        raise ValueError("--verify compares with transformers: SRC or DST must be such a folder")
    return None, writers.rewrite(source.weights, options.target, dtype=dtype, prefix=prefix)


def _to_folder(
    source: weights_source.WeightsSource, options: ConvertOptions
) -> tuple[variants.PaliGemma, writers.Written]:
    """Writes a folder for transformers, or for PEFT where the weights have LoRA factors."""
    if source.weights is None or source.is_peft:
        raise ValueError(
            f"SRC {source.path} and DST {options.target} are both Hugging Face folders: convert "
            f"SRC to an npz file, and that to DST"
        )
    if isinstance(source.weights, partial_weights.Weights) and partial_weights.describe_lora(
        source.weights
    ):
        _check_adapter_options(options)
        model = _infer_model(source, options)
        return model, writers.to_peft(source.weights, options.target, model)
    _check_types(source, options)
    tokenizer = pathlib.Path(options.tokenizer) if options.tokenizer else source.tokenizer
    if options.tokenizer == NO_TOKENIZER or tokenizer is None:
        tokenizer = None
        say.warning(
            "no tokenizer: the model will load, its processor will not. --tokenizer FILE adds it"
        )
    model = _infer_model(source, options)
    return model, writers.to_huggingface(
        source.weights, options.target, model, dtype=options.dtype, tokenizer=tokenizer
    )


def _check_types(source: weights_source.WeightsSource, options: ConvertOptions) -> None:
    """Raises a ValueError for arrays of a type that is none of a model for transformers."""
    assert source.weights is not None
    for name, array in source.weights.arrays.items():
        if options.dtype is None and (kind := str(array.dtype)) not in tensor_files.CODES:
            raise ValueError(
                f"{source.path}: '{name}' is {kind}, expected one of {list(tensor_files.CODES)}: "
                f"give --dtype, which all arrays are written in"
            )


def _check_adapter_options(options: ConvertOptions) -> None:
    """Raises a ValueError for options that mean nothing for LoRA factors alone."""
    for name in ("dtype", "verify", "openpi", "tokenizer"):
        if getattr(options, name):
            raise ValueError(f"--{name} is for whole weights, not for an adapter; see --merge")


def _infer_model(
    source: weights_source.WeightsSource, options: ConvertOptions
) -> variants.PaliGemma:
    """Returns the model of the weights, and prints its dimensions."""
    model = weights_source.infer_model(
        source,
        variant=options.variant,
        config=options.config,
        final_logits_softcap=options.final_logits_softcap,
    )
    llm = model.llm
    say.info(
        f"model: {model.res} px, {llm.depth} layers of width {llm.width}, {model.vocab_size} "
        f"pieces; soft-caps: attention {llm.attn_logits_softcap:g}, final "
        f"{llm.final_logits_softcap:g}; query scale: {llm.query_scale}"
    )
    return model


def _verify(
    source: weights_source.WeightsSource, target: pathlib.Path, model: variants.PaliGemma
) -> dict[str, float]:
    """Compares the logits of SRC and DST, and returns how far they are apart."""
    with say.working("comparing logits with those of transformers"):
        if source.weights is None:
            difference = parity.compare(partial_weights.find(target), source.path, model)
        else:
            difference = parity.compare(source.weights, target, model)
    say.info(
        f"logits differ from transformers' by up to {difference.largest:.3g}; the largest is "
        f"{difference.largest_logit:.3g}, and {difference.max_ratio:g} of it is allowed"
    )
    return {"max_logit_difference": difference.largest, "max_logit": difference.largest_logit}
