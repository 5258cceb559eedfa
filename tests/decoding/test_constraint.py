"""Tables of automata: what may come, and that an answer always fits its room."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from paligemma_jax.decoding import automaton, constraint

EOS, VOCAB = 1, 16
AB, SEMICOLON, LAST = (5, 6), 7, 8


def make(*parts, **kwargs):
    grammars = [automaton.determinize(part) for part in parts]
    return constraint.compile_grammars(grammars, eos=EOS, vocab_size=VOCAB, **kwargs)


def follow(made, tokens, *, row=0, room=99):
    """Yields the ids that may come before each token, and after the last one."""
    place = constraint.start(made, jnp.array([row]))
    for used, token in enumerate([*tokens, None]):
        scores = constraint.keep_allowed(made, place, jnp.zeros((1, VOCAB)), room=room - used)
        yield np.flatnonzero(scores[0] == 0).tolist()
        if token is not None:
            place = constraint.advance(made, place, jnp.array([token]))


WORDS = automaton.sequence(
    automaton.repeat(automaton.sequence(automaton.symbols(AB), automaton.text([SEMICOLON]))),
    automaton.symbols(AB),
    automaton.text([LAST]),
)


def test_only_what_the_grammar_says_may_come():
    found = list(follow(make(WORDS), [5, 7, 6, 8, EOS]))
    assert found == [[5, 6], [7, 8], [5, 6], [7, 8], [EOS], list(range(VOCAB))]


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.integers(3, 12), st.randoms(use_true_random=False))
def test_every_walk_ends_with_eos_within_its_room(room, random):
    made = make(WORDS)
    assert constraint.shortest_answers(made).tolist() == [3]
    tokens = []
    while EOS not in tokens:
        choices = list(follow(made, tokens, room=room))[-1]
        assert choices, "there is always a way on"
        tokens.append(random.choice(choices))
    assert len(tokens) <= room and tokens[-2] == LAST


def test_without_room_nothing_may_come():
    assert next(follow(make(WORDS), [], room=2)) == []
    assert next(follow(make(WORDS), [], room=3)) == [5, 6]
    assert list(follow(make(WORDS), [5], room=4))[1] == [LAST], "a semicolon would lead too far"


def test_rows_follow_their_own_grammars_and_filling_rows_some():
    made = make(automaton.text([5]), automaton.text([6]), grammar_of_row=[1, 0, 1])
    first = [next(follow(made, [], row=row)) for row in (0, 1, 2, -1)]
    assert first == [[6], [5], [6], [6]]
    alone = make(automaton.text([5]))
    assert [next(follow(alone, [], row=row)) for row in (0, 7)] == [[5], [5]]


def test_a_rising_symbol_is_above_the_one_two_before():
    chosen = (3, 4, 5, 6)
    pair = [automaton.symbols(chosen[:-1])] * 2 + [automaton.rising(chosen)] * 2
    made = make(automaton.sequence(*pair))
    found = list(follow(made, [4, 3, 6, 5, EOS]))
    assert found[:5] == [[3, 4, 5], [3, 4, 5], [5, 6], [4, 5, 6], [EOS]]


def test_ids_that_no_state_tells_apart_share_a_column():
    made = make(automaton.sequence(automaton.symbols(range(2, 10)), automaton.text([12])))
    classes = np.asarray(made.classes)
    assert len(set(classes[2:10])) == 1 and len(set(classes)) == 4
    assert made.moves.shape == (8, 4), "two powers of two: few programs are compiled"


def test_forbidden_ids_never_come_and_answers_need_not_end():
    made = constraint.forbid([0, 9], vocab_size=VOCAB)
    free = [i for i in range(VOCAB) if i not in (0, 9)]
    assert list(follow(made, [3, EOS, 4], room=4)) == [free] * 4


@pytest.mark.parametrize("wrong", [-1, VOCAB])
def test_a_forbidden_id_outside_the_vocabulary_is_an_error(wrong):
    with pytest.raises(ValueError, match=rf"forbidden ids \[{wrong}\]: the vocabulary is 0..15"):
        constraint.forbid([wrong], vocab_size=VOCAB)


def test_tables_that_would_fill_the_memory_are_refused(monkeypatch):
    monkeypatch.setattr(constraint, "MAX_ENTRIES", 10)
    with pytest.raises(ValueError, match=r"1 grammars need a table of .* let rows share one"):
        make(WORDS)
