"""Examples as a model is trained on them: one token by token, and what augmentation makes of some.

No weights are read. Boxes are those of the answers that would be learnt.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from paligemma_jax.assembly import datasets, training_data
from paligemma_jax.console import say
from paligemma_jax.data import augment, images, locations, noise_boxes, prefix_lm, records, tokens
from paligemma_jax.reports import drawing, sections, sheets
from paligemma_jax.settings import schema
from paligemma_jax.tasks import box_text

IMAGE_PIECE = "<image>"


@dataclasses.dataclass(frozen=True)
class Token:
    """A token of a training row, or several that look alike.

    Attributes:
      part: "image", "prefix", "suffix" or "padding".
      piece: as the vocabulary spells it.
      token_id: None for images, which are embedded and not looked up.
      mask_ar: hidden from what stands before it.
      mask_loss: learnt.
      mask_input: no padding.
      position: its number among the tokens that are no padding; None for padding.
      count: how many in a row it stands for; `position` is that of the first.
    """

    part: str
    piece: str
    token_id: int | None
    mask_ar: bool
    mask_loss: bool
    mask_input: bool
    position: int | None
    count: int = 1


def explain(
    record: records.Record,
    tokenizer: tokens.Tokenizer,
    *,
    text_len: int,
    lowercase: bool,
    num_image_tokens: int,
    noise: noise_boxes.NoiseBoxes | None = None,
) -> list[Token]:
    """Returns the tokens of one record, images first, with its padding as one entry.

    A text that does not fit is cut, so that what is lost can be seen.

    Args:
      record: with a suffix.
      tokenizer: of the run.
      text_len, lowercase: as in `rows.encode_training`.
      num_image_tokens: tokens of one image.
      noise: fills the answer up, here as in the first example of a run.
    """
    row = prefix_lm.encode_training(
        tokenizer,
        record.prefix,
        record.suffix or "",
        text_len=text_len,
        lowercase=lowercase,
        allow_truncation=True,
    )
    row = noise.fill(row, 0) if noise else row
    image = Token("image", IMAGE_PIECE, None, False, False, True, 0, num_image_tokens)
    shown = [
        dataclasses.replace(image, position=i * num_image_tokens) for i in range(len(record.images))
    ]
    start = len(record.images) * num_image_tokens
    for i in range(int(row["mask_input"].sum())):
        part = "suffix" if row["mask_ar"][i] else "prefix"
        piece = tokenizer.piece(row["text"][i])
        shown.append(Token(part, piece, int(row["text"][i]), *_masks(row, i), start + i))
    if padding := int((~row["mask_input"]).sum()):
        piece = tokenizer.piece(tokenizer.pad)
        shown.append(Token("padding", piece, tokenizer.pad, *_masks(row, -1), None, padding))
    return shown


def answer(explained: list[Token], tokenizer: tokens.Tokenizer) -> str:
    """Returns the text that the suffix's tokens spell."""
    ids = [t.token_id for t in explained if t.part == "suffix" and t.token_id is not None]
    return tokenizer.decode(ids)


def _masks(row: Mapping[str, np.ndarray], i: int) -> tuple[bool, bool, bool]:
    return bool(row["mask_ar"][i]), bool(row["mask_loss"][i]), bool(row["mask_input"][i])


MIN_SIDE = 448  # px of the picture on the page
NUM_SHOWN = 40  # tokens that a terminal shows
HEADER = ("#", "piece", "id", "mask_ar", "mask_loss", "mask_input", "position")


def choose(examples: datasets.Records, line: int | None) -> records.Record | None:
    """Returns the row at that line of the first training set, or the first one with an answer.

    Raises:
      ValueError: no readable row at that line.
    """
    if line is None:
        return next((r for r in examples if r.suffix), examples[0] if examples else None)
    file = examples[0].source.rpartition(":")[0] if examples else ""
    lines = ((*r.source.rpartition(":"), r) for r in examples)
    by_line = {int(number): r for name, _, number, r in lines if name == file}
    if line not in by_line:
        known = f"{min(by_line)} to {max(by_line)}" if by_line else "none"
        raise ValueError(f"--example {line}: no good row at that line of {file}; lines: {known}")
    return by_line[line]


def look(
    settings: schema.Settings,
    record: records.Record,
    tokenizer: tokens.Tokenizer,
    *,
    examples: datasets.Records,
    num_image_tokens: int,
) -> sections.Section:
    """Returns the section on one example, which is shown as it is in the file: not augmented.

    Where an image cannot be read stands the reason why. Noise boxes lie where those of `examples`,
    the training data, do.

    Raises:
      ValueError: noise boxes that the task or the tokenizer does not allow.
    """
    explained = explain(
        record,
        tokenizer,
        text_len=settings.input.text_len,
        lowercase=settings.input.lowercase,
        num_image_tokens=num_image_tokens,
        noise=datasets.make_noise(settings, tokenizer, examples),
    )
    read_back = answer(explained, tokenizer)
    facts = (
        ("row", record.source),
        ("images", ", ".join(map(locations.as_typed, record.images)) or "none"),
        ("prefix", repr(record.prefix)),
        ("suffix", repr(record.suffix)),
        ("read back", repr(read_back)),
        ("mask_ar", "1: hidden from the tokens before it; 0: image and prefix see each other"),
        ("mask_loss", "1: learnt, the suffix and eos only"),
    )
    parts: list[Any] = [sections.Facts(facts), token_table(explained)]
    parsed = datasets.make_reader(settings).parse(read_back)
    for number, path in enumerate(record.images):
        try:
            pixels = images.load(
                path,
                res=settings.res,
                resampling=datasets.resampling(settings),
                source=record.source,
            )
        except ValueError as error:
            parts.append(sections.Facts(((f"image {number + 1}", str(error)),)))
            continue
        picture = drawing.enlarge(images.show(pixels), at_least=MIN_SIDE)
        caption = f"What the model sees: {settings.res} x {settings.res} px"
        if number == 0 and len(getattr(parsed, "labels", ())):
            caption += ", and the boxes read back from the tokens"
            classes = training_data.find_asked(settings.task, examples).classes
            colors = drawing.choose_colors({*classes, *parsed.labels})
            picture = drawing.draw_boxes(picture, parsed.boxes_yxyx, parsed.labels, colors=colors)
        parts.append(sections.Picture(picture, caption))
    return sections.Section("example", "One example, token by token", tuple(parts))


def token_table(explained: list[Token]) -> sections.Table:
    """Returns one line per token; images and padding are a line each."""
    lines, styles, number = [], [], 0
    for token in explained:
        last = number + token.count - 1
        position = "-" if token.position is None else str(token.position)
        if token.count > 1 and token.position is not None:
            position += f"-{token.position + token.count - 1}"
        masks = (str(int(m)) for m in (token.mask_ar, token.mask_loss, token.mask_input))
        lines.append(
            (
                str(number) if token.count == 1 else f"{number}-{last}",
                repr(token.piece)[1:-1] + (f" x {token.count}" if token.count > 1 else ""),
                "-" if token.token_id is None else str(token.token_id),
                *masks,
                position,
            )
        )
        styles.append(token.part)
        number += token.count
    return sections.Table("Tokens", HEADER, tuple(lines), tuple(styles), num_shown=NUM_SHOWN)


def write_augment_sheet(
    settings: schema.Settings,
    path: str | os.PathLike[str],
    *,
    examples: int = 6,
    changes: int = 5,
) -> None:
    """Writes the sheet as PNG: the first `examples` of the run that have an image, in rows.

    Args:
      settings: all settings.
      path: of the sheet.
      examples: how many rows.
      changes: how many changed pictures each has, those of its first so many passes.

    Raises:
      ValueError: nothing is augmented, or no record has an image.
    """
    augmenter = training_data.make_augmenter(settings)
    if augmenter is None:
        raise ValueError("no augmentation is on: set keys under input.augment, as flip_lr=0.5")
    all_records, _ = training_data.read_sources(settings)
    augmenter.check(all_records)
    chosen = [record for record in all_records if record.images][:examples]
    if not chosen:
        raise ValueError("no record has an image to draw")
    res = max(settings.res, sheets.ROW_SIDE)
    resampling = datasets.resampling(settings)
    drawn = []
    with say.progress("drawing", unit="examples") as report:
        for number, record in enumerate(chosen, 1):
            pixels = images.load(record.images[0], res=res, resampling=resampling)
            plain = _picture(pixels, record.suffix or "", augmenter)
            positions = [number + turn * len(all_records) for turn in range(changes)]
            how: Any = {"res": res, "resampling": resampling}
            changed = [_change(record, position, augmenter, **how) for position in positions]
            title = f"{record.source}: {record.prefix}"
            drawn.append((title, [plain, *changed]))
            report(number, len(chosen))
    sheets.write_rows(
        path, drawn, classes=training_data.find_asked(settings.task, all_records).classes
    )
    say.info(f"{os.fspath(path)}: {training_data.describe_augmentation(settings)}")


def _change(
    record: records.Record,
    position: int,
    augmenter: augment.Augmenter,
    *,
    res: int,
    resampling: str,
) -> sheets.Picture:
    """Returns an example as it is drawn at a position of the run."""
    numbers = augmenter.draw(record, position).to_array()
    pixels = augment.load_op(
        record.images[0],
        numbers,
        res=res,
        settings=augmenter.settings,
        resampling=resampling,
    ).numpy()
    return _picture(pixels, augmenter.answer(record, position), augmenter)


def _picture(pixels, suffix: str, augmenter: augment.Augmenter) -> sheets.Picture:
    boxes = box_text.Detections(np.zeros((0, 4)), ())
    if augmenter.convention:
        boxes = box_text.parse(prefix_lm.clean("", suffix)[1], convention=augmenter.convention)
    return sheets.Picture(images.show(pixels), boxes.boxes_yxyx, boxes.labels)
