"""Writes weights: npz files, folders for transformers, and LoRA adapters for PEFT."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from paligemma_jax.assembly import weights
from paligemma_jax.checkpoints import (
    huggingface,
    huggingface_files,
    huggingface_tokenizer,
    lazy_array,
    npz,
    partial_weights,
    peft,
    tensor_files,
)
from paligemma_jax.console import say
from paligemma_jax.data import tokens
from paligemma_jax.files import atomic
from paligemma_jax.models.paligemma import as_family, paligemma, variants
from paligemma_jax.params import names, released_models


@dataclasses.dataclass(frozen=True)
class Written:
    """What a conversion made: how many of our arrays, and their bytes as they are stored."""

    num_arrays: int
    num_bytes: int


def to_huggingface(
    stored: partial_weights.Weights | partial_weights.Merged,
    folder: pathlib.Path,
    model: variants.PaliGemma,
    *,
    dtype: str | None,
    tokenizer: pathlib.Path | None,
) -> Written:
    """Writes npz weights as a folder that transformers loads without a network.

    The folder is made beside its place and moved there when it is whole. Files of a folder that is
    there already are replaced, others stay.

    Raises:
      ValueError: a model that transformers cannot express, or a tokenizer of another size.
      OSError: too little space.
    """
    arrays = stored.arrays
    layout = huggingface.plan(arrays, dtype=dtype, metadata=stored.metadata)
    widest = dtype or jnp.result_type(*{array.dtype for array in arrays.values()})
    files = {
        "config.json": huggingface_files.config(model, dtype=widest),
        "generation_config.json": huggingface_files.generation_config(model),
        "preprocessor_config.json": huggingface_files.preprocessor_config(model),
        "processor_config.json": huggingface_files.processor_config(model),
    }
    texts = {name: _as_json(content) for name, content in files.items()}
    texts |= _tokenizer_files(tokenizer, model) if tokenizer else {}
    atomic.require_space(folder, layout.num_bytes, what=str(folder), remedy="nothing was written")
    # Weights of another number of files must not stay: transformers might read these.
    stale = ("model*.safetensors", tensor_files.INDEX)
    with atomic.files_of_folder(folder, stale=stale) as made:
        for name, text in texts.items():
            (made / name).write_bytes(text)
        with say.progress(f"writing {folder}", unit="B", unit_scale=True) as report:
            huggingface.write(stored, made, layout, progress=report)
    return Written(len(arrays), layout.num_bytes)


def from_huggingface(
    folder: pathlib.Path,
    path: pathlib.Path,
    model: variants.PaliGemma,
    *,
    dtype: str | None,
    prefix: str,
) -> Written:
    """Writes the weights of a Hugging Face folder as an npz file, names starting with `prefix`."""
    arrays, metadata = huggingface.read(folder, paligemma.shapes(model), dtype=dtype)
    described = weights.model_metadata(as_family.Model(model))
    metadata = {"format": "paligemma_jax", **metadata, **described}
    return _write_npz(path, arrays, metadata, prefix)


def rewrite(
    stored: partial_weights.Weights | partial_weights.Merged,
    path: pathlib.Path,
    *,
    dtype: str | None,
    prefix: str,
) -> Written:
    """Writes npz weights anew as one file, cast and with `prefix` before every name."""

    def defer(name: str, array: jax.ShapeDtypeStruct) -> lazy_array.Deferred:
        kind = jnp.dtype(dtype or array.dtype)

        def make():
            return lazy_array.cast(stored.read([name])[name], kind, name=name)

        return lazy_array.Deferred(array.shape, kind, make)

    arrays = {name: defer(name, array) for name, array in stored.arrays.items()}
    return _write_npz(path, arrays, stored.metadata, prefix)


def to_peft(
    stored: partial_weights.Weights, folder: pathlib.Path, model: variants.PaliGemma
) -> Written:
    """Writes the factors of npz weights as a folder that `PeftModel.from_pretrained` loads.

    Raises:
      ValueError: arrays of the base were trained too: such a folder cannot hold them.
    """
    assert model.lora is not None
    others = [name for name in stored.own if not names.is_factor(name)]
    if stored.base and others:
        raise ValueError(
            f"{stored.path}: besides factors it holds {len(others)} arrays of the base "
            f"({', '.join(others[:3])}, ...), which PEFT's folder cannot: convert it with --merge"
        )
    factors = stored.read(filter(names.is_factor, stored.arrays))
    source = stored.metadata.get(partial_weights.BASE, {}).get("source")
    with atomic.files_of_folder(folder) as made:
        base = released_models.hugging_face_name(source)
        peft.write(made, factors, model.lora, stored.arrays, base=base)
    return Written(len(factors), (folder / peft.WEIGHTS).stat().st_size)


def from_peft(
    folder: pathlib.Path,
    path: pathlib.Path,
    base: partial_weights.Weights,
    model: variants.PaliGemma,
) -> Written:
    """Writes an adapter of PEFT as an npz file of factors that names its base.

    Args:
      folder: of the adapter.
      path: the file to write.
      base: npz weights of the model that it was trained on.
      model: of the base.
    """
    lora, factors = peft.read(folder, paligemma.shapes(model))
    metadata = {
        "format": "paligemma_jax",
        **weights.model_metadata(as_family.Model(dataclasses.replace(model, lora=lora))),
        partial_weights.NUM_ARRAYS: len(base.arrays) + len(factors),
        partial_weights.BASE: partial_weights.describe_base(os.fspath(base.path), base, dtype=None),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with say.progress(f"writing {path}", unit="B", unit_scale=True) as report:
        npz.write(path, factors, metadata=metadata, progress=report)
    return Written(len(factors), sum(4 * math.prod(x.shape) for x in factors.values()))


def _write_npz(
    path: pathlib.Path,
    arrays: Mapping[str, lazy_array.Deferred],
    metadata: Mapping[str, Any],
    prefix: str,
) -> Written:
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {prefix + name: array for name, array in arrays.items()}
    with say.progress(f"writing {path}", unit="B", unit_scale=True) as report:
        npz.write(path, named, metadata=metadata, progress=report)
    sizes = [math.prod(array.shape) * array.dtype.itemsize for array in arrays.values()]
    return Written(len(arrays), sum(sizes))


def _tokenizer_files(path: pathlib.Path, model: variants.PaliGemma) -> dict[str, bytes]:
    """Returns name -> content of what transformers makes its tokenizer from."""
    tokenizer = tokens.load_sentencepiece(path)
    if tokenizer.vocab_size != model.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} pieces, the embedding "
            f"{model.vocab_size} rows: '<image>' would not get the id behind them. Give the "
            f"model's own as --tokenizer, or '--tokenizer none'"
        )
    control = tokenizer.control_pieces()
    never_split = huggingface_tokenizer.never_split(tokenizer.proto)
    plain = dict(zip(tokenizer.loc_ids, tokens.LOC_PIECES, strict=True))
    plain |= dict(zip(tokenizer.seg_ids, tokens.SEG_PIECES, strict=True))
    config = huggingface_files.tokenizer_config(control, plain, num_pieces=tokenizer.vocab_size)
    files = {
        "tokenizer.model": tokenizer.model,
        "tokenizer_config.json": _as_json(config),
        "special_tokens_map.json": _as_json(huggingface_files.special_tokens_map(control)),
    }
    added = huggingface_files.added_tokens(
        control, never_split | plain, num_pieces=tokenizer.vocab_size
    )
    listed = [{"id": number, **token} for number, token in added.items()]
    try:
        with say.working("making tokenizer.json"):
            made = huggingface_tokenizer.make(tokenizer.proto, control=control, added=listed)
    except ValueError as error:
        say.info(f"no tokenizer.json: {error}; tokenizer.model says all of it")
        return files
    return files | {"tokenizer.json": json.dumps(made, ensure_ascii=False).encode()}


def _as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
