"""Every grammar: what models of random weights say under it is always well formed."""

import functools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_jax.data import tokens
from paligemma_jax.decoding import automaton, constraint, generate, grammars
from paligemma_jax.tasks import box_text, mask_text
from tests.decoding.test_automaton import LANGUAGES, accepts

MODEL = pathlib.Path(__file__).parents[1] / "reference" / "tiny_spm.model"
STATES, ROWS = 31, 24
LABELS = ("cat", "cat food", "dog", "\u9aa8")
ANSWERS = ("yes", "no", "no way", "nobody", "3")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "count": {"type": "integer", "minimum": 0},
        "kind": {"enum": ["red", "red\u00e9"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name"],
}


def detect(tokenizer, labels, *, room):
    return grammars.objects(tokenizer, labels, num_segs=0, check=box_text.check, room=room)


def segment(tokenizer, labels, *, room):
    return grammars.objects(tokenizer, labels, num_segs=16, check=mask_text.check, room=room)


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.load_tokenizer(MODEL)


def prefill(params, batch):
    return params[batch["index"] % STATES], {"state": batch["index"] % STATES}


def decode_step(params, cache, token):
    state = (cache["state"] * 3 + token + 1) % STATES
    return params[state], {"state": state}


def select_rows(cache, rows):
    return {"state": cache["state"][rows]}


SEARCHES = {
    "greedy": functools.partial(generate.generate, sampler="greedy"),
    "temperature": functools.partial(generate.generate, sampler="temperature", best_of=2),
    "nucleus": functools.partial(generate.generate, sampler="nucleus", top_p=0.7),
    "beam": functools.partial(generate.beam_search, beam_size=3),
}


@functools.partial(jax.jit, static_argnames=("search", "room", "eos"))
def run(params, batch, allowed, *, search, room, eos):
    rng = {} if search in ("beam", "greedy") else {"rng": jax.random.key(0)}
    model = (prefill, decode_step, select_rows)
    settings = dict(max_new_tokens=room, eos=eos, constraint=allowed, **rng)
    return SEARCHES[search](*model, params, batch, **settings)


def answer(tokenizer, allowed, search, *, room):
    """Returns the texts of random weights, and how many tokens each has with its eos."""
    shape = (STATES, tokenizer.vocab_size)
    params = np.random.default_rng(0).normal(size=shape, scale=3).astype(np.float32)
    batch = {"index": jnp.arange(ROWS), "_mask": jnp.ones(ROWS, bool)}
    out = jax.device_get(run(params, batch, allowed, search=search, room=room, eos=tokenizer.eos))
    ids = [row[:length].tolist() for row, length in zip(out.tokens, out.length, strict=True)]
    assert all(row[-1] == tokenizer.eos and row.count(tokenizer.eos) == 1 for row in ids)
    return [tokenizer.decode(row) for row in ids], ids


def tables(tokenizer, *made, rows=(0,)):
    size = tokenizer.vocab_size
    return constraint.compile_grammars(
        made, grammar_of_row=rows, eos=tokenizer.eos, vocab_size=size
    )


@pytest.mark.parametrize("search", SEARCHES)
def test_boxes_have_an_area_and_a_label_of_the_list(tokenizer, search):
    made = tables(tokenizer, detect(tokenizer, LABELS, room=24))
    texts, ids = answer(tokenizer, made, search, room=24)
    assert [box_text.check(text) for text in texts] == [None] * ROWS
    found = [label for text in texts for label in box_text.parse(text).labels]
    assert set(found) <= set(LABELS) and (search == "beam" or len(set(found)) > 1)
    assert all(tokenizer.encode(text) == row[:-1] for text, row in zip(texts, ids, strict=True))


@pytest.mark.parametrize("search", ["temperature", "beam"])
def test_masks_have_16_tokens_and_a_label_may_be_missing(tokenizer, search):
    made = tables(tokenizer, segment(tokenizer, ("cat", ""), room=50))
    texts, _ = answer(tokenizer, made, search, room=50)
    assert [mask_text.check(text) for text in texts] == [None] * ROWS


@pytest.mark.parametrize("search", SEARCHES)
def test_a_listed_answer_is_said_as_the_tokenizer_writes_it(tokenizer, search):
    made = tables(tokenizer, grammars.choose(tokenizer, ANSWERS, room=8))
    texts, ids = answer(tokenizer, made, search, room=8)
    assert set(texts) <= set(ANSWERS) and len(set(texts)) > 1
    assert all(tokenizer.encode(text) == row[:-1] for text, row in zip(texts, ids, strict=True))


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("room", [13, 40])
def test_json_can_be_loaded_and_has_the_fields(tokenizer, search, room):
    made = tables(tokenizer, grammars.write_json(tokenizer, SCHEMA))
    texts, _ = answer(tokenizer, made, search, room=room)
    for value in map(json.loads, texts):
        assert isinstance(value["name"], str) and set(value) <= set(SCHEMA["properties"])
        assert isinstance(value.get("count", 0), int) and value.get("count", 0) >= 0
        assert value.get("kind", "red") in SCHEMA["properties"]["kind"]["enum"]
        assert len(value.get("tags", [])) <= 2


def test_rows_of_a_batch_have_their_own_labels(tokenizer):
    two = [detect(tokenizer, [label], room=30) for label in ("cat", "dog")]
    made = tables(tokenizer, *two, rows=[number % 2 for number in range(ROWS)])
    texts, _ = answer(tokenizer, made, "temperature", room=30)
    for number, text in enumerate(texts):
        assert set(box_text.parse(text).labels) <= {("cat", "dog")[number % 2]}
    assert sum(map(bool, texts[::2])) and sum(map(bool, texts[1::2]))


def test_all_rooms_are_enough_from_the_shortest_answer_on(tokenizer):
    made = tables(tokenizer, grammars.write_json(tokenizer, SCHEMA))
    shortest = int(constraint.shortest_answers(made)[0])
    texts, ids = answer(tokenizer, made, "greedy", room=shortest)
    assert {text.replace(" ", "") for text in texts} == {'{"name":""}'}
    assert {len(row) for row in ids} == {shortest}


def test_log_probabilities_are_those_of_the_full_vocabulary(tokenizer):
    made = tables(tokenizer, grammars.choose(tokenizer, ["3"], room=2))
    params = jnp.zeros((STATES, tokenizer.vocab_size))
    batch = {"index": jnp.arange(2), "_mask": jnp.ones(2, bool)}
    for search in ("greedy", "beam"):
        out = run(params, batch, made, search=search, room=4, eos=tokenizer.eos)
        expected = [-np.log(tokenizer.vocab_size)] * 2 + [0, 0]
        np.testing.assert_allclose(out.logp, [expected] * 2, rtol=1e-6)


def test_what_parts_two_objects_may_be_one_piece_with_a_label():
    class Joining:
        """Writes " ; " in one piece with a label, as byte-pair encoding may."""

        loc_ids, seg_ids = range(100, 1124), range(2000, 2128)

        def encode(self, text):
            names = {"<loc": 0, " b": 1, " b ; ": 2}
            found = re.findall(r"<loc\d{4}>| b ; | b", text)
            return [100 + int(t[4:8]) if t[0] == "<" else names[t] for t in found]

    made = detect(Joining(), ["b"], room=9)
    after_box = [state for state, (ids, _) in enumerate(made.moves) if 1 in ids]
    assert [made.moves[state][0].tolist() for state in after_box] == [[2, 1]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: detect(t, [], room=9), "without a label"),
        (lambda t: detect(t, ["a;b"], room=99), "label 'a;b': object 2 has no <loc>"),
        (lambda t: detect(t, ["a  b"], room=99), "label 'a  b': spacing or separators"),
        (lambda t: detect(t, [""], room=99), "label '': object 1 has no label"),
        (
            lambda t: detect(t, ["cat", "\u9aa8"], room=6),
            "an object with the label '\u9aa8' takes 9 tokens, and there is room for 6: set max",
        ),
        (lambda t: segment(t, ["cat"], room=20), "takes 22 tokens"),
        (lambda t: grammars.choose(t, [], room=9), "without an answer"),
        (lambda t: grammars.choose(t, ["yes", "no"], room=1), "answer 'yes' takes 4 tokens"),
        (lambda t: grammars.write_json(t, {}), "JSON schema"),
    ],
)
def test_what_cannot_be_said_is_an_error_before_decoding(tokenizer, make, message):
    with pytest.raises(ValueError, match=message):
        make(tokenizer)


def test_an_answer_that_the_tokenizer_does_not_give_back_is_an_error(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "decode", lambda _: "?")
    with pytest.raises(ValueError, match=r"answer 'yes': the tokenizer reads it back as '\?'"):
        grammars.choose(tokenizer, ["yes"], room=9)


def test_json_is_spelt_in_every_way(tokenizer):
    made = grammars.write_json(tokenizer, {"const": "red"})

    def pieces_after(state):
        symbols = made.moves.symbol[made.moves.source == state]
        return {tokenizer.piece(i) for i in np.flatnonzero(np.isin(made.classes, symbols))}

    (after_quote,) = made.moves.target[made.moves.source == 0]
    assert pieces_after(0) == {"<0x22>"} and len(made.moves) >= 4
    assert pieces_after(after_quote) == {"r", "re", "red", "<0x72>"}


# Texts cut into pieces: what each piece does in each state, against reading it byte by byte.


def is_spelt(language, ids):
    moves, state = language.moves, 0
    for i in ids:
        chosen = (moves.symbol == language.classes[i]) & (moves.source == state)
        if not chosen.any():
            return False
        (state,) = moves.target[chosen]
    return state in language.over_bytes.accepting


@given(
    LANGUAGES,
    st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(0, 4), max_size=5),
)
def test_pieces_are_accepted_if_their_text_is(language, words, chosen):
    over_bytes = automaton.determinize(language[0])
    over_ids = grammars.spell(over_bytes, [None, *(word.encode() for word in words)])
    ids = [1 + number % len(words) for number in chosen]
    text = "".join(words[i - 1] for i in ids)
    assert is_spelt(over_ids, ids) == accepts(over_bytes, text.encode())
    assert not is_spelt(over_ids, [*ids, 0]), "a piece without text"


def test_every_way_to_spell_a_text_is_there():
    language = automaton.determinize(automaton.text("né".encode()))
    pieces = [b"n", "né".encode(), "é".encode(), b"\xc3", b"\xa9"]
    spelt = grammars.spell(language, pieces)
    assert all(is_spelt(spelt, ids) for ids in ([1], [0, 2], [0, 3, 4]))
    assert not any(is_spelt(spelt, ids) for ids in ([0], [0, 3], [0, 4], [1, 2]))


def test_pieces_that_do_the_same_share_a_class_and_those_that_may_not_come_have_none():
    letters = automaton.counted(automaton.symbols(b"abc"), most=5)
    quoted = automaton.sequence(automaton.text(b"<"), letters, automaton.text(b">"))
    pieces = [b"a", b"b", b"ab", b"ca", b"c>", b"a>", b"aaaaaa", b"z", b"az", None, b""]
    classes = grammars.spell(automaton.determinize(quoted), pieces).classes
    assert classes[0] == classes[1] != classes[2] == classes[3] != classes[4] == classes[5] != 0
    assert classes[6:].tolist() == [0] * 5, "six letters are more than there may be"
    assert len(np.unique(classes)) == 4


def test_a_move_says_what_it_adds_to_the_part_it_leaves_and_what_it_opens():
    letters = automaton.counted(automaton.symbols(b"ab"), most=3)
    word = automaton.sequence(automaton.text(b"<"), letters, automaton.text(b">"))
    language = automaton.determinize(automaton.sequence(word, word))
    spelt = grammars.spell(language, [b"ab", b"a><b", b"<ab"])
    inside = min(language.limits)
    found = {
        name: sorted(
            zip(
                *(getattr(spelt.moves, field)[chosen].tolist() for field in ("added", "opened")),
                strict=True,
            )
        )
        for name, number in (("ab", 0), ("a><b", 1), ("<ab", 2))
        for chosen in [
            (spelt.moves.symbol == spelt.classes[number])
            & (spelt.moves.source == (0 if name == "<ab" else inside))
        ]
    }
    assert found == {"ab": [(2, -1)], "a><b": [(1, 1)], "<ab": [(0, 2)]}
