"""Reading JSONL: what Roboflow exports, mapped keys, and every kind of bad line."""

import json
import os

import pytest

from paligemma_jax.data import records


@pytest.fixture
def folder(tmp_path):
    """A data set's folder with empty images a.png, b.png, sub/c.png: only names count."""
    root = tmp_path / "dataset"
    (root / "sub").mkdir(parents=True)
    for name in ("a.png", "b.png", "sub/c.png"):
        (root / name).touch()
    return root


def write(folder, *rows, end="\n"):
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path = folder / "_annotations.train.jsonl"
    path.write_bytes(end.encode().join(lines) + end.encode())
    return path


def row(image="a.png", prefix="detect cat", suffix="cat", **extra):
    return dict(image=image, prefix=prefix, suffix=suffix, **extra)


def error_of(path, **kwargs) -> str:
    with pytest.raises(ValueError) as error:
        records.read_jsonl(path, **kwargs)
    return str(error.value)


def test_a_roboflow_export_is_read_as_it_is(folder):
    path = write(folder, row(), row("sub/c.png", suffix="dog", width=640))
    first, second = records.read_jsonl(path)
    assert first == records.Record(
        images=(str(folder / "a.png"),),
        prefix="detect cat",
        suffix="cat",
        source=f"{path}:1",
        extra={},
    )
    assert second.images == (str(folder / "sub" / "c.png"),)
    assert second.extra == {"width": 640}


@pytest.mark.parametrize(
    ("image", "names"),
    [(["a.png", "sub/c.png"], ["a.png", "sub/c.png"]), ([], []), (None, [])],
)
def test_an_image_may_be_a_list_or_absent(folder, image, names):
    (record,) = records.read_jsonl(write(folder, row(image)))
    assert record.images == tuple(str(folder / name) for name in names)


def test_keys_are_mapped_and_a_template_makes_the_prefix(folder):
    path = write(folder, dict(file="a.png", question="how many?", answer="3", n=1))
    (record,) = records.read_jsonl(
        path,
        keys=dict(image="file", prefix="question", suffix="answer"),
        prefix_template="answer en {question} {{{n}}}",
    )
    assert (record.prefix, record.suffix) == ("answer en how many? {1}", "3")
    assert record.extra == {"n": 1}


def test_a_list_of_choices_stands_in_a_prompt_a_tab_apart(folder):
    path = write(folder, row(question="which?", choices=["a cat", "a dog"]))
    template = "answer en  {question} choose from: {choices}"
    (record,) = records.read_jsonl(path, prefix_template=template)
    assert record.prefix == "answer en  which? choose from: a cat \t a dog"
    path = write(folder, row(question="which?", choices=["a cat", 3]))
    assert "expected text, a number or a list of texts" in error_of(path, prefix_template=template)


def test_words_that_a_question_has_itself_are_not_written_twice(folder):
    questions = ["answer en how many?", " Answer  en: which?", "Answer EN how many?", "answer end?"]
    path = write(folder, *(dict(row(), question=question) for question in questions))
    read, report = records.scan_jsonl(path, prefix_template="answer en {question}")
    assert [record.prefix for record in read] == [
        "answer en how many?",
        "answer en  Answer  en: which?",
        "Answer EN how many?",
        "answer en answer end?",
    ]
    assert report.notes == {"prompts with their own 'answer en': written once": 2}
    _, report = records.scan_jsonl(path, prefix_template="{question} {suffix}")
    assert not report.notes


@pytest.mark.parametrize("template", ["{", "{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:3}"])
def test_a_template_holds_plain_fields_only(folder, template):
    assert "prefix_template" in error_of(write(folder, row()), prefix_template=template)


def test_unknown_names_in_keys_are_refused(folder):
    assert "['prefx']" in error_of(write(folder, row()), keys=dict(prefx="question"))


def test_the_suffix_is_optional_where_answers_are_predicted(folder):
    path = write(folder, dict(image="a.png", prefix="detect cat"))
    assert "key 'suffix' missing" in error_of(path)
    (record,) = records.read_jsonl(path, required=("image", "prefix"))
    assert record.suffix is None


def test_byte_order_mark_crlf_and_blank_lines_at_the_end_are_accepted(folder):
    path = write(folder, row(), row("b.png"), b"", b"  ", end="\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [r.source for r in records.read_jsonl(path)] == [f"{path}:1", f"{path}:2"]


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(folder, content):
    path = folder / "x.jsonl"
    path.write_bytes(content)
    assert f"{path}: the file is empty" in error_of(path)


def test_a_missing_file_names_the_jsonl_files_beside_it(folder):
    path = write(folder, row())
    assert f"did you mean {path}?" in error_of(folder / "_annotations.test.jsonl")


def test_utf16_is_told_apart(folder):
    path = folder / "x.jsonl"
    path.write_text(json.dumps(row()), encoding="utf-16")
    assert "UTF-16" in error_of(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"image": "a.png", ', "broken JSON"),
        (b"[" * 100_000, "broken JSON"),
        (b'[{"image": "a.png"}]', "expected one JSON object per line, found a list"),
        (b'{"image": "a.png", "prefix": "caf\xe9", "suffix": ""}', "0xe9 at position 34 is not"),
        (b"", "the line is empty"),
        ({"image": "a.png", "prefix": "x"}, "key 'suffix' missing; found ['image', 'prefix']"),
        ({"prefix": "x", "suffix": "y"}, "key 'image' missing"),
        (row(suffix=3), "key 'suffix': expected text, found int 3"),
        (row(suffix=None), "key 'suffix': expected text, found null"),
        (row(prefix=["x"]), "key 'prefix': expected text, found list"),
        (row(image=7), "key 'image': expected a path or a list of paths, found 7"),
        (row(image=["a.png", 7]), "key 'image'"),
        (row(image=""), "key 'image'"),
        (row(prefix="\ud800"), "key 'prefix': half of a surrogate pair"),
        (row(image="A.PNG"), "image 'A.PNG': no such file"),
        (row(image="nowhere/a.png"), "image 'nowhere/a.png': no such file"),
        (row(image="sub"), "image 'sub': no such file"),
        (row(image="a\0.png"), "no such file"),
        (row(image="../secret.png"), "outside"),
        (row(image="sub/../../secret.png"), "outside"),
        (row(image="/etc/hostname"), "outside"),
        (row(image="a.png/"), "no such file"),
        (row(image=".."), "no such file"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(folder, line, reason):
    (folder.parent / "secret.png").touch()
    path = write(folder, row(), line, row())
    message = error_of(path)
    assert f"{path}: 1 of 3 lines is bad" in message
    assert f"{path}:2: " in message and reason in message


def test_a_key_that_the_template_needs_must_be_there_and_be_text(folder):
    path = write(folder, row(), row(question=True))
    message = error_of(path, prefix_template="answer {question}")
    assert "1: key 'question' missing" in message and "found bool True" in message


def test_symbolic_links_do_not_lead_out_of_the_folder(folder):
    secret = folder.parent / "secret.png"
    secret.touch()
    (folder / "link.png").symlink_to(secret)
    (folder / "out").symlink_to(folder.parent)
    (folder / "inside.png").symlink_to(folder / "sub" / "c.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    images = ("link.png", "out/secret.png", "circle.png")
    message = error_of(write(folder, *map(row, images)))
    assert "2 image outside the folder" in message and "1 image not found" in message
    (record,) = records.read_jsonl(write(folder, row("inside.png")))
    assert os.path.samefile(record.images[0], folder / "sub" / "c.png")


def test_an_absolute_path_inside_the_folder_is_accepted(folder):
    (record,) = records.read_jsonl(write(folder, row(str(folder / "a.png"))))
    assert record.images == (str(folder / "a.png"),)


def test_image_dir_replaces_the_files_own_folder(folder, tmp_path):
    path = write(tmp_path, row())
    assert "no such file" in error_of(path)
    (record,) = records.read_jsonl(path, image_dir=folder)
    assert record.images == (str(folder / "a.png"),)
    assert "no such folder" in error_of(path, image_dir=tmp_path / "nowhere")


def test_the_tasks_grammar_is_checked(folder):
    path = write(folder, row(), row(suffix="<loc9999> cat"))
    check = {"cat": None, "<loc9999> cat": "1 of 4 coordinates"}.get
    message = error_of(path, check=check)
    assert f"{path}:2: suffix '<loc9999> cat': 1 of 4 coordinates" in message
    assert "1 bad suffix" in message


def test_all_problems_are_counted_and_the_first_lines_are_listed(folder):
    bad = [row(image=f"{number}.png", suffix=1) for number in range(30)]
    message = error_of(write(folder, row(), *bad))
    assert "30 of 31 lines are bad" in message
    assert ":21: image '19.png'" in message and ":22:" not in message
    assert "... and 10 more" in message
    assert "30 image not found, 30 wrong type" in message


def test_lines_that_are_bad_alike_are_listed_once(folder):
    path = write(folder, row(), *[row(suffix=1)] * 30, row(suffix=2))
    message = error_of(path)
    assert f"{path}:2: key 'suffix': expected text, found int 1 (29 more likewise)" in message
    assert message.count("expected text") == 2 and "... and" not in message


@pytest.mark.parametrize("image", ["A.PNG", "a.jpg", "A"])
def test_an_image_that_is_spelt_otherwise_is_named(folder, image):
    assert "did you mean a.png?" in error_of(write(folder, row(image)))


def test_progress_ends_at_the_files_size(folder):
    path = write(folder, *[row()] * 2500)
    calls = []
    assert len(records.read_jsonl(path, progress=lambda *done: calls.append(done))) == 2500
    size = path.stat().st_size
    assert calls[-1] == (size, size)
    assert len(calls) == 3 and calls == sorted(calls)


def test_a_folder_is_listed_once_however_many_rows_it_has(folder, monkeypatch):
    scans = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scans.append(path) or scandir(path))
    records.read_jsonl(write(folder, *[row(), row("sub/c.png")] * 50))
    assert sorted(scans) == [str(folder), str(folder / "sub")]


def test_a_scan_keeps_good_records_and_counts_the_others_by_kind(folder):
    bad = [row("gone.png", suffix=7), b"{", row("gone.png")]
    path = write(folder, row(), *bad, row("b.png"))
    found, problems = records.scan_jsonl(path)
    assert [record.source for record in found] == [f"{path}:1", f"{path}:5"]
    assert (problems.num_lines, problems.num_bad) == (5, 3)
    assert problems.kinds == {"image not found": 2, "wrong type": 1, "broken JSON": 1}
    assert problems.places == {
        "image not found": [f"{path}:2", f"{path}:4"],
        "wrong type": [f"{path}:2"],
        "broken JSON": [f"{path}:3"],
    }
    with pytest.raises(ValueError, match="3 of 5 lines are bad"):
        problems.raise_problems()
