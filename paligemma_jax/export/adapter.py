"""LoRA adapters from and to PEFT's folders."""

import dataclasses
import math
import os
import pathlib
import shutil

from paligemma_jax.assembly import weights
from paligemma_jax.checkpoints import npz, partial_weights, peft
from paligemma_jax.console import say
from paligemma_jax.export import conversion
from paligemma_jax.hub import published
from paligemma_jax.models.paligemma import paligemma, variants
from paligemma_jax.params import names


def to_peft(
    stored: partial_weights.Weights, folder: pathlib.Path, model: variants.PaliGemma
) -> conversion.Written:
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
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    try:
        base = published.hugging_face_name(source)
        peft.write(made, factors, model.lora, stored.arrays, base=base)
        folder.mkdir(exist_ok=True)
        for file in made.iterdir():
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return conversion.Written(len(factors), (folder / peft.WEIGHTS).stat().st_size)


def from_peft(
    folder: pathlib.Path,
    path: pathlib.Path,
    base: partial_weights.Weights,
    model: variants.PaliGemma,
) -> conversion.Written:
    """Writes an adapter of PEFT as an npz file of factors that names its base.

    Args:
      folder: of the adapter.
      path: the file to write.
      base: npz weights of the model that it was trained on.
      model: of the base.
    """
    lora, factors = peft.read(folder, paligemma.shapes(model))
    said = {
        "format": "paligemma_jax",
        **weights.model_metadata(dataclasses.replace(model, lora=lora)),
        partial_weights.NUM_ARRAYS: len(base.arrays) + len(factors),
        partial_weights.BASE: partial_weights.describe_base(os.fspath(base.path), base, dtype=None),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with say.progress(f"writing {path}", unit="B", unit_scale=True) as report:
        npz.write(path, factors, metadata=said, progress=report)
    return conversion.Written(len(factors), sum(4 * math.prod(x.shape) for x in factors.values()))
