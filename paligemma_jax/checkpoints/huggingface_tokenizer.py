"""A sentencepiece model as the tokenizer.json of Hugging Face's tokenizers library.

Both split a text alike: the same pieces, joined in the same order. What sentencepiece orders by the
scores of whole pieces is there a list of pairs, so every pair that makes a piece is listed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

SPACE = "\u2581"  # how sentencepiece writes a space
NORMAL, USER_DEFINED = 1, 4  # kinds of pieces in sentencepiece_model.proto
BPE = 2  # a kind of model there


def make(
    proto: Any, *, control: Mapping[str, tuple[int, str]], added: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns the content of tokenizer.json.

    Args:
      proto: a sentencepiece model of byte pairs, as `tokens.SentencePiece.proto`.
      control: "bos", "unk" -> (id, piece); bos stands before every text.
      added: what is never split, in the order of ids, as tokenizer.json lists it: id, content, ...

    Raises:
      ValueError: a model that changes texts before it splits them, or is of another kind.
    """
    rule = proto.normalizer_spec
    if rule.precompiled_charsmap or rule.remove_extra_whitespaces:
        raise ValueError("its tokenizer changes letters or spaces of a text before it splits it")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = [{"type": "Prepend", "prepend": SPACE}] if rule.add_dummy_prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    number, bos = control["bos"]
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    second = {"SpecialToken": {"id": bos, "type_id": 1}}
    text, other = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [dict(one) for one in added],
        "normalizer": {"type": "Sequence", "normalizers": [*steps, replace]} if steps else replace,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, text],
            "pair": [first, text, second, other],
            "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                *(back, {"type": "ByteFallback"}, {"type": "Fuse"}),
                *([strip] if rule.add_dummy_prefix else []),
            ],
        },
        "model": _model(proto, control["unk"][1]),
    }


def _model(proto: Any, unk: str) -> dict[str, Any]:
    """Returns the pieces, and how they are found."""
    pieces = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    ids = {text: number for number, (text, _, _) in enumerate(pieces)}
    if proto.trainer_spec.model_type != BPE:
        raise ValueError("its tokenizer is none of byte pairs, which alone are split alike there")
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": proto.trainer_spec.byte_fallback,
        "ignore_merges": False,
        "vocab": ids,
        "merges": _merges(pieces, ids),
    }


def never_split(proto: Any) -> dict[int, str]:
    """Returns id -> piece of all that a text is searched for before the rest of it is split."""
    return {i: piece.piece for i, piece in enumerate(proto.pieces) if piece.type == USER_DEFINED}


def _merges(pieces: Sequence[tuple[str, float, int]], ids: Mapping[str, int]) -> list[list[str]]:
    """Returns the pairs that make a piece, pieces of a high score first.

    Of one piece, pairs of its earlier parts first: where both could be joined, sentencepiece took
    the parts that came about before.
    """
    usual = {text for text, _, kind in pieces if kind == NORMAL}
    pairs = []
    for text, score, kind in pieces:
        if kind != NORMAL:
            continue
        for at in range(1, len(text)):
            left, right = text[:at], text[at:]
            if left in usual and right in usual:
                pairs.append((-score, ids[text], ids[left], ids[right], left, right))
    pairs.sort()
    return [[left, right] for *_, left, right in pairs]
