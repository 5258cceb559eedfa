"""The same small data set, moved, renamed and written anew, gives the same rows in any format."""

import os
import shutil
import unicodedata

import pytest

from paligemma_jax import import_data
from paligemma_jax.importers import example, formats, pictures
from tests import small_sets

# What happened to a data set -> (folder of its images, an image as its annotations name it).
MOVES = {
    "as it was": ("images", "images/{}.png"),
    "folder of another name": ("photos", "photos/{}.png"),
    "one folder deeper": ("data/images", "images/{}.png"),
    "named from another folder": ("images", "{}.png"),
    "backslashes": ("images", "images\\{}.png"),
    "absolute, another machine": ("images", "/home/me/set/images/{}.png"),
    "absolute, Windows": ("images", "C:\\set\\images\\{}.png"),
    "from the folder above": ("images", "set/images/{}.png"),
    "another case, Windows": ("images", "IMAGES\\{}.PNG"),
    "at an address": ("images", "https://example.org/set/images/{}.png?key=secret"),
}
ENCODINGS = {
    "plain": lambda text: text.encode(),
    "byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
}


def test_every_format_is_among_those_that_are_moved():
    assert set(small_sets.FORMATS) == set(formats.FORMATS)


def rows(folder, read, name, **written):
    """Returns the contents of a data set that is written and read."""
    small_sets.write(folder, name, **written)
    _, examples, _ = read(name, folder, **small_sets.FORMATS[name][1])
    return small_sets.contents(examples)


def options(name):
    """Returns the words of the command that a format needs."""
    request = small_sets.FORMATS[name][1]
    classes = request.get("classes")
    return [
        f"--task={request.get('task', 'detection')}",
        *([f"--classes={','.join(classes)}"] if classes else []),
    ]


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_data_set_that_was_moved_gives_the_same_rows(tmp_path, read, name, move):
    place, shown = MOVES[move]
    found = rows(tmp_path / "set", read, name, place=place, shown=shown)
    assert found == small_sets.expected(name)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_data_set_that_was_saved_anew_gives_the_same_rows(tmp_path, read, name, encoding):
    found = rows(tmp_path / "set", read, name, encode=ENCODINGS[encoding])
    assert found == small_sets.expected(name)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize("name", formats.FORMATS)
def test_another_encoding_gives_the_same_rows_or_one_error_that_names_the_file(
    tmp_path, name, encoding
):
    small_sets.write(tmp_path / "set", name, encode=lambda text: text.encode(encoding))
    words = [str(tmp_path / "set"), str(tmp_path / "out"), f"--format={name}", *options(name)]
    error = None
    try:
        import_data.main(words)
    except ValueError as raised:
        error = str(raised)
    if error is not None:
        files = [path.name for path in (tmp_path / "set").rglob("*") if path.suffix != ".png"]
        assert any(file in error for file in files)
        assert not (tmp_path / "out").exists()
        return
    text = (tmp_path / "out/train.jsonl").read_text()
    dropped = tmp_path / "out/dropped.jsonl"
    images = (
        [line for line in dropped.read_text().splitlines() if '"image"' in line]
        if (dropped.exists())
        else []
    )
    assert text.count("\n") + len(images) == len(small_sets.BOXES) and '"suffix": ""' not in text


@pytest.mark.parametrize(
    "as_stored", [lambda name: unicodedata.normalize("NFD", name), str.upper], ids=["Mac", "upper"]
)
@pytest.mark.parametrize("name", formats.FORMATS)
def test_images_that_another_system_named_are_found(tmp_path, read, name, as_stored):
    found = rows(tmp_path / "set", read, name, as_stored=as_stored)
    assert found == small_sets.expected(name)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_what_a_mac_packs_beside_a_data_set_is_no_part_of_it(tmp_path, read, name):
    folder = tmp_path / "set"
    small_sets.write(folder, name)
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        other = folder / "__MACOSX" / path.relative_to(folder)
        other.parent.mkdir(parents=True, exist_ok=True)
        other.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\xff")
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\xff")
    for place in (".ipynb_checkpoints", "@eaDir/b.png"):
        for path in folder.glob("images/*.png"):
            (folder / "images" / place).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / "images" / place / f"{path.stem}-checkpoint.png")
    _, examples, tally = read(name, folder, **small_sets.FORMATS[name][1])
    assert small_sets.contents(examples) == small_sets.expected(name)
    assert not tally.drops and formats.detect_all(str(folder))[name]


@pytest.mark.parametrize("name", formats.FORMATS)
def test_pipes_and_devices_are_not_opened(tmp_path, read, name):
    folder = tmp_path / "set"
    small_sets.write(folder, name)
    for path in (folder, folder / "images"):
        for ending in ("txt", "xml", "json", "jsonl", "csv", "yaml", "parquet", "png"):
            os.mkfifo(path / f"pipe.{ending}")
            (path / f"zero.{ending}").symlink_to("/dev/zero")
    _, examples, _ = read(name, folder, **small_sets.FORMATS[name][1])
    assert small_sets.contents(examples) == small_sets.expected(name)


@pytest.mark.parametrize("name", sorted(formats.FORMATS.keys() - {"masks"}))
def test_a_link_to_annotations_elsewhere_is_an_error_that_shows_nothing_of_them(tmp_path, name):
    folder = tmp_path / "set"
    small_sets.write(folder, name)
    for path in [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"]:
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        path.symlink_to(path.rename(tmp_path / "elsewhere" / path.name))
    words = [str(folder), str(tmp_path / "out"), f"--format={name}", *options(name)]
    with pytest.raises(ValueError, match=r"is a link that leads out of .*: put the file itself"):
        import_data.main(words)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_data_set_in_a_folder_in_a_folder_is_found(tmp_path, name):
    small_sets.write(tmp_path / "set/inner/one", name)
    import_data.main([str(tmp_path / "set"), str(tmp_path / "out"), *options(name)])
    assert (tmp_path / "out/train.jsonl").read_bytes().count(b"\n") == len(small_sets.BOXES)


@pytest.mark.parametrize("name", small_sets.NAMED)
def test_classes_that_are_asked_for_are_taken_and_others_are_said(tmp_path, capsys, name):
    small_sets.write(tmp_path / "set", name)
    words = [str(tmp_path / "set"), str(tmp_path / "out"), f"--format={name}", *options(name)]
    import_data.main([*words, "--classes=dog"])
    left_out = "changed  1 object left out of classes that are not asked for: cat (1)"
    assert left_out in capsys.readouterr().err
    text = (tmp_path / "out/train.jsonl").read_text()
    assert '"detect dog"' in text and "cat" not in text
    with pytest.raises(
        ValueError, match=r"no row has an object.*\n.*not asked for: cat \(1\), dog"
    ):
        import_data.main([*words, "--classes=emu", "--overwrite"])


def locate(folder, *names):
    """Returns (the names found, the reasons of those that were not)."""
    tally, finder = example.Tally(), pictures.open_folder(str(folder))
    found = [pictures.locate(finder, name, "x:1", tally) for name in names]
    return [one.name for one in found if one], [drop.reason for drop in tally.drops]


def test_an_image_of_another_split_is_not_taken_for_the_one_that_is_missing(tmp_path, picture):
    picture("1.png")
    picture("valid/2.png")
    assert locate(tmp_path, "train/1.png") == ([], ["image not found"])
    assert locate(tmp_path / "valid", "/x/valid/2.png") == (["2.png"], [])
    assert locate(tmp_path / "valid", "/x/train/2.png")[0] == []


def test_two_names_do_not_share_one_image(tmp_path, picture):
    picture("1.png")
    names = ["1.png", "/x/a/1.png", "/x/a/1.png"]
    assert locate(tmp_path, *names) == (["1.png"], ["image not found"] * 2)
    assert locate(tmp_path, *names[1:]) == (["1.png", "1.png"], [])


def test_a_path_that_leads_out_of_the_folder_stays_refused(tmp_path, picture):
    picture("in/1.png")
    assert locate(tmp_path / "in", "../1.png", "a/../../1.png")[0] == []
