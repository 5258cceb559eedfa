"""Do our weights and transformers' give the same logits? Both run, on random inputs, in float32."""

import dataclasses
import functools
import gc
import importlib.util
import math
import os
import pathlib
from typing import Any

import jax
import numpy as np

from paligemma_jax.checkpoints import partial_weights, tensor_files
from paligemma_jax.models.paligemma import paligemma, variants

PACKAGES = "torch", "transformers"
# Of each example: tokens seen by all before the suffix, and tokens with it. The rest is padding.
PREFIX_LENS, TEXT_LENS = (4, 3), (8, 5)
# The largest difference, as a part of the largest logit. Two programs that round float32 are 1e-5
# apart, weights cast to float16 or bfloat16 some 1e-3 or 1e-2; a wrong mask or scale gives a tenth.
MAX_RATIO, MAX_RATIO_16_BITS = 1e-3, 1e-2


@dataclasses.dataclass(frozen=True)
class Batch:
    """Two images with texts of different length: a prefix, a suffix, padding."""

    image: np.ndarray  # uint8[B, R, R, 3]
    text: np.ndarray  # int32[B, T]
    is_suffix: np.ndarray  # bool[B, T]
    is_valid: np.ndarray  # bool[B, T]


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest difference between two sets of logits, the largest logit, what is allowed."""

    largest: float
    largest_logit: float
    max_ratio: float

    @property
    def ratio(self) -> float:
        return self.largest / self.largest_logit if self.largest_logit else math.inf

    @property
    def is_allowed(self) -> bool:
        """False also where a logit is not a number."""
        return self.largest <= self.max_ratio * self.largest_logit


def check_installed() -> None:
    """Raises a ValueError if a package is missing that `compare` needs."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(f"--verify needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def compare(
    stored: partial_weights.Weights | partial_weights.Merged,
    folder: pathlib.Path,
    model: variants.PaliGemma,
    *,
    seed: int = 0,
) -> Difference:
    """Compares npz weights with the folder that transformers loads. Needs torch and transformers.

    Every position of two texts counts, those of the suffix too. One model is in memory at a time,
    in float32.

    Raises:
      ValueError: tensors that transformers misses, or logits that differ by more than
        `MAX_RATIO` of the largest, `MAX_RATIO_16_BITS` where one side is stored in 16 bits.
    """
    batch = _random_batch(model, seed=seed)
    theirs = _their_logits(folder, batch, model=model)[batch.is_valid]
    ours = _our_logits(stored, batch, model=model)[batch.is_valid]
    is_exact = all(dtype.itemsize >= 4 for dtype in _stored_dtypes(stored, folder))
    difference = Difference(
        largest=float(np.abs(ours - theirs).max()),
        largest_logit=float(np.abs(ours).max()),
        max_ratio=MAX_RATIO if is_exact else MAX_RATIO_16_BITS,
    )
    if not difference.is_allowed:
        precision = "float32" if is_exact else "16 bits"
        remedy = "" if is_exact else "convert with --dtype float32, and where that differs too, "
        raise ValueError(
            f"{stored.path} and {folder} differ: logits by up to {difference.largest:.3g}, which "
            f"is {difference.ratio:.2g} of the largest, {difference.largest_logit:.3g}; "
            f"{precision} may make {difference.max_ratio:g}. Do not use what was "
            f"written: {remedy}please report this"
        )
    return difference


def _random_batch(model: variants.PaliGemma, *, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    size, length = len(TEXT_LENS), max(TEXT_LENS)
    where = np.arange(length)
    return Batch(
        image=rng.integers(0, 256, (size, model.res, model.res, 3), np.uint8),
        text=rng.integers(0, model.vocab_size, (size, length), np.int32),
        is_suffix=where >= np.array(PREFIX_LENS)[:, None],
        is_valid=where < np.array(TEXT_LENS)[:, None],
    )


def _stored_dtypes(
    stored: partial_weights.Weights | partial_weights.Merged, folder: pathlib.Path
) -> set[np.dtype]:
    theirs = [tensor for _, tensor in tensor_files.read_headers(folder)[0].values()]
    return {np.dtype(array.dtype) for array in (*stored.arrays.values(), *theirs)}


def _our_logits(
    stored: partial_weights.Weights | partial_weights.Merged,
    batch: Batch,
    *,
    model: variants.PaliGemma,
) -> np.ndarray:
    compute = paligemma.Compute(remat="none")

    @jax.jit
    def run(params, *inputs):
        hidden = paligemma.apply(params, *inputs, model=model, compute=compute)
        return paligemma.logits(params, hidden, model=model)

    params = stored.read(transform=lambda _, array: array.astype(np.float32))
    mask_image = np.ones((len(batch.image), 1), bool)
    mask_ar = batch.is_suffix.astype(np.int32)
    inputs = batch.image[:, None], mask_image, batch.text, mask_ar, batch.is_valid
    with jax.default_matmul_precision("highest"):
        return np.asarray(run(params, *inputs))


def _their_logits(folder: pathlib.Path, batch: Batch, *, model: variants.PaliGemma) -> np.ndarray:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    # Its type is that of a call without `output_loading_info`.
    loaded: Any = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, attn_implementation="eager", local_files_only=True, output_loading_info=True
    )
    theirs, info = loaded
    if info["missing_keys"]:
        raise ValueError(f"{folder}: transformers misses {sorted(info['missing_keys'])}")
    inputs = _their_inputs(batch, model)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in inputs.items()}
        logits = theirs.float().eval()(**tensors).logits
    text_logits = logits[:, model.num_image_tokens :, : model.vocab_size].numpy().copy()
    del theirs, logits
    gc.collect()
    return text_logits


def _their_inputs(batch: Batch, model: variants.PaliGemma) -> dict[str, np.ndarray]:
    """Returns what transformers' forward takes, image tokens before the text."""
    size, skip = len(batch.text), model.num_image_tokens
    before = functools.partial(np.full, (size, skip), dtype=np.int64)
    image = batch.image.astype(np.float32).transpose(0, 3, 1, 2)
    is_learned = batch.is_suffix & batch.is_valid
    return {
        "input_ids": np.concatenate([before(model.vocab_size), batch.text], 1),
        "attention_mask": np.concatenate([before(1), batch.is_valid], 1),
        "token_type_ids": np.concatenate([before(0), batch.is_suffix], 1),
        # Version 4 looks at token_type_ids only where it also computes a loss.
        "labels": np.concatenate([before(-100), np.where(is_learned, batch.text, -100)], 1),
        "pixel_values": image / np.float32(127.5) - np.float32(1),
    }
