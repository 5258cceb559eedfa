"""Tables of automata: what may come, and that an answer always fits its room."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from paligemma_jax.decoding import automaton, constraint, grammars

EOS, VOCAB = 1, 16
AB, SEMICOLON, LAST = (5, 6), 7, 8


def make(*parts, **kwargs):
    languages = [automaton.determinize(part) for part in parts]
    return constraint.compile_grammars(languages, eos=EOS, vocab_size=VOCAB, **kwargs)


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


def make_counted(most, *pieces):
    """The grammar of `<`, up to `most` times `a`, `>z`; ids of pieces are their places."""
    letters = automaton.counted(automaton.text(b"a"), most=most)
    part = automaton.sequence(automaton.text(b"<"), letters, automaton.text(b">z"))
    spelt = grammars.spell(automaton.determinize(part), [None, None, *pieces])
    return constraint.compile_grammars([spelt], eos=EOS, vocab_size=VOCAB)


def test_items_are_counted_beside_the_state():
    for most in (2, 10_000):
        made = make_counted(most, b"<", b"a", b"aa", b">z")
        assert made.moves.shape[0] == 8, "however many there may be"
    made = make_counted(3, b"<", b"a", b"aa", b">z")
    found = list(follow(made, [2, 4, 3, 5, EOS]))
    assert found[:5] == [[2], [3, 4, 5], [3, 5], [5], [EOS]]


def test_a_part_is_not_filled_up_where_only_one_more_item_ends_it():
    found = list(follow(make_counted(2, b"<", b"a", b"a>z"), [2, 3, 4, EOS]))
    assert found[:4] == [[2], [3, 4], [4], [EOS]]


def test_a_full_part_may_be_further_from_the_end():
    made = make_counted(1, b"<", b"a", b"a>z", b">", b"z")
    assert constraint.shortest_answers(made).tolist() == [3]
    assert list(follow(made, [2], room=4))[1] == [4, 5], "after `a` come `>`, `z` and eos"
    assert list(follow(made, [2], room=5))[1] == [3, 4, 5]


def test_a_counted_part_must_be_spelt():
    part = automaton.counted(automaton.symbols(AB), most=3)
    with pytest.raises(ValueError, match=r"counted parts: make one of its pieces"):
        make(part)


def test_spelt_and_other_grammars_stand_side_by_side():
    word = automaton.determinize(automaton.text(b"ab"))
    spelt = grammars.spell(word, [None, None, b"a", b"b", b"ab"])
    other = automaton.determinize(automaton.symbols((2, 4, 9)))
    made = constraint.compile_grammars(
        [spelt, other], grammar_of_row=[0, 1], eos=EOS, vocab_size=VOCAB
    )
    assert list(follow(made, [2, 3, EOS], row=0))[:3] == [[2, 4], [3], [EOS]]
    assert list(follow(made, [9, EOS], row=1))[:2] == [[2, 4, 9], [EOS]]
