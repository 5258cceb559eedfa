import pytest
from hypothesis import given
from hypothesis import strategies as st

from paligemma_jax.tasks import metrics, text_metrics


@pytest.mark.parametrize(
    ("prediction", "truth", "f1"),
    [
        ('{"a": 1, "b": "X  y"}', '{"b": "x y", "a": 1.0}', 1.0),
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 0.5),
        ('{"a": {"b": [1, 2, 2]}}', '{"a": {"b": [2, 1]}}', 0.8),
        ('{"a": true}', '{"a": 1}', 0.0),
        ('{"a": 1', '{"a": 1}', 0.0),
        ("{}", "{}", 1.0),
        ("[]", "{}", 0.0),
        ("null", '{"a": 1}', 0.0),
    ],
)
def test_json_is_compared_field_by_field(prediction, truth, f1):
    assert text_metrics.json_f1(prediction, [truth]) == pytest.approx(f1)
    assert text_metrics.json_exact(prediction, [truth]) == (f1 == 1)


@pytest.mark.parametrize(
    ("prediction", "truth", "exact"),
    [
        ('{\n  "dime": 2\n}', '{"dime": 2, "cent": 0}', True),
        ('{"dime": 2, "cent": 1}', '{"dime": 2}', False),
        ('{"dime": "2"}', '{"dime": 2}', False),
        ('{"dime": 2', '{"dime": 2}', False),
        ("{}", "{}", True),
    ],
)
def test_counts_are_right_or_wrong_as_a_whole(prediction, truth, exact):
    assert text_metrics.count_exact(prediction, [truth]) == exact


@pytest.mark.parametrize(
    ("prediction", "pairs", "events"),
    [
        ("fall: start; cry: end", 1.0, 1.0),
        ("Cry: end\nfall:  start", 1.0, 1.0),
        ('{"fall": "start", "cry": "end"}', 1.0, 1.0),
        ('[{"event": "cry", "phase": "end"}, {"event": "fall", "phase": "start"}]', 1.0, 1.0),
        ("fall: end; cry: end", 0.5, 1.0),
        ("fall: start", 2 / 3, 2 / 3),
        ("fall; cry", 0.0, 1.0),
        ("", 0.0, 0.0),
    ],
)
def test_events_are_scored_with_and_without_their_phases(prediction, pairs, events):
    truth = ["fall: start; cry: end"]
    assert text_metrics.event_phase_f1(prediction, truth) == pytest.approx(pairs)
    assert text_metrics.event_f1(prediction, truth) == pytest.approx(events)


SENTENCE = (
    "In this picture I can see a fall in the 1 phase, a cry in the 4 phase, and no other events."
)


@pytest.mark.parametrize(
    ("prediction", "pairs", "events"),
    [
        (SENTENCE, 1.0, 1.0),
        ("I can see a cry in the 4 phase and a fall in the 1 phase.", 1.0, 1.0),
        ("A fall is visible in the first phase. There is a cry in the 4th phase.", 1.0, 1.0),
        ("In phase 1 the fall is visible, and in phase 4 the cry.", 1.0, 1.0),
        ("fall: 1; cry: 4", 1.0, 1.0),
        ("I can see a fall in the 1 phase, a cry in the 3 phase, and no other events.", 0.5, 1.0),
        ("I can see a fall and a cry in the 4 phase.", 0.5, 1.0),
        ("I can see a fall in the 1 and the 4 phase.", 0.5, 2 / 3),
        ("I can see a fall, and no other events are visible.", 0.0, 2 / 3),
        ("I can see a jump in the 1 phase", 0.0, 0.0),
        ("Based on the image, no events are visible.", 0.0, 0.0),
        ("I cannot see a fall or a cry.", 0.0, 0.0),
        ("I can see a fall in the 1 phase, a cry in", 0.5, 0.5),
    ],
)
def test_events_are_read_out_of_sentences(prediction, pairs, events):
    assert text_metrics.event_phase_f1(prediction, [SENTENCE]) == pytest.approx(pairs)
    assert text_metrics.event_f1(prediction, [SENTENCE]) == pytest.approx(events)


def test_a_sentence_without_events_is_right_where_there_are_none():
    truth = ["No other events are visible."]
    assert text_metrics.event_phase_f1("In this image, no events are visible.", truth) == 1
    assert text_metrics.event_phase_f1("There are no events", truth) == 1
    assert text_metrics.event_phase_f1("There is a fall in the 2 phase", truth) == 0


def test_numbers_of_hundreds_of_digits_and_deep_lists_are_scored():
    long, deep = "9" * 400, "[" * 900 + "1" + "]" * 900
    assert text_metrics.json_f1(long, [long]) == text_metrics.json_f1(deep, [deep]) == 1
    assert text_metrics.json_f1(long, ["1"]) == text_metrics.json_f1(deep, ["1"]) == 0
    assert text_metrics.count_exact(f'{{"a": {long}}}', [f'{{"a": {long}}}']) == 1
    assert text_metrics.count_exact(f'{{"a": {long}}}', [f'{{"a": {long[1:]}}}']) == 0


@given(st.one_of(st.text(), st.text(alphabet='{}[]":,1a')))
def test_a_models_text_never_raises(text):
    for name in ("json_f1", "json_exact", "count_exact", "event_f1", "event_phase_f1"):
        value = metrics.METRICS[name].value
        assert 0 <= value(text, ['{"a": 1}', "[1]"]) <= 1
        assert value(text, [text]) in (0, 1)


def test_json_that_does_not_read_is_counted():
    chosen = metrics.choose(["json_f1"])
    rows = [
        {"prediction": text, **text_metrics.score_example(text, suffix="{}", metrics=chosen)}
        for text in ("{}", "{", "[1]", "")
    ]
    assert text_metrics.aggregate(rows, metrics=chosen)["json_valid"] == 0.5
    assert "is no JSON" in text_metrics.check_json("{")
    assert text_metrics.check_json('{"a": 1}') is None
