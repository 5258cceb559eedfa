"""Do our weights and transformers' give the same logits? Both run, on random inputs, in float32."""

import dataclasses
import functools
import gc
import importlib.util
import os
import pathlib

import jax
import numpy as np

from paligemma_jax.checkpoints import merge, partial_weights
from paligemma_jax.models.paligemma import paligemma, variants

PACKAGES = "torch", "transformers"
NUM_EXAMPLES, TEXT_LEN = 2, 8
# Rounding of float32 gives 1e-5 of the largest logit, a cast to bfloat16 some 1e-2, a wrong mask,
# scale or soft-cap more than a tenth.
MAX_RATIO = 0.1


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest difference between two sets of logits, and the largest logit."""

    largest: float
    largest_logit: float


def check_installed() -> None:
    """Raises a ValueError if a package is missing that `compare` needs."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(f"--verify needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def compare(
    stored: partial_weights.Weights | merge.Merged,
    folder: pathlib.Path,
    model: variants.PaliGemma,
    *,
    seed: int = 0,
) -> Difference:
    """Compares npz weights with the folder that transformers loads. Needs torch and transformers.

    Two images with texts of different length, seen as prefixes: every version of transformers masks
    these alike. One model is in memory at a time, in float32.

    Raises:
      ValueError: tensors that transformers misses, or logits that differ by more than a
        tenth of the largest.
    """
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (NUM_EXAMPLES, model.res, model.res, 3), np.uint8)
    text = rng.integers(0, model.vocab_size, (NUM_EXAMPLES, TEXT_LEN), np.int32)
    valid = np.arange(TEXT_LEN) < TEXT_LEN - 3 * np.arange(NUM_EXAMPLES)[:, None]
    theirs = _their_logits(folder, image, text, valid, model=model)[valid]
    ours = _our_logits(stored, image, text, valid, model=model)[valid]
    found = Difference(float(np.abs(ours - theirs).max()), float(np.abs(ours).max()))
    if not found.largest <= MAX_RATIO * found.largest_logit:
        raise ValueError(
            f"{stored.path} and {folder} differ: logits by up to {found.largest:.3g}, the largest "
            f"is {found.largest_logit:.3g}. Do not use what was written; please report this"
        )
    return found


def _our_logits(
    stored: partial_weights.Weights | merge.Merged,
    image: np.ndarray,
    text: np.ndarray,
    valid: np.ndarray,
    *,
    model: variants.PaliGemma,
) -> np.ndarray:
    compute = paligemma.Compute(remat="none")

    @jax.jit
    def run(params, *inputs):
        hidden = paligemma.apply(params, *inputs, model=model, compute=compute)
        return paligemma.logits(params, hidden, model=model)

    params = stored.read(transform=lambda _, array: array.astype(np.float32))
    inputs = image[:, None], np.ones((len(image), 1), bool), text, np.zeros_like(text), valid
    with jax.default_matmul_precision("highest"):
        return np.asarray(run(params, *inputs))


def _their_logits(
    folder: pathlib.Path,
    image: np.ndarray,
    text: np.ndarray,
    valid: np.ndarray,
    *,
    model: variants.PaliGemma,
) -> np.ndarray:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    theirs, info = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, attn_implementation="eager", local_files_only=True, output_loading_info=True
    )
    if info["missing_keys"]:
        raise ValueError(f"{folder}: transformers misses {sorted(info['missing_keys'])}")
    skip = model.num_image_tokens
    before = functools.partial(np.full, (len(text), skip), dtype=np.int64)
    pixels = image.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)
    inputs = {
        "input_ids": np.concatenate([before(model.vocab_size), text], 1),
        "attention_mask": np.concatenate([before(1), valid], 1),
        "token_type_ids": np.zeros((len(text), skip + TEXT_LEN), np.int64),
        "pixel_values": pixels,
    }
    with torch.no_grad():
        tensors = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in inputs.items()}
        logits = theirs.float().eval()(**tensors).logits
    found = logits[:, skip:, : model.vocab_size].numpy().copy()
    del theirs, logits
    gc.collect()
    return found
