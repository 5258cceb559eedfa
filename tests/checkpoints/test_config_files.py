"""Settings of other programs: what is no JSON object is named, a long value is cut."""

import pytest

from paligemma_jax.checkpoints import config_files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.json:1: not JSON"),
        (b'{\n"a": }', r"a\.json:2: not JSON.*copy it again"),
        (b"\xff\xfe\xfa", r"a\.json: not JSON: not in UTF-8"),
        (b"[" * 100_000, r"a\.json: not JSON: brackets too deep"),
        (b"[1, 2]", r"a\.json: \[1, 2\], expected a JSON object: it says how"),
        (b"null", r"a\.json: null, expected a JSON object"),
    ],
)
def test_what_is_no_object_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        config_files.read(tmp_path / "a.json", "it says how")


def test_a_missing_file_and_a_folder_in_its_place_are_named(tmp_path):
    for place in (tmp_path / "b.json", tmp_path):
        with pytest.raises(ValueError, match=f"{place}: not found; it says how"):
            config_files.read(place, "it says how")


def test_only_the_neutral_values_are_neutral():
    assert all(map(config_files.is_neutral, [None, False, "", [], {}]))
    assert not any(map(config_files.is_neutral, [0, 0.0, True, "none", [None], {"a": None}]))


def test_every_key_that_is_not_understood_is_named_and_long_values_are_cut():
    settings = {"a": 1, "b": "x" * 500, "c": 1, "d": None, "e": True}
    with pytest.raises(ValueError, match=r"here: b is .* and this key is not known; e is") as error:
        config_files.check_closed(
            settings,
            read_elsewhere=("a",),
            without_effect=("c",),
            allowed={"e": (1,)},
            where="here",
            remedy="remove them",
        )
    assert len(str(error.value)) < 200 and str(error.value).endswith(": remove them")
