"""Answers to images with a prompt, for a notebook and the predict door."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from paligemma_jax.build import assembly, data, evaluation
from paligemma_jax.build import model as build_model
from paligemma_jax.config import presets
from paligemma_jax.data import images, pipeline, records, rows
from paligemma_jax.inference import evaluator, generate

NEW_TOKENS = 128

Image = str | os.PathLike[str] | np.ndarray
Images = Image | Sequence[Image]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model that is ready to answer; make it with `open_predictor`.

    Attributes:
      built: the assembly that the weights belong to.
      params: weights on their devices, as decoding wants them.
      generate: (params, batch) -> Generation, compiled once per batch shape.
      batch_size: images answered at a time.
    """

    built: assembly.Assembly
    params: Mapping[str, jax.Array]
    generate: Callable[..., generate.Generation]
    batch_size: int

    def predict(
        self,
        images: Images,
        prompt: str,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Returns one row per image, in their order.

        Args:
          images: paths or uint8[H, W, 3] arrays, or one of these alone.
          prompt: the prefix, for example "detect fracture"; bos and newline are added.
          progress: called with (rows done, rows in all).

        Returns:
          rows with prediction (text), logp (of the whole answer), stopped (False: cut off by
          max_new_tokens), and the task's own keys: for detection, detections with box_yxyx in
          0..1 of the image, label and score.
        """
        alone = isinstance(images, str | os.PathLike | np.ndarray)
        chosen = [images] if alone else list(images)
        if not chosen:
            return []
        return list(self.iterate(chosen, prompt, progress=progress))

    def iterate(
        self,
        chosen: Sequence[Image],
        prompt: str,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yields rows as they are ready: as `predict`."""
        examples = [
            records.Record(
                images=() if isinstance(image, np.ndarray) else (os.fspath(image),),
                prefix=prompt,
                source=f"image {number}" if isinstance(image, np.ndarray) else os.fspath(image),
            )
            for number, image in enumerate(chosen)
        ]
        config, tokenizer = self.built.config, self.built.tokenizer
        spec = data.spec(
            config,
            batch_size=self.batch_size,
            text_len=data.prompt_len(config, examples, tokenizer),
        )
        if any(isinstance(image, np.ndarray) for image in chosen):
            batches = _load_here(chosen, examples, spec, self.built)
        else:
            batches = pipeline.eval_batches(examples, tokenizer, spec)
        return evaluator.predict(
            self.generate,
            self.params,
            data.on_mesh(batches, self.built.mesh),
            examples,
            tokenizer,
            self.built.task,
            progress=progress,
        )


def open_predictor(
    built: assembly.Assembly,
    source: str | None,
    *,
    base: str | None = None,
    batch_size: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> Predictor:
    """Loads weights and returns what answers with them.

    Args:
      built: from `assembly.assemble`.
      source: weights; None: random ones.
      base: of weights that are trained arrays only, if it is not where it was.
      batch_size: images answered at a time, rounded up to a multiple of the devices.
      settings: keys of `evals.NAME` that say how to decode; 128 new tokens by default, or as many
        as training answers had that were filled up with noise boxes.
    """
    complete = presets.eval_settings({"fname": "", **(settings or {})})
    stored = assembly.find_weights(built.config, source, base)
    decode = evaluation.make_generate(
        built.functions,
        complete,
        tokenizer=built.tokenizer,
        max_new_tokens=complete["max_new_tokens"] or _room(built),
        seed=built.config.seed,
        noise=data.make_noise(built.config, built.tokenizer),
    )
    return Predictor(
        built=built,
        params=build_model.for_decoding(assembly.load_weights(built, stored)),
        generate=decode,
        batch_size=evaluation.round_up(batch_size, built.mesh.size),
    )


def _room(built: assembly.Assembly) -> int:
    """Returns how many new tokens there is room for where nothing is said."""
    if built.config.input.noise_piece is None:
        return NEW_TOKENS
    return max(1, built.config.input.text_len - data.PROMPT_MULTIPLE)


def _load_here(
    chosen: Sequence[Image],
    examples: data.Records,
    spec: pipeline.BatchSpec,
    built: assembly.Assembly,
) -> Iterator[pipeline.Batch]:
    """Yields batches of images of which some are arrays: as `pipeline.eval_batches`."""
    if spec.process_count > 1:
        raise ValueError("arrays are answered by a single process; give paths of files instead")
    for start in range(0, len(chosen), spec.batch_size):
        numbers = np.minimum(np.arange(start, start + spec.batch_size), len(chosen) - 1)
        is_real = np.arange(start, start + spec.batch_size) < len(chosen)
        pixels = np.zeros((spec.batch_size, spec.max_images, spec.res, spec.res, 3), np.uint8)
        for row, number in enumerate(numbers):
            image = chosen[number]
            pixels[row, 0] = (
                images.resize(image, res=spec.res)
                if isinstance(image, np.ndarray)
                else images.load(image, res=spec.res)
            )
        texts = [
            rows.encode_prompt(built.tokenizer, examples[number].prefix, **spec.text_options)
            for number in numbers
        ]
        yield {
            "image": pixels,
            "mask_image": np.arange(spec.max_images)[None].repeat(spec.batch_size, 0) < 1,
            **{key: np.stack([text[key] for text in texts]) for key in texts[0]},
            "_mask": is_real,
            "index": np.where(is_real, numbers, -1).astype(np.int32),
        }
