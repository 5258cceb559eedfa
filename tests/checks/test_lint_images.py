"""Equal, empty and broken image files are found, by the rows that have them."""

import numpy as np
import pytest
from PIL import Image

from paligemma_jax.checks import lint, lint_images
from paligemma_jax.data import image_files, locations, objects, records


@pytest.fixture
def folder(tmp_path):
    """Images a, b, c (different, two of one size in bytes), and copy, which has the bytes of a."""
    for number, name in enumerate("abc"):
        pixels = np.full((6, 8, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.bmp")
    (tmp_path / "copy.bmp").write_bytes((tmp_path / "a.bmp").read_bytes())
    return tmp_path


def record(folder, line, image, prefix="detect cat", suffix="", **changes):
    return records.Record((str(folder / image),), prefix, suffix, source=f"x:{line}", **changes)


def make(*members, name="training data"):
    return lint.DataSet(name, members, [()] * len(members), [()] * len(members))


def contents_of(*sets):
    sizes = image_files.read_sizes(p for one in sets for r in one.records for p in r.images)
    return image_files.find_contents(sizes, num_workers=2)


def kinds(found):
    return {one.kind: [place.partition(" (")[0] for place in one.places] for one in found}


def test_files_are_equal_by_their_bytes_and_progress_ends_at_all_of_them(folder):
    sizes = image_files.read_sizes(str(folder / f"{n}.bmp") for n in ("a", "b", "c", "copy"))
    calls = []
    found = image_files.find_contents(
        sizes, num_workers=2, progress=lambda *counts: calls.append(counts)
    )
    a, b, c, copy = found.values()
    assert a == copy and len({a, b, c}) == 3
    assert calls[-1] == (sum(sizes.values()), sum(sizes.values()))


def test_rows_that_are_there_twice_are_found(folder):
    data = make(
        record(folder, 1, "a.bmp", suffix="one"),
        record(folder, 2, "b.bmp", suffix="one"),
        record(folder, 3, "copy.bmp", suffix="one"),
        record(folder, 4, "b.bmp", suffix="two"),
        record(folder, 5, "b.bmp", prefix="detect dog", suffix="one"),
    )
    assert kinds(lint_images.within(data, contents_of(data))) == {
        "same row twice": ["x:3"],
        "two answers to one question": ["x:4"],
    }


def test_images_in_two_splits_are_found(folder):
    training = lint.DataSet(
        *("training data", (record(folder, 1, "a.bmp"), record(folder, 2, "b.bmp"))),
        *([()] * 2, [()] * 2, True),
    )
    val = make(
        record(folder, 3, "copy.bmp"),
        record(folder, 4, "b.bmp", prefix="detect dog"),
        record(folder, 5, "c.bmp"),
        name="evals.val",
    )
    found = lint_images.between([training, val], contents_of(training, val))
    assert kinds(found) == {
        "same row in two data sets": ["x:3"],
        "same image in two data sets": ["x:4"],
    }
    assert [one.severity for one in found] == ["error", "warning"]
    assert found[0].places == ("x:3 (as x:1)",)


def test_one_file_given_twice_is_one_finding(folder):
    training, val = (make(record(folder, 1, "a.bmp"), name=name) for name in ("training", "val"))
    assert kinds(lint_images.between([training, val], contents_of(training))) == {
        "same data twice": []
    }


def test_files_that_cannot_be_used_are_found(folder):
    (folder / "empty.png").touch()
    (folder / "broken.bmp").write_bytes((folder / "a.bmp").read_bytes()[:40])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(folder / "deep.png")
    drawn = objects.make(8, 6, ["cat"], [[0, 0, 4, 4]])
    other = objects.make(16, 12, ["cat"], [[0, 0, 4, 4]])
    data = make(
        record(folder, 1, "a.bmp", objects=drawn),
        record(folder, 2, "empty.png"),
        record(folder, 3, "broken.bmp"),
        record(folder, 4, "turned.jpg"),
        record(folder, 5, "deep.png"),
        record(folder, 6, "b.bmp", objects=other),
    )
    sizes = image_files.read_sizes(p for r in data.records for p in r.images)
    paths = [path for path, size in sizes.items() if size]
    files = image_files.decode_all(paths, num_workers=2)
    assert (files[paths[0]].width, files[paths[0]].height) == (8, 6)
    assert kinds(lint_images.empty_files(data, sizes)) == {"empty image file": ["x:2"]}
    assert kinds(lint_images.decoded_files(data, files)) == {
        "image that cannot be decoded": ["x:3"],
        "image to be turned": ["x:4"],
        "image of 16 bits": ["x:5"],
        "image of another size": ["x:6"],
    }


def test_images_at_addresses_are_equal_where_their_addresses_are(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(
        locations, "read", {"s3://bucket/a.png": data, "s3://bucket/b.png": data}.get
    )
    first, second = "s3://bucket/a.png", "s3://bucket/b.png"
    members = [
        records.Record((path,), "detect cat", "", source=f"x:{line}")
        for line, path in enumerate((first, second, first), start=1)
    ]
    one = make(*members)
    assert image_files.read_sizes([first, second]) == {}
    assert lint_images.empty_files(one, {}) == []
    assert kinds(lint_images.within(one, {})) == {"same row twice": ["x:3"]}
    files = image_files.decode_all([first, second], num_workers=1)
    assert [(file.width, file.height) for file in files.values()] == [(8, 6), (8, 6)]
    assert lint_images.decoded_files(one, files) == []
