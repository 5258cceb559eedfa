"""Detection as text: `<locY1><locX1><locY2><locX2> label` joined by ` ; `.

    <loc0390><loc0241><loc0472><loc0440> fracture ; <loc0010><loc0020><loc0900><loc0800> hand

Every number has four digits; box order and scale are those of `geometry`. The empty text means that
the image holds none of the objects asked for. Text of a model is read by `parse`, which never
raises; text to train on is held to the grammar by `check`.
"""

import codecs
import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from paligemma_jax.tasks import geometry

SEPARATOR = " ; "
EVERYTHING = "all classes"  # "detect all classes" asks for whatever is there

# Of an answer in a message: what is shown, and how much of it before the first difference.
MAX_SHOWN = 120
BEFORE = 60

# Why `parse` drops something, in the order in which it looks, and how `check` says it.
REASONS = {
    "empty": "is empty: a ';' must stand between two objects",
    "no_loc": "has no <loc> token before its label",
    "loc_count": "does not have exactly four <loc> tokens",
    "loc_range": "has a <loc> token that is not four digits from 0000 to 1023",
    "inverted": "has its second corner above or left of the first (order is y1 x1 y2 x2)",
    "zero_area": "covers no area",
    "no_label": "has no label",
    "seg_token": "holds <seg> tokens, which detection has no use for",
}

_LOC = re.compile(r"<loc([0-9]+)>")
_SEG = re.compile(r"<seg[0-9]+>")
# A run of loc tokens, then everything up to the next loc token or ';'.
_OBJECT = re.compile(
    r"\s*(?P<locs>(?:\s*<loc[0-9]+>)*)(?P<rest>(?:(?!<loc[0-9]+>)[^;])*)(?P<separator>;?)"
)
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """The objects of one image.

    Attributes:
      boxes_yxyx: float32[n, 4] in 0..1 of the image.
      labels: n texts.
      dropped: how often `parse` dropped something, by the reasons in `REASONS`; all of them count
        objects, except that `seg_token` counts tokens inside objects that are kept.
    """

    boxes_yxyx: np.ndarray
    labels: tuple[str, ...]
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)


def parse(text: str, *, convention: str = geometry.DEFAULT_CONVENTION) -> Detections:
    """Returns the well-formed objects in a model's text; the malformed are dropped and counted.

    Never raises on text. Tolerated beyond the canonical form: any white space, a missing separator
    before a `<loc>` token, `<seg>` tokens (removed, counted).
    """
    objects = list(cut_objects(text))
    kept = [obj for obj in objects if obj.problem is None]
    dropped = Counter(obj.problem for obj in objects if obj.problem)
    if num_segs := sum(len(_SEG.findall(obj.rest)) for obj in kept):
        dropped["seg_token"] = num_segs
    bins = np.array([obj.bins for obj in kept], np.int32)
    return Detections(
        boxes_yxyx=geometry.from_bins(bins, convention=convention),
        labels=tuple(obj.label for obj in kept),
        dropped=dict(dropped),
    )


def format(  # the counterpart of parse
    detections: Detections, *, convention: str = geometry.DEFAULT_CONVENTION
) -> str:
    """Returns the canonical text of objects; `parse` gives them back within half a bin.

    (Within one bin at the far edge of "1024": see `geometry`.)

    Raises:
      ValueError: a box that is not finite, leaves 0..1, or is empty once rounded to bins; a label
        that `parse` would not give back. Clip boxes and leave out the tiny ones beforehand.
    """
    boxes = np.asarray(detections.boxes_yxyx, np.float32).reshape(-1, 4)
    if len(boxes) != len(detections.labels):
        raise ValueError(f"{len(boxes)} boxes, but {len(detections.labels)} labels")
    if not np.all((boxes >= 0) & (boxes <= 1)):  # False for nan too
        raise ValueError(f"boxes must be yxyx in 0..1 of the image; found {boxes.tolist()}")
    texts = []
    all_bins = geometry.to_bins(boxes, convention=convention)
    for bins, label in zip(all_bins, detections.labels, strict=True):
        text = _write(bins, label)
        objects = list(cut_objects(text))
        if len(objects) == 1 and (problem := objects[0].problem):
            raise ValueError(f"object {len(texts) + 1} {REASONS[problem]}: '{text}'")
        if len(objects) != 1 or objects[0].label != label:
            raise ValueError(
                f"object {len(texts) + 1} has a label that does not read back: '{text}'"
            )
        texts.append(text)
    return SEPARATOR.join(texts)


def check(suffix: str) -> str | None:
    """Returns what keeps a training suffix from being canonical, or None if nothing does.

    The empty suffix is an image without objects (so Roboflow exports it) and is allowed.
    """
    objects = list(cut_objects(suffix))
    for number, obj in enumerate(objects, start=1):
        problem = obj.problem or ("seg_token" if _SEG.search(obj.rest) else None)
        if problem:
            return f"object {number} {REASONS[problem]}: '{shorten(obj.text)}'"
    if suffix != SEPARATOR.join(_write(obj.bins, obj.label) for obj in objects):
        labels = [without_comma(obj.label) for obj in objects]
        meant = (_write(obj.bins, label) for obj, label in zip(objects, labels, strict=True))
        return describe_difference(suffix, SEPARATOR.join(meant))
    return None


def prefix_classes(prefix: str, *, verb: str = "detect") -> list[str]:
    """Returns the labels a prompt asks for: "detect a ; b" -> ["a", "b"]; [] if it names none."""
    first, _, labels = prefix.strip().partition(" ")
    if first.lower() != verb or labels.strip().lower() == EVERYTHING:
        return []
    return [label for part in labels.split(";") if (label := " ".join(part.split()))]


def box_scores(tokens: Sequence[tuple[str, float]]) -> np.ndarray:
    """Returns float32[n] in 0..1: how sure the model was of each object that `parse` finds.

    The confidence is P(box) * P(label), where P(box) is the geometric mean of the probabilities of
    the four `<loc>` tokens and P(label) that of the label's tokens, so neither a long label nor a
    rare one makes a box weak. Separators and `<seg>` tokens do not count. It ranks boxes; it is
    not calibrated.

    Args:
      tokens: (piece, log-probability) of the generated tokens up to, not including, the end of
        text. The result is aligned with `parse(join_pieces(piece for piece, _ in tokens))`.
    """
    text, spans = piece_spans([piece for piece, _ in tokens])
    kept = [obj for obj in cut_objects(text) if obj.problem is None]
    # part_of[c]: 2i for a character of object i's loc tokens, 2i+1 of its label, -1 of neither.
    part_of = np.full(len(text), -1)
    for number, obj in enumerate(kept):
        part_of[obj.locs_start : obj.rest_start] = 2 * number
        without_segs = _SEG.sub(lambda seg: " " * len(seg[0]), obj.rest)
        for word in re.finditer(r"\S+", without_segs):
            part_of[obj.rest_start + word.start() : obj.rest_start + word.end()] = 2 * number + 1
    logps = logps_by_part(part_of, spans, tokens, num_parts=2 * len(kept))
    means = np.array([np.mean(part) for part in logps], np.float32).reshape(-1, 2)
    return np.exp(means.sum(axis=1))


def label_scores(tokens: Sequence[tuple[str, float]]) -> np.ndarray:
    """Returns float32[n] in 0..1: how likely each object's label is after its `<loc>` tokens.

    The confidence of models that are trained with noise boxes (arXiv:2412.03555, App. C): where
    noise is likely, a label is not. A label's own space counts, for it may be a token by itself,
    the one that stands where noise would. Arguments and order as in `box_scores`.
    """
    text, spans = piece_spans([piece for piece, _ in tokens])
    kept = [obj for obj in cut_objects(text) if obj.problem is None]
    part_of = np.full(len(text), -1)
    for number, obj in enumerate(kept):
        part_of[obj.rest_start : obj.rest_start + len(obj.rest.rstrip())] = number
    logps = logps_by_part(part_of, spans, tokens, num_parts=len(kept))
    return np.exp(np.array([sum(part) for part in logps], np.float32))


def drop_unfinished(tokens: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Returns the tokens of whole objects, for text that was cut off anywhere.

    An object is whole where a separator follows, or the next object's `<loc>` tokens do.
    """
    end, before = 0, ""
    for number, (piece, _) in enumerate(tokens):
        follows_label = _LOC.fullmatch(piece) and not (_LOC.fullmatch(before) or ";" in before)
        if ";" in piece or (follows_label and before):
            end = number
        before = piece if piece.strip(" \u2581") else before
    return list(tokens[:end])


def join_pieces(pieces: Iterable[str]) -> str:
    """Returns the text of sentencepiece pieces: "▁" is a space, "<0xC3>" a byte of UTF-8."""
    return piece_spans(pieces)[0]


@dataclasses.dataclass(frozen=True)
class TextObject:
    """One stretch of text that should be an object; offsets count characters of the whole text."""

    text: str
    locs: tuple[str, ...]
    locs_start: int
    rest: str
    rest_start: int

    @property
    def label(self) -> str:
        return " ".join(_SEG.sub(" ", self.rest).split())

    @property
    def bins(self) -> list[int]:
        return [int(digits) for digits in self.locs]

    @property
    def problem(self) -> str | None:
        """The first key of REASONS that keeps this from being an object."""
        return self.problem_of_box or (None if self.label else "no_label")

    @property
    def problem_of_box(self) -> str | None:
        """The first key of REASONS that keeps this from having a box."""
        if not self.locs:
            return "no_loc" if self.rest.strip() else "empty"
        if len(self.locs) != 4:
            return "loc_count"
        if any(len(digits) != 4 or int(digits) >= geometry.NUM_BINS for digits in self.locs):
            return "loc_range"
        y1, x1, y2, x2 = self.bins
        if y2 < y1 or x2 < x1:
            return "inverted"
        return "zero_area" if y2 == y1 or x2 == x1 else None


def cut_objects(text: str) -> Iterator[TextObject]:
    """Cuts a text at every ';' and before every run of loc tokens. Blank text has no objects."""
    expected = False  # a separator promises another object
    for match in _OBJECT.finditer(text):
        is_blank = not match["locs"] and not match["rest"].strip() and not match["separator"]
        if is_blank and not expected:
            continue
        expected = bool(match["separator"])
        yield TextObject(
            text=match[0].removesuffix(";").strip(),
            locs=tuple(_LOC.findall(match["locs"])),
            locs_start=match.start("locs"),
            rest=match["rest"],
            rest_start=match.start("rest"),
        )


def logps_by_part(
    part_of: np.ndarray,
    spans: Sequence[tuple[int, int]],
    tokens: Sequence[tuple[str, float]],
    *,
    num_parts: int,
) -> list[list[float]]:
    """Returns each part's log-probabilities; `part_of` is int[characters], -1 where there is none.

    A token that reaches into several parts belongs to all of them.
    """
    logps: list[list[float]] = [[] for _ in range(num_parts)]
    for (start, stop), (_, logp) in zip(spans, tokens, strict=True):
        for part in set(part_of[start:stop].tolist()) - {-1}:
            logps[part].append(float(logp))
    return logps


def _write(bins: Iterable[int], label: str) -> str:
    return "".join(f"<loc{value:04d}>" for value in bins) + f" {label}"


def piece_spans(pieces: Iterable[str]) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text of sentencepiece pieces and each piece's characters [start, stop) in it.

    A byte of an unfinished character spans the character that it will become part of.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text, spans = "", []
    for piece in pieces:
        byte = _BYTE_PIECE.fullmatch(piece)
        raw = (
            bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode(errors="replace")
        )
        start = len(text)
        text += decoder.decode(raw)
        spans.append((start, max(len(text), start + 1) if byte else len(text)))
    return text + decoder.decode(b"", final=True), spans


def describe_difference(text: str, meant: str) -> str:
    """Returns a message that shows both texts from shortly before where they begin to differ."""
    pairs = zip(text, meant, strict=False)
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    start = max(0, same - BEFORE) if max(len(text), len(meant)) > MAX_SHOWN else 0
    return (
        f"spacing or separators differ: '{_excerpt(text, start)}' should be "
        f"'{_excerpt(meant, start)}'"
    )


def without_comma(label: str) -> str:
    """Returns a label without a comma that was meant to part it from the next object."""
    return label.rstrip(", ") or label


def shorten(text: str) -> str:
    """Returns the beginning of a text."""
    return _excerpt(text, 0)


def _excerpt(text: str, start: int) -> str:
    shown = text[start : start + MAX_SHOWN]
    return "..." * (start > 0) + shown + "..." * (start + MAX_SHOWN < len(text))
