from hypothesis import given
from hypothesis import strategies as st

from paligemma_jax.tasks import answer_text


@given(st.text(max_size=30))
def test_parse_undoes_format_up_to_the_canonical_form(answer):
    assert answer_text.parse(answer_text.format(answer)) == answer_text.parse(answer)
    assert answer_text.format(answer_text.parse(answer)) == answer_text.parse(answer)


def test_an_empty_training_answer_is_named():
    assert answer_text.check(" ") == "the answer is empty"
    assert answer_text.check("yes") is None
