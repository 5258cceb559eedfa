"""Weights from one format to another: npz files, runs, and Hugging Face folders."""

import dataclasses
import json
import math
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from paligemma_jax.assembly import weights
from paligemma_jax.checkpoints import (
    huggingface,
    huggingface_files,
    lazy_array,
    merge,
    npz,
    partial_weights,
    tensor_files,
)
from paligemma_jax.console import say
from paligemma_jax.data import tokens
from paligemma_jax.models.paligemma import paligemma, variants


@dataclasses.dataclass(frozen=True)
class Written:
    """What a conversion made: how many of our arrays, and their bytes as they are stored."""

    num_arrays: int
    num_bytes: int


def to_huggingface(
    stored: partial_weights.Weights | merge.Merged,
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
    }
    texts = {name: (json.dumps(x, indent=2) + "\n").encode() for name, x in files.items()}
    texts |= _tokenizer_files(tokenizer, model) if tokenizer else {}
    folder.parent.mkdir(parents=True, exist_ok=True)
    npz.check_space(folder, layout.num_bytes)
    made = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    try:
        for name, text in texts.items():
            (made / name).write_bytes(text)
        with say.progress(f"writing {folder}", unit="B", unit_scale=True) as report:
            huggingface.write(stored, made, layout, progress=report)
        _put_in_place(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
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
    said = {"format": "paligemma_jax", **metadata, **weights.model_metadata(model)}
    return _write_npz(path, arrays, said, prefix)


def rewrite(
    stored: partial_weights.Weights | merge.Merged,
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
    tokenizer = tokens.load_tokenizer(path)
    if tokenizer.vocab_size != model.vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} pieces, the embedding "
            f"{model.vocab_size} rows: '<image>' would not get the id behind them. Give the "
            f"model's own as --tokenizer, or '--tokenizer none'"
        )
    plain = dict(zip(tokenizer.loc_ids, tokens.LOC_PIECES, strict=True))
    plain |= dict(zip(tokenizer.seg_ids, tokens.SEG_PIECES, strict=True))
    config = huggingface_files.tokenizer_config(
        tokenizer.control_pieces(), plain, num_pieces=tokenizer.vocab_size
    )
    text = json.dumps(config, indent=2) + "\n"
    return {"tokenizer.model": tokenizer.model, "tokenizer_config.json": text.encode()}


def _put_in_place(made: pathlib.Path, folder: pathlib.Path) -> None:
    if not folder.exists():
        os.replace(made, folder)
        return
    # Weights of another number of files must not stay: transformers might read these.
    for old in (*folder.glob("model*.safetensors"), folder / tensor_files.INDEX):
        old.unlink(missing_ok=True)
    for file in made.iterdir():
        os.replace(file, folder / file.name)
