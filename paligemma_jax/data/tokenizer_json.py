"""Tokenizers in a `tokenizer.json`, as Hugging Face's tokenizers library saves them.

Byte-level byte-pair encoding, as GPT-2 and Phi have it: 256 pieces stand for bytes, the others for
several of them, and a control piece ends a text.
"""

import json
from collections.abc import Iterable
from typing import Any

from paligemma_jax.data import locations

EXTRA = "pip install 'paligemma_jax[tokenizers]'"


class ByteLevel:
    """A `tokens.Tokenizer` of byte-level pieces. There are no `<loc>` and `<seg>`.

    Attributes:
      control: the piece that is bos, eos and padding alike; masks tell them apart.
    """

    loc_ids = seg_ids = range(0)

    def __init__(
        self,
        model: bytes,
        name: str,
        *,
        control: str,
        prompt: tuple[str, str],
        answer_start: str,
    ):
        """Takes the bytes of a tokenizer.json.

        Args:
          model: the bytes.
          name: where they are from, for errors.
          control: the piece that begins, ends and pads texts.
          prompt: what stands before and behind a prefix.
          answer_start: what stands before an answer.
        """
        self.model, self.answer_start = model, answer_start
        self._name, self._prompt = name, prompt
        self._tokenizer = _load(model, name)
        end = self._tokenizer.token_to_id(control)
        if end is None:
            raise ValueError(f"{name}: the tokenizer has no piece '{control}'; use the model's own")
        self.pad = self.eos = self.bos = int(end)
        added = self._tokenizer.get_added_tokens_decoder()
        self._added = {int(i): token for i, token in added.items()}
        highest = max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.vocab_size = highest + 1

    def encode(self, text: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text {text!r:.80} cannot be encoded as UTF-8") from error
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, prefix: str) -> list[int]:
        before, behind = self._prompt
        return [self.bos, *self.encode(f"{before}{prefix}{behind}")]

    def encode_answer(self, suffix: str) -> list[int]:
        return self.encode(f"{self.answer_start}{suffix}")

    def decode(self, ids: Iterable[int], *, stop_at_eos: bool = True) -> str:
        """As `tokens.Tokenizer` says; bytes that are no UTF-8 become U+FFFD."""
        kept = [int(i) for i in ids]
        if stop_at_eos and self.eos in kept:
            kept = kept[: kept.index(self.eos)]
        known = [i for i in kept if 0 <= i < self.vocab_size]
        text = self._tokenizer.decode(known, skip_special_tokens=True)
        return text.removeprefix(self.answer_start)

    def piece(self, token_id: int) -> str:
        """As `tokens.Tokenizer` says; "Ġ" is a space."""
        return self._tokenizer.id_to_token(int(token_id)) or ""

    def spellings(self) -> list[bytes | None]:
        byte_of = _byte_of_letter()

        def spell(token_id: int) -> bytes | None:
            if token_id in self._added:
                added = self._added[token_id]
                return None if added.special else added.content.encode()
            piece = self.piece(token_id)
            return bytes(byte_of[letter] for letter in piece) if piece else None

        return [spell(token_id) for token_id in range(self.vocab_size)]


def load_moondream(model: bytes, name: str) -> ByteLevel:
    """Returns the tokenizer of a Moondream2: questions and answers as it was trained on."""
    return ByteLevel(
        model,
        name,
        control="<|endoftext|>",
        prompt=("\n\nQuestion: ", "\n\nAnswer:"),
        answer_start=" ",
    )


def _load(model: bytes, name: str) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ValueError(f"{name}: a tokenizer.json needs tokenizers ({error}): {EXTRA}") from error
    if what := locations.describe_head(model):
        raise ValueError(f"{name}: expected a tokenizer.json, found {what}")
    try:
        text = model.decode()
        kind = json.loads(text)["model"]["type"], json.loads(text)["decoder"]["type"]
        tokenizer = tokenizers.Tokenizer.from_str(text)
    # The library raises its parser's errors as plain exceptions.
    except Exception as error:
        raise ValueError(f"{name}: not a tokenizer.json ({error!s:.200})") from error
    if kind != ("BPE", "ByteLevel"):
        raise ValueError(
            f"{name}: expected byte-level byte-pair encoding (model BPE, decoder ByteLevel), "
            f"found model {kind[0]}, decoder {kind[1]}"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _byte_of_letter() -> dict[str, int]:
    """Returns what byte each letter of a piece stands for, as GPT-2's release has them.

    Bytes that Latin-1 prints stand for themselves, the others for letters from U+0100 on.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printed)
    letters = {chr(byte): byte for byte in printed}
    return letters | {chr(0x100 + i): byte for i, byte in enumerate(others)}
