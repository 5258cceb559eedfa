from hypothesis import given
from hypothesis import strategies as st

from paligemma_jax.tasks import vqa


@given(st.text(max_size=30))
def test_parse_undoes_format_up_to_the_canonical_form(answer):
    assert vqa.parse(vqa.format(answer)) == vqa.parse(answer)
    assert vqa.format(vqa.parse(answer)) == vqa.parse(answer)


def test_an_empty_training_answer_is_named():
    assert vqa.check(" ") == "the answer is empty"
    assert vqa.check("yes") is None
