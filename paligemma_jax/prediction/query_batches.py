"""Queries to batches of prompts; an image that cannot be read costs its own answer and no other."""

import concurrent.futures
import os
from collections.abc import Iterator, MutableMapping, Sequence

import numpy as np

from paligemma_jax.data import images, pipeline, prefix_lm, tokens
from paligemma_jax.prediction import queries, video

Readers = dict[str, Iterator[np.ndarray | None]]


def load(
    chosen: Sequence[queries.Query],
    tokenizer: tokens.Tokenizer,
    spec: pipeline.BatchSpec,
    broken: MutableMapping[int, str],
) -> Iterator[pipeline.Batch]:
    """Yields batches as `pipeline.eval_batches`, without the queries whose images cannot be read.

    Args:
      chosen: what to answer; frames of one video in order of time.
      tokenizer: makes text ids.
      spec: what a batch looks like.
      broken: gets {place in `chosen`: what is wrong}, before the batch is yielded.
    """
    images.tensorflow()  # once, before the threads
    readers: Readers = {}
    with concurrent.futures.ThreadPoolExecutor(spec.num_workers or os.cpu_count()) as pool:
        for start in range(0, len(chosen), spec.batch_size):
            numbers = range(start, min(start + spec.batch_size, len(chosen)))
            # A video is read frame after frame, here; the rest in threads.
            frames = [_read_frame(chosen, number, readers) for number in numbers]
            loaded = list(
                pool.map(_load, [chosen[n] for n in numbers], frames, [spec.res] * len(numbers))
            )
            for number, found in zip(numbers, loaded, strict=True):
                if isinstance(found, str):
                    broken[number] = found
            if not all(isinstance(found, str) for found in loaded):
                yield _make_batch(chosen, start, loaded, tokenizer, spec)


def _read_frame(
    chosen: Sequence[queries.Query], number: int, readers: Readers
) -> np.ndarray | str | None:
    """Returns a video's frame, or what is wrong with it; None for a query of other images."""
    frame = chosen[number].frame
    if frame is None:
        return None
    if frame.path not in readers:
        same = [query.frame for query in chosen[number:] if query.frame]
        readers[frame.path] = video.read(frame.path, [f for f in same if f.path == frame.path])
    try:
        pixels = next(readers[frame.path], None)
    except ValueError as error:
        return str(error)
    return f"{frame.path}: frame {frame.number} cannot be decoded" if pixels is None else pixels


def _load(query: queries.Query, frame: np.ndarray | str | None, res: int) -> list[np.ndarray] | str:
    """Returns uint8[R, R, 3] of each image, or what is wrong."""
    if isinstance(frame, str):
        return frame
    try:
        if frame is not None:
            return [images.resize(frame, res=res)]
        if query.arrays is not None:
            return [images.resize(array, res=res) for array in query.arrays]
        return [images.load(path, res=res) for path in query.record.images]
    except ValueError as error:
        return str(error)


def _make_batch(
    chosen: Sequence[queries.Query],
    start: int,
    loaded: Sequence[list[np.ndarray] | str],
    tokenizer: tokens.Tokenizer,
    spec: pipeline.BatchSpec,
) -> pipeline.Batch:
    """Returns a batch from place `start` on; rows without a query of their own repeat the last."""
    size = spec.batch_size
    pixels = np.zeros((size, spec.max_images, spec.res, spec.res, 3), np.uint8)
    is_used = np.zeros((size, spec.max_images), bool)
    index = np.full(size, -1, np.int32)
    for row, found in enumerate(loaded):
        if not isinstance(found, str):
            index[row] = start + row
            is_used[row, : len(found)] = True
            pixels[row, : len(found)] = found if found else 0
    last = len(loaded) - 1
    texts = [
        prefix_lm.encode_prompt(
            tokenizer, chosen[start + min(row, last)].record.prefix, **spec.text_options
        )
        for row in range(size)
    ]
    return {
        "image": pixels,
        "mask_image": is_used,
        **{key: np.stack([text[key] for text in texts]) for key in texts[0]},
        "_mask": index >= 0,
        "index": index,
    }
