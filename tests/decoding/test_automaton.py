"""Automata against Python's own regular expressions."""

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
    state, items = 0, 0
    for symbol in symbols:
        chosen, targets = language.moves[state]
        (found,) = np.nonzero(chosen == symbol)
        if not len(found):
            return False
        before, state = state, int(targets[found[0]])
        goes_on = before in language.limits and state in language.limits
        items = items + (before in language.between) if goes_on else 0
        if items > language.limits.get(state, items):
            return False
    return state in language.accepting


@given(LANGUAGES, st.lists(st.text(LETTERS, max_size=6), max_size=8))
def test_an_automaton_accepts_what_the_regular_expression_does(language, texts):
    part, regex = language
    made = automaton.determinize(part)
    for text in ["", *texts]:
        assert accepts(made, text.encode()) == bool(re.fullmatch(regex, text)), (regex, text)


def test_states_that_want_a_rising_symbol_are_marked():
    part = automaton.sequence(automaton.symbols((1, 2)), automaton.rising((1, 2, 3)))
    assert automaton.determinize(part).rising == {1}


def test_too_many_states_are_refused(monkeypatch):
    monkeypatch.setattr(automaton, "MAX_STATES", 50)
    with pytest.raises(ValueError, match="more than 50 states"):
        automaton.determinize(automaton.repeat(automaton.symbols(b"a"), most=60))


def test_a_net_of_too_many_nodes_is_refused_while_it_grows(monkeypatch):
    monkeypatch.setattr(automaton, "MAX_NODES", 50)
    with pytest.raises(automaton.TooLargeError, match="more than 50 nodes"):
        automaton.determinize(automaton.repeat(automaton.symbols(b"a"), most=10**9))


@given(st.integers(0, 4), st.integers(0, 6), st.sampled_from(["", "z"]))
def test_a_counted_part_is_one_loop_that_is_left_in_time(most, count, behind):
    item = automaton.either(automaton.text(b"a"), automaton.text(b"bc"))
    part = automaton.sequence(
        automaton.text(b"<"), automaton.counted(item, most=most), automaton.text(b">" + b"z")
    )
    made = automaton.determinize(part)
    assert len(made.moves) <= 7 and set(made.limits.values()) <= {most}
    text = "<" + "abc"[: 3 * (count > 1)] + "a" * (count - 2 * (count > 1)) + ">" + behind
    assert accepts(made, text.encode()) == (count <= most and behind == "z")


def test_two_parts_that_are_counted_at_a_time_are_refused():
    letter = automaton.symbols(b"a")
    long, short = automaton.counted(letter, most=3), automaton.counted(letter, most=2)
    with pytest.raises(ValueError, match=r"counted at a time, up to \[2, 3\]"):
        automaton.determinize(automaton.either(long, short))
    word = automaton.sequence(automaton.text(b"<"), automaton.counted(letter, most=3))
    other = automaton.sequence(automaton.symbols(b"ab"), automaton.counted(letter, most=3))
    with pytest.raises(ValueError, match="part them by a symbol"):
        automaton.determinize(automaton.sequence(word, other))
