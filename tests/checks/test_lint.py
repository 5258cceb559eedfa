"""What is wrong with texts is found, by the rows that have it."""

import pathlib

import pytest

from paligemma_jax.checks import lint
from paligemma_jax.data import jsonl, prefix_lm, records, tokens
from paligemma_jax.tasks import box_text, task

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
BOX = "<loc0100><loc0200><loc0500><loc0600>"
DETECTION = task.choose("detection")


def record(line, suffix=f"{BOX} cat", prefix="detect cat", images=("a.png",)):
    return records.Record(images, prefix, suffix, source=f"x:{line}")


def make(*members, name="training data", is_training=True):
    answered = [box_text.parse(member.suffix or "").labels for member in members]
    asked = [box_text.prefix_classes(member.prefix) for member in members]
    return lint.DataSet(name, members, answered, asked, is_training)


def kinds(found):
    """Returns {kind: (severity, places without what is in brackets)}."""
    return {
        one.kind: (one.severity, [place.partition(" (")[0] for place in one.places])
        for one in found
    }


def test_boxes_are_found_by_what_is_wrong_with_them():
    spoilt = {
        2: "<loc0100><loc0200><loc0100><loc0600> cat",
        3: "<loc0100><loc0200><loc1024><loc0600> cat",
        4: "<loc0500><loc0200><loc0100><loc0600> cat",
        5: f"{BOX}cat",
        6: f"{BOX} cat;{BOX} cat",
        7: "",
    }
    data = [record(1), *(record(line, suffix) for line, suffix in spoilt.items()), record(8)]
    found = lint.suffixes("data", data, parse=DETECTION.parse, check=DETECTION.check)
    assert kinds(found) == {
        "box of zero area": ("error", ["x:2"]),
        "box out of range": ("error", ["x:3"]),
        "box with its corners swapped": ("error", ["x:4"]),
        lint.BAD_SUFFIX: ("error", ["x:5", "x:6"]),
        "empty suffix": ("note", ["x:7"]),
    }


def test_what_is_wrong_alike_is_said_once_with_its_count_and_the_first_rows():
    spoilt = [record(line, f"{BOX} cat, {BOX} cat") for line in range(1, 8)]
    spoilt += [record(line, "cat") for line in range(8, 11)]
    (found,) = lint.suffixes("data", spoilt, parse=DETECTION.parse, check=DETECTION.check)
    comma, label = found.what.splitlines()
    assert comma.endswith(f"should be '{BOX} cat ; {BOX} cat' (6 more likewise)")
    assert label == "object 1 has no <loc> token before its label: 'cat' (2 more likewise)"
    assert (found.count, found.places) == (10, tuple(f"x:{line}" for line in range(1, 6)))


def test_another_task_s_answers_are_one_error_for_each_data_set():
    words = [record(line, "red") for line in range(1, 41)]
    sets = [make(*words), make(*words, name="evals.val", is_training=False), make(record(1))]
    first, second = lint.other_task(sets, "detection")
    assert (first.severity, first.subject, second.subject) == (
        "error",
        "training data",
        "evals.val",
    )
    assert first.what.startswith("all 40 answers are words") and "task='vqa'" in first.remedy


def test_boxes_that_would_be_learnt_as_words_are_one_warning_unless_other_sources_have_words():
    boxes, words = [record(1)] * 5, [record(1, "red")] * 5
    (found,) = lint.other_task([make(*boxes), make(*boxes, is_training=False)], "vqa")
    assert (found.severity, found.subject) == ("warning", "training data")
    assert lint.other_task([make(*boxes), make(*words, name="b")], "vqa") == []


def test_a_data_set_of_empty_suffixes_is_worth_a_warning():
    data = [record(1, ""), record(2, "")]
    found = lint.suffixes("data", data, parse=DETECTION.parse, check=DETECTION.check)
    assert kinds(found) == {"empty suffix": ("warning", ["x:1", "x:2"])}


def test_an_empty_answer_is_an_error_where_the_task_needs_one():
    vqa = task.choose("vqa")
    found = lint.suffixes(
        "data", [record(1, "yes"), record(2, " ")], parse=vqa.parse, check=vqa.check
    )
    assert kinds(found) == {lint.BAD_SUFFIX: ("error", ["x:2"])}


@pytest.mark.parametrize("other", ["Cat", "CAT"])
def test_a_class_spelt_in_two_ways_is_found_over_all_data_sets(other):
    training = make(record(1), record(2))
    val = make(record(3, f"{BOX} {other}", f"detect {other}"), name="evals.val", is_training=False)
    (found,) = lint.spellings([training, val])
    assert (found.severity, found.count, found.places) == ("error", 1, ("x:3",))
    assert found.what == f"one class in 2 spellings, in answers: 'cat' 2, '{other}' 1"


def test_the_spelling_of_most_answers_is_the_one_to_take_whatever_prompts_say():
    prefix = "detect Cat"
    data = [record(i, f"{BOX} Cat", "detect cat") for i in range(3)]
    data += [record(i, "", prefix) for i in range(9)] + [record(9, prefix=prefix)]
    data += [record(i, "", "detect cat") for i in range(20)]
    (found,) = lint.spellings([make(*data)])
    assert found.what.endswith("in answers: 'Cat' 3, 'cat' 1")
    assert found.remedy.startswith("write 'Cat' everywhere")


def test_spaces_hyphens_and_underscores_do_not_make_a_class():
    labels = ("traffic light", "traffic-light", "Traffic_Light", "trafficlight")
    data = make(*(record(i, f"{BOX} {name}", f"detect {name}") for i, name in enumerate(labels)))
    (found,) = lint.spellings([data])
    assert found.count == 3 and "4 spellings" in found.what


def test_classes_that_differ_otherwise_are_no_spellings_of_each_other():
    labels = ("c", "c++", "class 1", "class 2", "-", "_")
    data = make(*(record(i, f"{BOX} {name}", f"detect {name}") for i, name in enumerate(labels)))
    assert lint.spellings([data]) == []


def test_prompts_that_ask_for_other_classes_are_found():
    data = make(
        record(1),
        record(2, prefix="detect dog"),
        record(3, f"{BOX} cat ; {BOX} bird"),
        record(4, prefix="detect cat ; dog"),
        record(5, "", prefix="detect dog"),
        record(6, prefix="detect all classes"),
        record(7, prefix="what is this?"),
    )
    assert kinds(lint.prompts(data)) == {
        "prefix names no class": ("error", ["x:2"]),
        "class not asked for": ("warning", ["x:3"]),
    }


def test_words_that_refer_to_an_object_are_no_wrong_class():
    data = make(
        record(1, prefix="detect the cat on the left"),
        record(2, prefix="detect black cat ; dog"),
        record(3, prefix="detect catfish"),
    )
    assert kinds(lint.prompts(data)) == {"prefix names no class": ("error", ["x:3"])}
    own_words = [record(i, prefix=f"detect what the {i}. child strokes") for i in range(10)]
    known = [record(i) for i in range(10, 20)]
    (note,) = lint.prompts(make(*own_words, *known))
    assert (note.severity, note.kind, note.count) == ("note", "prompts in words of their own", 10)
    (error,) = lint.prompts(make(*own_words[:8], *known, record(21)))
    assert (error.severity, error.kind) == ("error", "prefix names no class")


def test_prompts_that_had_the_words_of_their_template_are_a_note():
    report = jsonl.Report("x.jsonl")
    report.notes["prompts with their own 'answer en': written once"] = 3
    (note,) = lint.bad_lines("training data", report)
    assert (note.severity, note.count) == ("note", 3) and "answer en" in note.what


def test_a_rare_class_and_a_class_that_is_never_trained_are_found():
    training = make(*(record(i) for i in range(49)), record(50, f"{BOX} dog", "detect dog"))
    val = make(record(60, f"{BOX} bird", "detect bird"), name="evals.val", is_training=False)
    assert kinds(lint.balance([training, val])) == {"class never trained": ("warning", ["x:60"])}
    rarer = make(*training.records, record(51))
    assert kinds(lint.balance([rarer])) == {"classes out of balance": ("warning", [])}


def test_classes_are_counted_by_objects_and_rows():
    training = make(record(1, f"{BOX} cat ; {BOX} cat"), record(2))
    val = make(record(3, f"{BOX} dog"), name="evals.val", is_training=False)
    assert lint.count_classes([training, val]) == {
        "cat": {"training data": (3, 2), "evals.val": (0, 0)},
        "dog": {"training data": (0, 0), "evals.val": (1, 1)},
    }


def test_more_images_than_slots_are_found():
    data = [record(1), record(2, images=("a.png", "b.png"))]
    (found,) = lint.image_slots("data", data, 1)
    assert found.places == ("x:2",) and found.remedy == "set input.max_images=2"
    assert lint.image_slots("data", data, 2) == []


def length_report(*suffixes, text_len):
    tokenizer = tokens.load_tokenizer(REFERENCE / "tiny_spm.model")
    data = [record(i, suffix, "a") for i, suffix in enumerate(suffixes, start=1)]
    return prefix_lm.length_report(data, tokenizer, text_len=text_len)


def test_texts_that_lose_their_eos_are_found_with_the_text_len_that_fits():
    report = length_report("b", "b b b b", "b", text_len=6)
    (found,) = lint.lengths("data", report, suggested=32, allow_truncation=False)
    assert (found.severity, found.kind) == ("error", "no room for eos")
    assert found.places == ("x:2 (needs 7)",) and "input.text_len=32" in found.remedy
    (found,) = lint.lengths("data", report, suggested=32, allow_truncation=True)
    assert found.severity == "warning"


def test_a_users_own_eos_is_a_note():
    report = length_report("b", "b<eos>", text_len=32)
    found = lint.lengths("data", report, suggested=16, allow_truncation=False)
    assert kinds(found) == {"bos, newline or eos of its own": ("note", [])}


def test_a_text_len_of_twice_the_need_is_a_note_and_a_little_more_is_none():
    short, longer = length_report("b", text_len=32), length_report("b b b b b b", text_len=32)
    assert (short.longest, longer.longest) == (4, 9)
    (found,) = lint.spare_length(32, [short, longer])
    assert found.severity == "note" and "the longest row needs 9" in found.what
    assert found.remedy.startswith("input.text_len=16 ")
    assert lint.spare_length(31, [longer]) == [] == lint.spare_length(32, [])


def test_rows_without_the_keys_of_a_score_are_one_error_that_names_them():
    chosen = task.look_up("vqa", task.Options(scores=("vqav2_accuracy",)))
    good = records.Record((), "answer en why?", "red", "x:1", {"answers": ["red", "rose"]})
    bad = records.Record((), "answer en why?", "red", "x:2", {"answer_type": "other"})
    (found,) = lint.unscored("evals.val", [good, bad], check_row=chosen.check_row)
    assert (found.severity, found.kind) == ("error", "rows cannot be scored")
    assert "score 'vqav2_accuracy' needs the key 'answers'" in found.what
    assert found.places == ("x:2",)
