"""Automata against Python's own regular expressions, and against texts cut into pieces."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_jax.decoding import automaton

LETTERS = "abc"


def one_of(chosen):
    return automaton.symbols(chosen.encode()), f"[{chosen}]"


def follow_each_other(parts):
    return automaton.sequence(*(part for part, _ in parts)), "".join(regex for _, regex in parts)


def alternate(parts):
    regex = "|".join(regex for _, regex in parts)
    return automaton.either(*(part for part, _ in parts)), f"(?:{regex})"


def come_again(inner, least, more):
    part, regex = inner
    most = None if more is None else least + more
    counts = f"{{{least},{'' if most is None else most}}}"
    return automaton.repeat(part, least=least, most=most), f"(?:{regex}){counts}"


LANGUAGES = st.recursive(
    st.text(LETTERS, min_size=1, max_size=2).map(one_of),
    lambda inner: (
        st.lists(inner, max_size=3).map(follow_each_other)
        | st.lists(inner, min_size=1, max_size=3).map(alternate)
        | st.builds(come_again, inner, st.integers(0, 2), st.none() | st.integers(0, 2))
    ),
    max_leaves=6,
)


def accepts(language, symbols):
    state = 0
    for symbol in symbols:
        chosen, targets = language.moves[state]
        (found,) = np.nonzero(chosen == symbol)
        if not len(found):
            return False
        state = int(targets[found[0]])
    return state in language.accepting


@given(LANGUAGES, st.lists(st.text(LETTERS, max_size=6), max_size=8))
def test_an_automaton_accepts_what_the_regular_expression_does(language, texts):
    part, regex = language
    made = automaton.determinize(part)
    for text in ["", *texts]:
        assert accepts(made, text.encode()) == bool(re.fullmatch(regex, text)), (regex, text)


@given(
    LANGUAGES,
    st.lists(st.text(LETTERS, min_size=1, max_size=3), min_size=1, max_size=5, unique=True),
    st.lists(st.integers(0, 4), max_size=5),
)
def test_pieces_are_accepted_if_their_text_is(language, words, chosen):
    over_bytes = automaton.determinize(language[0])
    over_ids = automaton.spell(over_bytes, [None, *(word.encode() for word in words)])
    ids = [1 + number % len(words) for number in chosen]
    text = "".join(words[i - 1] for i in ids)
    assert accepts(over_ids, ids) == accepts(over_bytes, text.encode())
    assert not accepts(over_ids, [*ids, 0]), "a piece without text"


def test_every_way_to_spell_a_text_is_there():
    language = automaton.determinize(automaton.text("né".encode()))
    pieces = [b"n", "né".encode(), "é".encode(), b"\xc3", b"\xa9"]
    spelt = automaton.spell(language, pieces)
    assert all(accepts(spelt, ids) for ids in ([1], [0, 2], [0, 3, 4]))
    assert not any(accepts(spelt, ids) for ids in ([0], [0, 3], [0, 4], [1, 2]))


def test_states_that_want_a_rising_symbol_are_marked():
    part = automaton.sequence(automaton.symbols((1, 2)), automaton.rising((1, 2, 3)))
    assert automaton.determinize(part).rising == {1}


def test_too_many_states_are_refused(monkeypatch):
    monkeypatch.setattr(automaton, "MAX_STATES", 50)
    with pytest.raises(ValueError, match="more than 50 states"):
        automaton.determinize(automaton.repeat(automaton.symbols(b"a"), most=60))
