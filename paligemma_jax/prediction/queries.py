"""What predict is asked: files, folders, globs, JSONL and videos as queries, and their batches.

An image that cannot be read costs its own answer and no other.
"""

import concurrent.futures
import dataclasses
import glob
import os
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

import numpy as np

from paligemma_jax.assembly import datasets
from paligemma_jax.console import say
from paligemma_jax.data import images, jsonl, locations, pipeline, prefix_lm, records, tokens
from paligemma_jax.prediction import video
from paligemma_jax.settings import schema
from paligemma_jax.wording import phrases

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
JSONL = ".jsonl"


@dataclasses.dataclass(frozen=True)
class Query:
    """A prompt and its images.

    Attributes:
      record: prompt and paths.
      frame: of the video that the record's one path names; None: the paths are images.
      arrays: uint8[H, W, 3] each, in place of the record's paths; None: there are paths.
    """

    record: records.Record
    frame: video.Frame | None = None
    arrays: tuple[np.ndarray, ...] | None = None

    @property
    def num_images(self) -> int:
        """How many images the prompt is about."""
        return len(self.record.images if self.arrays is None else self.arrays)

    @property
    def place(self) -> dict[str, Any]:
        """What a row says of the place in a video."""
        if self.frame is None:
            return {}
        return {"frame": self.frame.number, "time_s": round(self.frame.time_s, 6)}


def find(
    arguments: Sequence[str],
    settings: schema.Settings,
    *,
    prompt: str | None,
    usual_prompt: str | None = None,
    every: int | None = None,
    together: bool = False,
) -> tuple[list[Query], dict[str, float]]:
    """Returns (queries, pictures a second by video).

    Args:
      arguments: images, folders (of images and videos), globs, addresses, JSONL files, videos.
      settings: says what the keys of a JSONL's rows are.
      prompt: of all; None: each JSONL row has its own, the others the usual one.
      usual_prompt: what the run was trained to be asked; None: no one prompt.
      every: of a video every so many frames; None: as many as are shown in a second.
      together: all images are of one query.

    Raises:
      ValueError: an argument that stands for nothing, a file that cannot be read, no prompt, or
        a JSONL or a video among images that belong together.
    """
    files = find_files(arguments)
    of_images = prompt or usual_prompt
    if prompt is None and usual_prompt and not all(f.endswith(JSONL) for f in files):
        say.info(f"prompt: '{usual_prompt}', as in training (--prompt asks for something else)")
    if together:
        if mixed := [f for f in files if f.endswith(JSONL) or video.is_video(f)]:
            raise ValueError(f"--together is for images, and {mixed[0]} is none")
        return [Query(_record(files, of_images, source=", ".join(files)))], {}
    made: list[Query] = []
    rates: dict[str, float] = {}
    for path in files:
        own, rate = _of_file(path, settings, prompt=prompt, of_images=of_images, every=every)
        made += own
        rates |= {} if rate is None else {path: rate}
    if every and not rates:
        raise ValueError("--every is for videos, and there is none")
    return made, rates


def _of_file(
    path: str,
    settings: schema.Settings,
    *,
    prompt: str | None,
    of_images: str | None,
    every: int | None,
) -> tuple[list[Query], float | None]:
    """Returns (queries about an image, a video's frames or a JSONL's rows, a video's rate)."""
    if path.endswith(JSONL):
        return [Query(record) for record in _read_jsonl(path, settings, prompt)], None
    if not video.is_video(path):
        return [Query(_record([path], of_images, source=path))], None
    frames, rate = choose_frames(path, every)
    return [
        Query(_record([path], of_images, source=f"{path} at {f.time_s:.3f} s"), f) for f in frames
    ], rate


def find_files(arguments: Sequence[str]) -> list[str]:
    """Returns what files, addresses, folders (not their subfolders) and globs stand for.

    Raises:
      ValueError: one of them stands for nothing.
    """
    all_files: list[str] = []
    kinds = (*SUFFIXES, *video.SUFFIXES)
    for argument in arguments:
        if locations.is_address(argument):
            files = [argument]
        elif os.path.isdir(argument):
            inside = sorted(os.listdir(argument))
            files = [os.path.join(argument, f) for f in inside if f.lower().endswith(kinds)]
        elif os.path.isfile(argument):
            files = [argument]
        else:
            files = [f for f in sorted(glob.glob(argument, recursive=True)) if os.path.isfile(f)]
        if not files:
            if argument.endswith(JSONL):
                jsonl.check_path(argument)
            raise ValueError(f"'{argument}': no such file, and no folder or glob with {kinds}")
        all_files += files
    return list(dict.fromkeys(all_files))


def choose_frames(path: str, every: int | None) -> tuple[list[video.Frame], float]:
    """Returns (every so many frames of a video, how many of these are shown in a second)."""
    if locations.is_address(path):
        raise ValueError(f"{path}: videos are read from this machine; download it first")
    with say.progress(f"looking through {path}", unit="B", unit_scale=True) as report:
        scanned = video.scan(path, progress=report)
    step = every or max(1, round(scanned.rate))
    chosen = list(scanned.frames[::step])
    say.info(
        f"{path}: {phrases.count(len(scanned.frames), 'frames')}, {scanned.rate:.4g} a second; "
        f"one in {step} is looked at: {len(chosen)}"
    )
    return chosen, scanned.rate / step


def from_notebook(
    chosen: Sequence[Any],
    settings: schema.Settings,
    *,
    prompt: str | None,
    usual_prompt: str | None = None,
    every: int | None = None,
) -> list[Query]:
    """Returns queries of paths, uint8[H, W, 3], Pillow's images, or several of these together.

    A path alone is what `find` takes: a file, folder, glob, address, JSONL or video.
    """
    made: list[Query] = []
    of_images = prompt or usual_prompt
    for number, one in enumerate(chosen):
        if isinstance(one, str | os.PathLike):
            for path in find_files([os.fspath(one)]):
                made += _of_file(path, settings, prompt=prompt, of_images=of_images, every=every)[0]
            continue
        parts = [_as_array(part) for part in (one if isinstance(one, list | tuple) else [one])]
        arrays = [part for part in parts if isinstance(part, np.ndarray)]
        if arrays and len(arrays) < len(parts):
            raise ValueError(f"image {number}: paths and arrays in one example; give one kind")
        paths = [] if arrays else [os.fspath(part) for part in parts]
        source = ", ".join(paths) or f"image {number}"
        made.append(Query(_record(paths, of_images, source=source), None, tuple(arrays) or None))
    return made


def open_pictures(query: Query) -> list[Any]:
    """Returns the pictures that a query is about, to look at; a frame of a video is read again."""
    if query.frame is not None:
        return [
            pixels for pixels in video.read(query.frame.path, [query.frame]) if pixels is not None
        ]
    return list(query.arrays or map(datasets.open_image, query.record.images))


def _as_array(image: Any) -> Any:
    """Returns the pixels of an image of Pillow; else what it was given."""
    return np.asarray(image.convert("RGB")) if hasattr(image, "convert") else image


def _record(images: Sequence[str], prompt: str | None, *, source: str) -> records.Record:
    if prompt is None:
        raise ValueError(
            f"{source}: a prompt is missing: give --prompt. Rows of a JSONL have their own, and a "
            f"run whose examples all asked the same (its prompt.json) needs none"
        )
    return records.Record(images=tuple(images), prefix=prompt, source=source)


def _read_jsonl(path: str, settings: schema.Settings, prompt: str | None) -> list[records.Record]:
    """Returns the rows of a file with their own prompts, or all with one; truths are left out."""
    data = settings.input.data
    with say.progress(f"reading {path}", unit="B", unit_scale=True) as report:
        rows = records.read_jsonl(
            path,
            keys=data.fields,
            required=("image",) if prompt else ("image", "prefix"),
            prefix_template=None if prompt else data.prefix_template,
            progress=report,
        )
    return [
        records.Record(one.images, prompt or one.prefix, source=one.source, extra=one.extra)
        for one in rows
    ]


Readers = dict[str, Iterator[np.ndarray | None]]


def make_batches(
    chosen: Sequence[Query],
    tokenizer: tokens.Tokenizer,
    spec: pipeline.BatchSpec,
    broken: MutableMapping[int, str],
    sizes: MutableMapping[int, tuple[int, int]],
) -> Iterator[pipeline.Batch]:
    """Yields batches as `pipeline.eval_batches`, without the queries whose images cannot be read.

    Args:
      chosen: what to answer; frames of one video in order of time.
      tokenizer: makes text ids.
      spec: what a batch looks like.
      broken: gets {place in `chosen`: what is wrong}, before the batch is yielded.
      sizes: gets {place in `chosen`: (height, width) in px of the first image}, likewise.
    """
    images.tensorflow()  # once, before the threads
    readers: Readers = {}
    with concurrent.futures.ThreadPoolExecutor(spec.num_workers or os.cpu_count()) as pool:
        for start in range(0, len(chosen), spec.batch_size):
            numbers = range(start, min(start + spec.batch_size, len(chosen)))
            # A video is read frame after frame, here; the rest in threads.
            frames = [_read_frame(chosen, number, readers) for number in numbers]
            specs = [spec] * len(numbers)
            loaded = list(pool.map(_load, [chosen[n] for n in numbers], frames, specs))
            for number, parts in zip(numbers, loaded, strict=True):
                if isinstance(parts, str):
                    broken[number] = parts
                elif parts:
                    sizes[number] = parts[0][1]
            pixels = [p if isinstance(p, str) else [image for image, _ in p] for p in loaded]
            if not all(isinstance(parts, str) for parts in pixels):
                yield _make_batch(chosen, start, pixels, tokenizer, spec)


def _read_frame(chosen: Sequence[Query], number: int, readers: Readers) -> np.ndarray | str | None:
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


def _load(
    query: Query, frame: np.ndarray | str | None, spec: pipeline.BatchSpec
) -> list[tuple[np.ndarray, tuple[int, int]]] | str:
    """Returns `spec.image_shape` and (height, width) before, of each image; or what is wrong."""
    if isinstance(frame, str):
        return frame
    how: Any = {"res": spec.res, "resampling": spec.resampling}
    try:
        arrays = query.arrays if frame is None else (frame,)
        if arrays is not None:
            return [(images.resize(one, **how), (one.shape[0], one.shape[1])) for one in arrays]
        return [images.load_measured(path, **how) for path in query.record.images]
    except ValueError as error:
        return str(error)


def _make_batch(
    chosen: Sequence[Query],
    start: int,
    loaded: Sequence[list[np.ndarray] | str],
    tokenizer: tokens.Tokenizer,
    spec: pipeline.BatchSpec,
) -> pipeline.Batch:
    """Returns a batch from place `start` on; rows without a query of their own repeat the last."""
    size = spec.batch_size
    pixels = np.zeros((size, spec.max_images, *spec.image_shape), np.uint8)
    is_used = np.zeros((size, spec.max_images), bool)
    index = np.full(size, -1, np.int32)
    for row, pictures in enumerate(loaded):
        if not isinstance(pictures, str):
            index[row] = start + row
            is_used[row, : len(pictures)] = True
            pixels[row, : len(pictures)] = pictures if pictures else 0
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
