"""Text to token ids and back.

A vocabulary holds 1024 `<loc>` and 128 `<seg>` pieces in a row; where a sentencepiece file lacks
them (plain Gemma's) they are added at the end, as big_vision does.
"""

import functools
import importlib
import io
import os
import pathlib
import re
import struct
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from paligemma_jax.data import locations

LOC_PIECES = tuple(f"<loc{i:04d}>" for i in range(1024))
SEG_PIECES = tuple(f"<seg{i:03d}>" for i in range(128))
SEPARATOR = "\n"

# The released models: 256,000 pieces of Gemma, then <loc> and <seg>.
RELEASED_VOCAB_SIZE, RELEASED_FIRST_LOC = 257_152, 256_000

JSON = "JSON: the sentencepiece file is usually beside it as tokenizer.model"
# Field numbers, wire types and the piece type of sentencepiece_model.proto.
PIECES, PIECE, SCORE, TYPE, USER_DEFINED = 1, 1, 2, 3, 4
VARINT, BYTES, FIXED32 = 0, 2, 5


class Tokenizer(Protocol):
    """What data, tasks and decoding need of a tokenizer; `LOADERS` lists the kinds that there are.

    Attributes:
      pad, eos, bos: ids of the control pieces (0, 1, 2 in Gemma).
      vocab_size: number of pieces; ids are below it.
      loc_ids, seg_ids: ranges of 1024 and 128 contiguous ids, of what `<loc>` and `<seg>` are; both
        empty where there are none, and answers that need them are then no single tokens.
      answer_start: what stands between a prompt and the answer, and is no part of either.
      model: the bytes that it is made of; a run keeps them as its file.
    """

    pad: int
    eos: int
    bos: int
    vocab_size: int
    loc_ids: range
    seg_ids: range
    answer_start: str
    model: bytes

    def encode_prompt(self, prefix: str) -> list[int]:
        """Returns the ids of a prompt as the models read it: bos, prefix, what ends a prompt."""
        ...

    def encode_answer(self, suffix: str) -> list[int]:
        """Returns the ids of an answer behind a prompt, `answer_start` among them, without eos."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, without bos and eos; a ValueError if it has none."""
        ...

    def decode(self, ids: Iterable[int], *, stop_at_eos: bool = True) -> str:
        """Returns the text of an answer's ids, up to the first eos, without control pieces.

        Never fails on what a model produced: ids outside the vocabulary (an embedding may have more
        rows than there are pieces) are left out.
        """
        ...

    def piece(self, token_id: int) -> str:
        """Returns the piece of an id as the vocabulary spells it."""
        ...

    def spellings(self) -> list[bytes | None]:
        """Returns what each id adds to a text, as UTF-8; None for control pieces, <loc>, <seg>."""
        ...


class SentencePiece:
    """A `Tokenizer`: a sentencepiece model with `<loc>` and `<seg>` pieces.

    `newline`: id of "\\n", which ends a prompt.
    """

    answer_start = ""

    def __init__(self, model: bytes, name: str = "tokenizer"):
        """Takes the bytes of a sentencepiece model; `name` says where they are from, for errors."""
        processor = _load_processor(model, name)
        extra = (*LOC_PIECES, *SEG_PIECES)
        if missing := [p for p in extra if processor.piece_to_id(p) == processor.unk_id()]:
            # Messages of a repeated field that follow a serialized model are appended to it.
            model += b"".join(map(_serialize_piece, missing))
            processor = _load_processor(model, name)
        self.model = model
        self._processor, self._name = processor, name
        self.pad, self.eos = processor.pad_id(), processor.eos_id()
        self.bos, self.vocab_size = processor.bos_id(), len(processor)
        self.newline = self._check(name)
        first_loc, first_seg = map(processor.piece_to_id, (LOC_PIECES[0], SEG_PIECES[0]))
        self.loc_ids = range(first_loc, first_loc + len(LOC_PIECES))
        self.seg_ids = range(first_seg, first_seg + len(SEG_PIECES))

    def encode_prompt(self, prefix: str) -> list[int]:
        return [self.bos, *self.encode(prefix), self.newline]

    def encode_answer(self, suffix: str) -> list[int]:
        return self.encode(suffix)

    def encode(self, text: str) -> list[int]:
        try:
            return self._processor.encode(text)
        except RuntimeError as error:
            raise ValueError(f"text {text!r:.80} cannot be encoded as UTF-8") from error

    def decode(self, ids: Iterable[int], *, stop_at_eos: bool = True) -> str:
        kept = [int(i) for i in ids]
        if stop_at_eos and self.eos in kept:
            kept = kept[: kept.index(self.eos)]
        known = [i for i in kept if 0 <= i < self.vocab_size]
        try:
            return self._processor.decode(known)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self._name}: pieces {known[:8]} are no UTF-8: a damaged tokenizer; copy it again"
            ) from error

    def piece(self, token_id: int) -> str:
        """As `Tokenizer` says; "▁" is a space."""
        try:
            return self._processor.id_to_piece(int(token_id))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self._name}: piece {token_id} is no UTF-8: a damaged tokenizer; copy it again"
            ) from error

    def spellings(self) -> list[bytes | None]:
        processor = self._processor
        special = {*self.loc_ids, *self.seg_ids, processor.unk_id()}

        def spell(token_id: int) -> bytes | None:
            piece = self.piece(token_id)
            if token_id in special or processor.is_control(token_id):
                return None
            if processor.is_byte(token_id):
                return bytes([int(piece[1:-1], 16)])
            return piece.replace("▁", " ").encode()

        return [spell(token_id) for token_id in range(self.vocab_size)]

    @functools.cached_property
    def proto(self) -> Any:
        """The model as sentencepiece's own message, ModelProto: pieces with scores and kinds."""
        messages: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
        return messages.ModelProto.FromString(self.model)

    def control_pieces(self) -> dict[str, tuple[int, str]]:
        """Returns "pad", "eos", "bos" and "unk" -> (id, piece)."""
        ids = {"pad": self.pad, "eos": self.eos, "bos": self.bos, "unk": self._processor.unk_id()}
        return {name: (i, self.piece(i)) for name, i in ids.items()}

    def _check(self, name: str) -> int:
        """Returns the id of "\\n" after making sure that this is a tokenizer PaliGemma can use."""
        for piece in ("pad", "eos", "bos"):
            if getattr(self, piece) < 0:
                raise ValueError(f"{name}: the tokenizer has no {piece} piece; use Gemma's")
        newline = self.encode(SEPARATOR)
        if len(newline) != 1 or self.decode(newline) != SEPARATOR:
            raise ValueError(
                f"{name}: '\\n' must be one token, found ids {newline}; use Gemma's tokenizer"
            )
        extra = (*LOC_PIECES, *SEG_PIECES)
        extra_ids = self.encode("".join(extra))
        first = extra_ids[0] if extra_ids else -1
        if extra_ids != list(range(first, first + len(extra))):
            raise ValueError(
                f"{name}: the <loc> and <seg> pieces must be 1152 ids in a row, each one token; "
                f"'{extra[0]}' is {self.encode(extra[0])}, '{extra[-1]}' {self.encode(extra[-1])}"
            )
        if self.vocab_size == RELEASED_VOCAB_SIZE and first != RELEASED_FIRST_LOC:
            raise ValueError(
                f"{name}: with {RELEASED_VOCAB_SIZE} pieces '<loc0000>' must be "
                f"{RELEASED_FIRST_LOC}, found {first}: the released models would read other pieces"
            )
        return newline[0]


# Kind, as a family of models names it -> (bytes of a file, where they are from) to its tokenizer.
# One that is named is imported where a tokenizer of the kind is loaded: (module, its function).
LOADERS: dict[str, Callable[[bytes, str], Tokenizer] | tuple[str, str]] = {
    "sentencepiece": SentencePiece,
    "moondream": ("paligemma_jax.data.tokenizer_json", "load_moondream"),
}


def load_tokenizer(path: str | os.PathLike[str], *, kind: str = "sentencepiece") -> Tokenizer:
    """Returns the tokenizer of a file; `kind`: a key of `LOADERS`.

    Raises:
      ValueError: no such file, or not a tokenizer of this kind that a model can be trained with.
    """
    load: Any = LOADERS[kind]
    if isinstance(load, tuple):
        module, function = load
        load = getattr(importlib.import_module(module), function)
    return load(_read(path), os.fspath(path))


def load_sentencepiece(path: str | os.PathLike[str]) -> SentencePiece:
    """As `load_tokenizer` of a sentencepiece file: PaliGemma's own or plain Gemma's."""
    return SentencePiece(_read(path), os.fspath(path))


def check_has_places(tokenizer: Tokenizer, what: str) -> None:
    """Raises a ValueError if `<loc>` and `<seg>` are no tokens, and `what` needs them to be."""
    if not tokenizer.loc_ids or not tokenizer.seg_ids:
        raise ValueError(f"{what} needs a tokenizer with <loc> and <seg> pieces; this one has none")


def train_tokenizer(
    texts: Iterable[str], path: str | os.PathLike[str], *, vocab_size: int = 2048
) -> SentencePiece:
    """Trains a small tokenizer for a model from scratch, writes it to `path` and returns it.

    Byte-pair encoding with Gemma's settings: pad 0, eos 1, bos 2, unk 3, "\\n" one piece, digits
    apart, bytes for what is unknown, `<loc>` and `<seg>` at the end. The same texts give the same
    bytes.

    Args:
      texts: what to learn from; `<loc>` and `<seg>` in them are left out.
      path: the file to write.
      vocab_size: at most so many pieces, `<loc>` and `<seg>` included; few texts give fewer.

    Raises:
      ValueError: no text, or a vocabulary too small for the texts' characters.
    """
    import sentencepiece

    # Text is encoded in stretches between such pieces, so it is learnt in stretches too.
    border = re.compile(r"(?:<loc\d{4}>|<seg\d{3}>|\n)+")
    lines = [line for text in texts for line in border.split(text) if line.strip()]
    if not lines:
        raise ValueError("cannot train a tokenizer: there is no text to learn from")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size - len(LOC_PIECES) - len(SEG_PIECES),
            hard_vocab_limit=False,
            model_type="bpe",
            character_coverage=1.0,
            byte_fallback=True,
            split_digits=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            user_defined_symbols=[SEPARATOR],
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=3,
        )
    except RuntimeError as error:
        raise ValueError(f"cannot train a tokenizer of {vocab_size} pieces: {error}") from error
    tokenizer = SentencePiece(model.getvalue(), os.fspath(path))
    pathlib.Path(path).write_bytes(tokenizer.model)
    return tokenizer


def _read(path: str | os.PathLike[str]) -> bytes:
    if not os.path.isfile(path):
        raise ValueError(f"{os.fspath(path)}: no such tokenizer file")
    return pathlib.Path(path).read_bytes()


def _load_processor(model: bytes, name: str) -> Any:
    import sentencepiece

    if what := locations.describe_head(model) or (JSON if model.startswith(b"{") else None):
        raise ValueError(f"{name}: expected a sentencepiece model, found {what}")
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)
    except (RuntimeError, UnicodeDecodeError) as error:  # its own message may quote any bytes
        raise ValueError(f"{name}: not a sentencepiece model ({error})") from error
    return processor


def _serialize_piece(piece: str) -> bytes:
    """Returns a user-defined piece as a member of a serialized sentencepiece model."""
    text = piece.encode()
    message = (
        bytes([PIECE << 3 | BYTES, len(text)])
        + text
        + bytes([SCORE << 3 | FIXED32])
        + struct.pack("<f", 0.0)
        + bytes([TYPE << 3 | VARINT, USER_DEFINED])
    )
    return bytes([PIECES << 3 | BYTES, len(message)]) + message
