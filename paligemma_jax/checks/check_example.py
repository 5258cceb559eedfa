"""One example as a model is trained on it: its tokens, and the picture with its boxes."""

from typing import Any

from paligemma_jax.assembly import datasets
from paligemma_jax.checks import explain
from paligemma_jax.data import image_folder, images, records, tokens
from paligemma_jax.reports import drawing, sections
from paligemma_jax.settings import schema

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

    An image that cannot be read is said in its place. Noise boxes lie where those of `examples`,
    the training data, do.

    Raises:
      ValueError: noise boxes that the task or the tokenizer does not allow.
    """
    explained = explain.explain(
        record,
        tokenizer,
        text_len=settings.input.text_len,
        lowercase=settings.input.lowercase,
        num_image_tokens=num_image_tokens,
        noise=datasets.make_noise(settings, tokenizer, examples),
    )
    answer = explain.answer(explained, tokenizer)
    facts = (
        ("row", record.source),
        ("images", ", ".join(map(image_folder.as_typed, record.images)) or "none"),
        ("prefix", repr(record.prefix)),
        ("suffix", repr(record.suffix)),
        ("read back", repr(answer)),
        ("mask_ar", "1: hidden from the tokens before it; 0: image and prefix see each other"),
        ("mask_loss", "1: learnt, the suffix and eos only"),
    )
    parts: list[Any] = [sections.Facts(facts), token_table(explained)]
    parsed = datasets.make_reader(settings).parse(answer)
    for number, path in enumerate(record.images):
        try:
            pixels = images.load(path, res=settings.res, source=record.source)
        except ValueError as error:
            parts.append(sections.Facts(((f"image {number + 1}", str(error)),)))
            continue
        picture = drawing.enlarge(pixels, at_least=MIN_SIDE)
        caption = f"What the model sees: {settings.res} x {settings.res} px"
        if number == 0 and len(getattr(parsed, "labels", ())):
            caption += ", and the boxes read back from the tokens"
            picture = drawing.draw_boxes(picture, parsed.boxes_yxyx, parsed.labels)
        parts.append(sections.Picture(picture, caption))
    return sections.Section("example", "One example, token by token", tuple(parts))


def token_table(explained: list[explain.Token]) -> sections.Table:
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
