"""Answers drawn into their pictures: a PNG for each, and of a video's frames a video again."""

import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from paligemma_jax.assembly import datasets
from paligemma_jax.prediction import queries, video
from paligemma_jax.reports import drawing

VIDEO_LINES = 2  # of an answer below a video's pictures, which are all of one size


class Annotator:
    """Writes what rows say into pictures. Close it: see `with`; a video is whole only then.

    Args:
      folder: made if need be.
      chosen: what the rows answer.
      rates: pictures a second of each video to be written; frames of others become PNG files.
      classes: all labels there may be, each of which has one colour.

    Attributes:
      num_files: begun so far.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        chosen: Sequence[queries.Query],
        rates: Mapping[str, float],
        classes: Iterable[str] = (),
    ):
        self._folder, self._chosen, self._rates = folder, chosen, rates
        self._colors = drawing.choose_colors(classes)
        self._names = _names(chosen)
        self._frames: dict[str, Iterator[np.ndarray | None]] = {}
        self._path: str | None = None
        self._video: video.VideoFile | None = None
        self.num_files = 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, row: Mapping[str, Any]) -> None:
        """Draws a row; rows come in the order of the queries.

        Raises:
          ValueError: its pictures cannot be opened, though the model could see them; rows that
            follow can be drawn.
        """
        query = self._chosen[row["index"]]
        pixels = self._next_frame(query.frame) if query.frame else None
        if "error" in row or not query.num_images:
            return
        path = query.record.images[0]
        if query.frame is not None and path in self._rates:
            assert pixels is not None
            self._open(path).append(self._draw(row, [pixels], num_lines=VIDEO_LINES))
            return
        opened = _open_all(query) if pixels is None else [pixels]
        self.num_files += 1
        self._draw(row, opened).save(self._folder / f"{self._names[row['index']]}.png")

    def close(self) -> None:
        if self._video is not None:
            self._video.close()
        self._video = self._path = None

    def __enter__(self) -> "Annotator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _draw(self, row: Mapping[str, Any], opened: list[Any], **caption: Any) -> Any:
        """Returns the first picture with its boxes, or the answer below all of them."""
        if "detections" not in row:
            return drawing.add_caption(drawing.beside(opened), row["prediction"], **caption)
        detections = row["detections"]
        new = {one["label"] for one in detections} - self._colors.keys()
        for label in new:  # each by itself: it looks alike whatever came before
            self._colors |= drawing.choose_colors([label])
        first = drawing.draw_boxes(
            opened[0],
            np.array([one["box_yxyx"] for one in detections], np.float32).reshape(-1, 4),
            [one["label"] for one in detections],
            [one["score"] for one in detections],
            masks=[one["mask"] for one in detections]
            if any("mask" in one for one in detections)
            else None,
            colors=self._colors,
        )
        return drawing.beside([first, *opened[1:]])

    def _next_frame(self, frame: video.Frame) -> np.ndarray | None:
        """Returns a frame's pixels, read again: to keep them would take much memory."""
        if frame.path not in self._frames:
            same = [q.frame for q in self._chosen if q.frame and q.frame.path == frame.path]
            self._frames = {frame.path: video.read(frame.path, same)}
        return next(self._frames[frame.path], None)

    def _open(self, path: str) -> video.VideoFile:
        if path != self._path or self._video is None:
            self.close()
            names = dict(zip(self._rates, _tell_apart([*map(_stem, self._rates)]), strict=True))
            file = self._folder / f"{names[path]}.mp4"
            self._path, self._video = path, video.VideoFile(file, rate=self._rates[path])
            self.num_files += 1
        return self._video


def _open_all(query: queries.Query) -> list[Any]:
    try:
        return [datasets.open_image(path) for path in query.record.images]
    except Exception as error:  # each format has its own
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{query.record.source}: cannot be drawn: {reason}") from error


def _names(chosen: Sequence[queries.Query]) -> list[str]:
    """Returns a name for each query's picture: that of its first file, unless others share it."""
    names = []
    for query in chosen:
        stem = _stem(query.record.images[0] if query.record.images else "")
        names.append(f"{stem}-{query.frame.number:06d}" if query.frame else stem)
    return _tell_apart(names)


def _stem(path: str) -> str:
    return pathlib.Path(path).stem


def _tell_apart(names: Sequence[str]) -> list[str]:
    """Returns names of files; those that come up again get their place as well."""
    taken = Counter(names)
    return [n if taken[n] == 1 else f"{n}-{place:06d}" for place, n in enumerate(names)]
