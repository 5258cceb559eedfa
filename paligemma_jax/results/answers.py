"""Answers to images, for a notebook: rows of predictions that show themselves.

An answer is the dictionary that `predict` writes as a line, with the image that it is about. What
pandas, supervision and matplotlib make of it needs them installed: extra `notebook`.
"""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from paligemma_jax.reports import drawing, page
from paligemma_jax.tasks import geometry
from paligemma_jax.wording import phrases

EXTRA = "pip install 'paligemma-jax[notebook]'"
MAX_TEXT = 60  # letters of an answer in a line
MAX_SHOWN = 12  # pictures of several answers
LARGE, SMALL = 640, 320  # px of a picture's longer side, alone and among others

# Returns the pictures (of Pillow, or uint8[H, W, 3]) that an answer is about.
OpenImages = Callable[[], Sequence[Any]]


class Answer(dict):
    """A row of predictions: images, prefix, prediction, and for detection its objects.

    Args:
      row: as a line of `predict`.
      open_images: opens the pictures that it is about, when they are shown.
      size: (height, width) of the first one in px; None: it is not known before it is opened.
      colors: "#rrggbb" by label; labels without one have that of their letters.
    """

    def __init__(
        self,
        row: Mapping[str, Any],
        open_images: OpenImages = lambda: (),
        *,
        size: tuple[int, int] | None = None,
        colors: Mapping[str, str] | None = None,
    ):
        super().__init__(row)
        self._open, self._size, self._colors = open_images, size, dict(colors or {})

    @property
    def text(self) -> str:
        """The answer as the model wrote it."""
        return self.get("prediction", "")

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The detections; none where the task has none."""
        return self.get("detections", [])

    @property
    def labels(self) -> list[str]:
        """The label of each object."""
        return [one["label"] for one in self.objects]

    @property
    def scores(self) -> np.ndarray:
        """The confidence of each object, float32[n]."""
        return np.array([one["score"] for one in self.objects], np.float32)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image, in px."""
        if self._size is None:
            picture = self._first()
            self._size = picture.height, picture.width
        return self._size

    @property
    def xyxy(self) -> np.ndarray:
        """Boxes, float32[n, 4]: left, top, right, bottom in px of the image."""
        if not self.objects:
            return np.zeros((0, 4), np.float32)
        if all("xyxy" in one for one in self.objects):
            return np.array([one["xyxy"] for one in self.objects], np.float32)
        boxes = np.array([one["box_yxyx"] for one in self.objects], np.float32)
        return (boxes * np.tile(self.size, 2))[:, [1, 0, 3, 2]]

    @property
    def masks(self) -> np.ndarray | None:
        """Masks, bool[n, H, W] in px of the image; None where objects have none."""
        if not self.objects or any("mask" not in one for one in self.objects):
            return None
        drawn = [
            geometry.paste_mask(
                np.where(geometry.unpack_mask(one["mask"]), 1.0, -1.0),
                np.array(one["box_yxyx"]),
                *self.size,
            )
            for one in self.objects
        ]
        return np.stack(drawn)

    def picture(self) -> Any:
        """Returns the image with boxes, labels and masks in it, as an image of Pillow.

        Answers in words stand below it.
        """
        opened = list(self._open())
        if not opened:
            raise ValueError("this answer is about no image")
        if "detections" not in self:
            return drawing.add_caption(drawing.beside(opened), self.text)
        has_masks = bool(self.objects) and all("mask" in one for one in self.objects)
        first = drawing.draw_boxes(
            opened[0],
            np.array([one["box_yxyx"] for one in self.objects], np.float32).reshape(-1, 4),
            self.labels,
            [one["score"] for one in self.objects],
            masks=[one["mask"] for one in self.objects] if has_masks else None,
            colors=self._choose_colors(),
        )
        return drawing.beside([first, *opened[1:]])

    def plot(self, axes: Any = None) -> Any:
        """Draws `picture` into matplotlib's axes, new ones by default, and returns them."""
        with needing("matplotlib"):
            from matplotlib import pyplot
        axes = axes or pyplot.subplots()[1]
        axes.imshow(np.asarray(self.picture()))
        axes.set_title(shorten(self.get("prefix", "")))
        axes.set_axis_off()
        return axes

    def to_dataframe(self) -> Any:
        """Returns its objects as a table of pandas; see `Answers.to_dataframe`."""
        return Answers([self]).to_dataframe()

    def to_supervision(self) -> Any:
        """Returns its objects as `supervision.Detections`, in px of the image.

        class_id counts the labels in the order of the alphabet; data["class_name"] has them.
        """
        with needing("supervision"):
            import supervision
        names = sorted(set(self.labels))
        return supervision.Detections(
            xyxy=self.xyxy,
            confidence=self.scores,
            class_id=np.array([names.index(label) for label in self.labels], int),
            mask=self.masks,
            data={"class_name": np.array(self.labels, dtype=str)},
        )

    def __repr__(self) -> str:
        about = ", ".join(map(str, self.get("images", ()))) or self.get("source", "")
        if "error" in self:
            return one_line(f"Answer({about}: {self['error']})")
        if "detections" not in self:
            return one_line(f"Answer({about}: {self.text!r})")
        return one_line(f"Answer({about}: {count_labels(self.labels) or 'nothing'})")

    def _repr_html_(self) -> str:
        return page.render(
            "notebook.html", answers=[self.values_to_show(LARGE)], note="", alone=True
        )

    def values_to_show(self, side: int) -> dict[str, Any]:
        """Returns what a template shows of it, its picture so many px at most."""
        values = {
            "prompt": self.get("prefix", ""),
            "text": self.get("error") or self.text,
            "name": ", ".join(map(str, self.get("images", ()))),
            "picture": "",
            "objects": list(zip(self.labels, self.scores.tolist(), strict=True)),
            "failed": "error" in self,
        }
        try:
            picture = self.picture() if "error" not in self else None
        except (ValueError, OSError):  # moved or removed meanwhile: the words are left
            picture = None
        if picture is not None:
            picture.thumbnail((side, side))
            buffer = io.BytesIO()
            picture.save(buffer, format="JPEG", quality=88)
            values["picture"] = page.embed(buffer.getvalue(), "image/jpeg")
        return values

    def _first(self) -> Any:
        opened = list(self._open())
        if not opened:
            raise ValueError("this answer is about no image, so its boxes have no place in pixels")
        return drawing.beside(opened[:1])

    def _choose_colors(self) -> dict[str, str]:
        new = {label: drawing.choose_colors([label])[label] for label in self.labels}
        return new | self._colors


class Answers(list[Answer]):
    """Answers in the order of their images."""

    def to_dataframe(self) -> Any:
        """Returns a table of pandas: a row for each object, or for each answer in words.

        Columns: images, prefix, prediction, logp, stopped; of objects also label, score and
        left, top, right, bottom in px of the image. An image without objects has no row.
        """
        with needing("pandas"):
            import pandas
        common = ("images", "prefix", "prediction", "logp", "stopped", "error", "frame", "time_s")
        rows = []
        for one in self:
            row = {key: one[key] for key in common if key in one}
            row["images"] = ", ".join(map(str, one.get("images", ())))
            if "detections" not in one:
                rows.append(row)
                continue
            for label, score, box in zip(one.labels, one.scores, one.xyxy, strict=True):
                sides = dict(zip(("left", "top", "right", "bottom"), box.tolist(), strict=True))
                rows.append(row | {"label": label, "score": float(score)} | sides)
        return pandas.DataFrame(rows)

    def to_supervision(self) -> list[Any]:
        """Returns `supervision.Detections` of each; class_id counts the labels of all of them."""
        names = sorted({label for one in self for label in one.labels})
        made = [one.to_supervision() for one in self]
        for one, detections in zip(self, made, strict=True):
            detections.class_id = np.array([names.index(label) for label in one.labels], int)
        return made

    def plot(self, *, columns: int = 4, limit: int = MAX_SHOWN) -> Any:
        """Draws the first ones beside each other with matplotlib, and returns the figure."""
        with needing("matplotlib"):
            from matplotlib import pyplot
        shown = self[:limit]
        if not shown:
            raise ValueError("there is no answer to draw")
        columns = min(columns, len(shown))
        rows = -(-len(shown) // columns)
        size = (4 * columns, 4 * rows)
        figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
        for place in axes.flat:
            place.set_axis_off()
        for one, place in zip(shown, axes.flat, strict=False):
            one.plot(place)
        return figure

    def __repr__(self) -> str:
        labels = [label for one in self for label in one.labels]
        failed = sum("error" in one for one in self)
        parts = [phrases.count(len(self), "answers"), count_labels(labels)]
        parts += [f"{failed} not read"] if failed else []
        return one_line(f"Answers({', '.join(filter(None, parts))})")

    def shown(self) -> list[dict[str, Any]]:
        """Returns what a template shows of the first ones."""
        side = LARGE if len(self) == 1 else SMALL
        return [one.values_to_show(side) for one in self[:MAX_SHOWN]]

    def _repr_html_(self) -> str:
        shown = self.shown()
        more = len(self) - len(shown)
        note = f"and {phrases.count(more, 'more answers')}" if more else ""
        return page.render("notebook.html", answers=shown, note=note, alone=len(self) == 1)


@contextlib.contextmanager
def needing(package: str) -> Iterator[None]:
    """Within `with`, an optional library is imported; of a missing one it is said how to get it."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"this needs {package}, which is not installed: {EXTRA}") from error


def shorten(text: str, limit: int = MAX_TEXT) -> str:
    """Returns a text of at most so many letters, on one line."""
    text = " ".join(phrases.visible(text).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def one_line(text: str) -> str:
    """Returns what an object is in a line; of a long one the middle is left out."""
    text, most = " ".join(phrases.visible(text).split()), 160
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most // 2 - 5) :]}"


def count_labels(labels: Iterable[str]) -> str:
    """Returns "2 cat, 1 dog", the most frequent ones."""
    labels = list(labels)
    counts = {label: labels.count(label) for label in dict.fromkeys(labels)}
    shown = sorted(counts, key=lambda label: -counts[label])
    words = [f"{counts[label]} {shorten(label, 20)}" for label in shown[:4]]
    return ", ".join(words) + (f" and {len(shown) - 4} more labels" if len(shown) > 4 else "")
