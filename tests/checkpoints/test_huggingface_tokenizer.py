"""tokenizer.json splits every text as the sentencepiece model that it is made of."""

import io
import json
import random

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from paligemma_jax.checkpoints import huggingface_files, huggingface_tokenizer
from paligemma_jax.data import tokens
from tests import gemma_vocabulary, pages

tokenizers = pytest.importorskip("tokenizers")
LETTERS = (
    "日本語のテキスト 한국어 Ελληνικά العربية हिन्दी ñandú naïve 🦊 \t tabs  two   spaces 12345"
)
CONTROL = {"bos": (1, "<s>"), "unk": (0, "<unk>")}
OWN = ["a horse stands in the grass", "zwei Pferde und 12 Äpfel", "détecter un chat", LETTERS]


def make(tokenizer: tokens.SentencePiece) -> tokenizers.Tokenizer:
    control, plain = tokenizer.control_pieces(), huggingface_tokenizer.never_split(tokenizer.proto)
    added = huggingface_files.added_tokens(control, plain, num_pieces=tokenizer.vocab_size)
    content = huggingface_tokenizer.make(
        tokenizer.proto,
        control=control,
        added=[{"id": number, **token} for number, token in added.items()],
    )
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def texts(count: int) -> list[str]:
    """Pieces of the pages and of other scripts, some with places and masks in them."""
    rng = random.Random(0)
    sources = [path.read_text() for path in sorted((pages.ROOT / "docs").glob("*.md"))]
    sources += OWN * 3
    made = []
    for _ in range(count):
        source = rng.choice(sources)
        start = rng.randrange(len(source))
        text = source[start : start + rng.randrange(1, 150)]
        if rng.random() < 0.3:
            text += f"<loc{rng.randrange(1024):04d}><seg{rng.randrange(128):03d}> {text[:9]}\n"
        made.append(text)
    return [text for text in made if not any(piece in text for piece in ("<eos>", "<bos>"))]


def check(tokenizer: tokens.SentencePiece, count: int) -> None:
    made = make(tokenizer)
    for text in texts(count):
        ids = tokenizer.encode(text)
        assert made.encode(text, add_special_tokens=False).ids == ids, text
        assert made.encode(text).ids == [tokenizer.bos, *ids]
        assert made.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids)


def test_byte_pairs_are_joined_in_the_same_order(tmp_path):
    learnt = [*OWN, *(path.read_text() for path in sorted((pages.ROOT / "docs").glob("*.md")))]
    check(tokens.train_tokenizer(learnt, tmp_path / "own.model", vocab_size=2600), 400)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalization_rule_name": "nfkc"}, "changes letters or spaces"),
        ({"model_type": "unigram"}, "none of byte pairs"),
    ],
)
def test_what_would_split_otherwise_there_is_refused(settings, message):
    model = io.BytesIO()
    how = dict(normalization_rule_name="identity", remove_extra_whitespaces=False)
    how |= dict(model_type="bpe", vocab_size=60, hard_vocab_limit=False, minloglevel=3)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(OWN[:3]), model_writer=model, **how | settings
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    with pytest.raises(ValueError, match=message):
        huggingface_tokenizer.make(proto, control=CONTROL, added=[])


@pytest.mark.slow
def test_gemmas_own_pieces_split_3000_texts_as_sentencepiece_does(tmp_path):
    try:
        content = gemma_vocabulary.download(tmp_path)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    check(tokens.SentencePiece(gemma_vocabulary.make_model(content)), 3000)
