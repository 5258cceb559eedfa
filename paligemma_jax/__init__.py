"""Fine-tune PaliGemma 1 and 2 in JAX, on big_vision's names and formats.

import paligemma_jax

model = paligemma_jax.load("runs/fracture")
model.predict("scan.png", "detect fracture")

paligemma_jax.api has the other commands: train, evaluate, check, import_data, convert.
"""

import os
from collections.abc import Mapping
from typing import Any

__version__ = "0.1.0"


def load(
    run: str | os.PathLike[str],
    *,
    weights: str | None = None,
    checkpoint: str | None = None,
    base: str | None = None,
    decoding: Mapping[str, Any] | None = None,
    task: str | None = None,
) -> Any:
    """Returns a run, ready to answer: `load("runs/fracture").predict(images, prompt)`.

    Args:
      run: the run's folder, or what `api.train` returned; or released weights as they are, as
        "mix_3b_448" (paligemma-jax fetch --list names them).
      weights: npz file in place of the run's final.npz.
      checkpoint: "best", "last" or a step ("200"): that state of the run instead.
      base: what the weights were trained from, if they are trained arrays only and it moved.
      decoding: keys of `evals.NAME` in docs/configs.md, as {"max_new_tokens": 64}.
      task: of released weights: what answers are read as, "detection", "segmentation" or, if it
        is None, words.

    Returns:
      a `prediction.predictor.Predictor`.

    Raises:
      ValueError: no finished run there and no checkpoint named, or an unknown key.
    """
    # Here, so that paligemma_jax.models imports without what only the doors need.
    from paligemma_jax.console import arguments, say
    from paligemma_jax.prediction import predictor

    say.show_on_stderr()
    return arguments.once_in_words(predictor.open_run)(
        os.fspath(run),
        weights=weights,
        checkpoint=checkpoint,
        base=base,
        decoding=decoding or {},
        task=task,
    )
