"""A pointer or a web page under another name is called what it is, wherever it is met."""

import pytest

from paligemma_jax.data import file_heads, images, jsonl

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n"
PAGE = b"<!DOCTYPE html><html><body>Not found</body></html>"


@pytest.mark.parametrize(
    ("head", "told"), [(POINTER, "Git LFS pointer"), (PAGE, "web page"), (b"\n <HTML>", "web page")]
)
def test_what_a_file_is_is_told_by_its_beginning(head, told):
    assert told in (file_heads.describe(head) or "")


@pytest.mark.parametrize("head", [b"", b"\x89PNG", b"<svg>", b"{}"])
def test_other_files_are_not_judged(head):
    assert file_heads.describe(head) is None


@pytest.mark.parametrize(("content", "told"), [(POINTER, "git lfs pull"), (PAGE, "a web page")])
def test_training_is_told_what_lies_in_the_place_of_an_image_or_of_rows(tmp_path, content, told):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=told):
        images.load(path, res=8)
    with pytest.raises(ValueError, match=told):
        list(jsonl.read_lines(str(path)))
