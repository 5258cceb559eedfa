"""Texts cut into pieces: what each piece does in each state, against reading it byte by byte."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paligemma_jax.decoding import automaton, spelling
from tests.decoding.test_automaton import LANGUAGES, accepts


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
    over_ids = spelling.spell(over_bytes, [None, *(word.encode() for word in words)])
    ids = [1 + number % len(words) for number in chosen]
    text = "".join(words[i - 1] for i in ids)
    assert is_spelt(over_ids, ids) == accepts(over_bytes, text.encode())
    assert not is_spelt(over_ids, [*ids, 0]), "a piece without text"


def test_every_way_to_spell_a_text_is_there():
    language = automaton.determinize(automaton.text("né".encode()))
    pieces = [b"n", "né".encode(), "é".encode(), b"\xc3", b"\xa9"]
    spelt = spelling.spell(language, pieces)
    assert all(is_spelt(spelt, ids) for ids in ([1], [0, 2], [0, 3, 4]))
    assert not any(is_spelt(spelt, ids) for ids in ([0], [0, 3], [0, 4], [1, 2]))


def test_pieces_that_do_the_same_share_a_class_and_those_that_may_not_come_have_none():
    letters = automaton.counted(automaton.symbols(b"abc"), most=5)
    quoted = automaton.sequence(automaton.text(b"<"), letters, automaton.text(b">"))
    pieces = [b"a", b"b", b"ab", b"ca", b"c>", b"a>", b"aaaaaa", b"z", b"az", None, b""]
    classes = spelling.spell(automaton.determinize(quoted), pieces).classes
    assert classes[0] == classes[1] != classes[2] == classes[3] != classes[4] == classes[5] != 0
    assert classes[6:].tolist() == [0] * 5, "six letters are more than there may be"
    assert len(np.unique(classes)) == 4


def test_a_move_says_what_it_adds_to_the_part_it_leaves_and_what_it_opens():
    letters = automaton.counted(automaton.symbols(b"ab"), most=3)
    word = automaton.sequence(automaton.text(b"<"), letters, automaton.text(b">"))
    language = automaton.determinize(automaton.sequence(word, word))
    spelt = spelling.spell(language, [b"ab", b"a><b", b"<ab"])
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
