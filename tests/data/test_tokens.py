"""The tokenizer equals big_vision's, and refuses files that are none."""

import io
import json
import pathlib

import pytest
import sentencepiece

from paligemma_jax.data import tokens

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
GOLDEN = json.loads((REFERENCE / "tokenizer.json").read_text())
MODEL = REFERENCE / "tiny_spm.model"  # plain: no <loc>, no <seg>


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.load_tokenizer(MODEL)


def train(texts=("detect a b c",), vocab_size=300, **kwargs) -> bytes:
    """Returns a sentencepiece model with Gemma's settings, or others."""
    settings = dict(
        model_type="bpe",
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["\n"],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=3,
    )
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocab_size,
        **{**settings, **kwargs},
    )
    return model.getvalue()


def test_missing_loc_and_seg_pieces_are_added_after_the_vocabulary(tokenizer):
    assert (tokenizer.pad, tokenizer.eos, tokenizer.bos) == (0, 1, 2)
    assert tokenizer.vocab_size == GOLDEN["vocab"]
    assert [tokenizer.loc_ids[0]] == GOLDEN["loc0"] and tokenizer.loc_ids[0] == 420
    assert [tokenizer.loc_ids[-1]] == GOLDEN["loc1023"]
    assert [tokenizer.seg_ids[0]] == GOLDEN["seg0"]
    assert [tokenizer.seg_ids[-1]] == GOLDEN["seg127"]
    assert [tokenizer.newline] == GOLDEN["newline"]


@pytest.mark.parametrize("case", GOLDEN["to_int"], ids=lambda case: repr(case["text"]))
def test_encode_and_decode_equal_big_vision(tokenizer, case):
    assert tokenizer.encode(case["text"]) == case["ids"]
    assert [tokenizer.bos, *case["ids"], tokenizer.eos] == case["ids_bos_eos"]
    assert tokenizer.decode(case["ids"]) == case["roundtrip"]


@pytest.mark.parametrize("case", GOLDEN["to_str"], ids=lambda case: str(case["ids"]))
def test_decode_stops_at_eos_as_big_vision_does(tokenizer, case):
    assert tokenizer.decode(case["ids"], stop_at_eos=case["stop_at_eos"]) == case["text"]


def test_a_piece_is_spelt_as_the_vocabulary_does(tokenizer):
    ids = [*tokenizer.encode("<loc0007>"), tokenizer.newline]
    assert [tokenizer.piece(i) for i in ids] == ["<loc0007>", "\n"]


def test_decode_leaves_out_ids_that_no_piece_has(tokenizer):
    ids = tokenizer.encode("a cat")
    assert tokenizer.decode([*ids, tokenizer.vocab_size, 999_999, -1]) == "a cat"


def test_text_that_is_no_unicode_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="cannot be encoded"):
        tokenizer.encode("\ud800")


def test_a_file_that_has_the_pieces_is_taken_as_it_is(tokenizer, tmp_path):
    path = tmp_path / "with_loc.model"
    path.write_bytes(tokenizer.model)
    again = tokens.load_tokenizer(path)
    assert again.model == tokenizer.model
    assert again.loc_ids == tokenizer.loc_ids


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a sentencepiece model"),
        (b"\0\1\2", "not a sentencepiece model"),
        (b'{"version": "1.0"}', "found JSON"),
        (b"<!DOCTYPE html>", "found a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "found a Git LFS pointer"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content, reason):
    path = tmp_path / "x.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        tokens.load_tokenizer(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such tokenizer file"):
        tokens.load_tokenizer(tmp_path / "x.model")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (dict(pad_id=-1), "has no pad piece"),
        (dict(bos_id=-1), "has no bos piece"),
        (dict(eos_id=-1), "has no eos piece"),
        (dict(normalization_rule_name="nmt_nfkc", user_defined_symbols=[]), "must be one token"),
        (dict(user_defined_symbols=["\n", "<loc0500>"]), "1152 ids in a row"),
    ],
)
def test_another_models_tokenizer_is_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        tokens.SentencePiece(train(**settings))


def test_the_released_vocabulary_has_its_loc_pieces_where_the_models_learnt_them(monkeypatch):
    # A stand-in for 257,152 pieces: the same rule at this file's size.
    monkeypatch.setattr(tokens, "RELEASED_VOCAB_SIZE", GOLDEN["vocab"])
    with pytest.raises(ValueError, match="'<loc0000>' must be 256000, found 420"):
        tokens.load_tokenizer(MODEL)


TEXTS = ["detect fracture", "<loc0001><loc0002><loc0003><loc0004> fracture ; <loc0001>", "3\n7"]


def test_a_trained_tokenizer_has_gemmas_layout(tmp_path):
    tokenizer = tokens.train_tokenizer(TEXTS, tmp_path / "t.model", vocab_size=2000)
    assert (tokenizer.pad, tokenizer.eos, tokenizer.bos) == (0, 1, 2)
    assert tokenizer.seg_ids[-1] == tokenizer.vocab_size - 1
    assert tokenizer.loc_ids[-1] + 1 == tokenizer.seg_ids[0]
    assert len(tokenizer.encode(" fracture")) == 1 and len(tokenizer.encode("37")) == 2
    text = "<loc0007> naïve 你好\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokens.load_tokenizer(tmp_path / "t.model").encode(text) == tokenizer.encode(text)


def test_training_a_tokenizer_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        tokens.train_tokenizer(TEXTS, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("texts", "vocab_size", "reason"),
    [
        ([], 2000, "no text"),
        (["<loc0001>", " \n"], 2000, "no text"),
        (["abc"], 1400, "1400 pieces"),
    ],
)
def test_a_tokenizer_that_cannot_be_trained_is_an_error(tmp_path, texts, vocab_size, reason):
    with pytest.raises(ValueError, match=reason):
        tokens.train_tokenizer(texts, tmp_path / "t.model", vocab_size=vocab_size)


def test_control_pieces_are_named_with_their_ids():
    found = tokens.load_tokenizer(MODEL).control_pieces()
    expected = {"pad": (0, "<pad>"), "eos": (1, "</s>"), "bos": (2, "<s>"), "unk": (3, "<unk>")}
    assert found == expected


def test_a_piece_that_is_no_text_names_the_file(tmp_path):
    path = tmp_path / "damaged.model"
    path.write_bytes(train().replace(b"detect", b"det\xff\xfet"))
    damaged = tokens.load_tokenizer(path)
    with pytest.raises(ValueError, match=r"damaged\.model: piece \d+ is no UTF-8"):
        damaged.spellings()


def test_two_pieces_alike_that_are_no_text_are_refused(tmp_path):
    piece = b"\x0a\x02\xff\xfe\x15\0\0\0\0"  # its text, and a score
    path = tmp_path / "twice.model"
    path.write_bytes(train() + 2 * (b"\x0a" + bytes([len(piece)]) + piece))
    with pytest.raises(ValueError, match=r"twice\.model: not a sentencepiece model"):
        tokens.load_tokenizer(path)
