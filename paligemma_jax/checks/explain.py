"""One example, token by token, as a model is trained on it."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from paligemma_jax.data import noise_boxes, prefix_lm, records, tokens

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
    found = [
        dataclasses.replace(image, position=i * num_image_tokens) for i in range(len(record.images))
    ]
    start = len(record.images) * num_image_tokens
    for i in range(int(row["mask_input"].sum())):
        part = "suffix" if row["mask_ar"][i] else "prefix"
        piece = tokenizer.piece(row["text"][i])
        found.append(Token(part, piece, int(row["text"][i]), *_masks(row, i), start + i))
    if padding := int((~row["mask_input"]).sum()):
        piece = tokenizer.piece(tokenizer.pad)
        found.append(Token("padding", piece, tokenizer.pad, *_masks(row, -1), None, padding))
    return found


def answer(explained: list[Token], tokenizer: tokens.Tokenizer) -> str:
    """Returns the text that the suffix's tokens spell."""
    ids = [t.token_id for t in explained if t.part == "suffix" and t.token_id is not None]
    return tokenizer.decode(ids)


def _masks(row: Mapping[str, np.ndarray], i: int) -> tuple[bool, bool, bool]:
    return bool(row["mask_ar"][i]), bool(row["mask_loss"][i]), bool(row["mask_input"][i])
