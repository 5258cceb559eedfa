"""Trained arrays over their base: found, compared, read as one, and refused where it must be."""

import ml_dtypes
import numpy as np
import pytest

from paligemma_jax.checkpoints import npz, partial_weights

BASE = {
    "img/a": np.arange(4, dtype="float32") / 3,
    "llm/b": np.arange(6, dtype="float32").reshape(2, 3) / 7,
    "llm/c": np.ones(2, "float32"),
}
TRAINED = {"llm/b": np.full((2, 3), 5.0, "float32")}


@pytest.fixture
def files(tmp_path):
    """Writes base.npz and trained.npz, which says that it lacks two of three arrays."""

    def write(*, dtype=None, trained=TRAINED, **changes):
        npz.write(tmp_path / "base.npz", BASE)
        base = partial_weights.find(tmp_path / "base.npz")
        metadata = {
            "res": 28,
            partial_weights.NUM_ARRAYS: 3,
            partial_weights.BASE: partial_weights.describe_base("pt_224", base, dtype=dtype)
            | changes,
        }
        npz.write(tmp_path / "trained.npz", trained, metadata=metadata)
        return tmp_path / "trained.npz"

    return write


def test_the_recorded_base_completes_the_trained_arrays(files):
    weights = partial_weights.find(files())
    params = weights.read()
    assert set(params) == set(weights.arrays) == set(BASE)
    np.testing.assert_array_equal(params["llm/b"], TRAINED["llm/b"])
    np.testing.assert_array_equal(params["img/a"], BASE["img/a"])
    assert partial_weights.NUM_ARRAYS not in weights.metadata and weights.metadata["res"] == 28
    assert [path.name for path in weights.files] == ["trained.npz", "base.npz"]
    assert list(weights.read(["llm/c", "llm/b"])) == ["llm/c", "llm/b"]


def test_a_whole_file_needs_no_base_although_it_names_one(files, tmp_path):
    whole = {**BASE, **TRAINED}
    npz.write(tmp_path / "whole.npz", whole, metadata={partial_weights.BASE: {"path": "gone"}})
    assert set(partial_weights.find(tmp_path / "whole.npz").read()) == set(whole)
    files()
    with pytest.raises(ValueError, match=r"has all arrays of the base .*: leave the base out"):
        partial_weights.find(tmp_path / "whole.npz", base=tmp_path / "base.npz")


def test_the_bases_arrays_come_in_the_type_that_the_run_held_them_in(files):
    weights = partial_weights.find(files(dtype="bfloat16"))
    assert weights.arrays["img/a"].dtype == weights.read(["img/a"])["img/a"].dtype
    params = weights.read(transform=lambda _, array: array.astype("float64"))
    rounded = BASE["img/a"].astype(ml_dtypes.bfloat16).astype("float64")
    np.testing.assert_array_equal(params["img/a"], rounded)
    np.testing.assert_array_equal(params["llm/b"], TRAINED["llm/b"])


def test_progress_counts_the_bytes_of_all_files(files):
    seen = []
    partial_weights.find(files()).read(progress=lambda *counts: seen.append(counts))
    assert seen == [(24, 48), (40, 48), (48, 48)]


def test_a_base_may_have_a_base_itself(files, tmp_path):
    first = partial_weights.find(files(dtype="bfloat16"))
    metadata = {
        partial_weights.BASE: partial_weights.describe_base("first", first, dtype=None),
        partial_weights.NUM_ARRAYS: 3,
    }
    npz.write(tmp_path / "second.npz", {"llm/c": np.zeros(2, "float32")}, metadata=metadata)
    params = partial_weights.find(tmp_path / "second.npz").read()
    np.testing.assert_array_equal(params["llm/c"], np.zeros(2))
    np.testing.assert_array_equal(params["llm/b"], TRAINED["llm/b"])
    assert params["img/a"].dtype == ml_dtypes.bfloat16


def test_a_base_that_moved_is_asked_for_with_real_counts(files, tmp_path):
    trained = files()
    (tmp_path / "base.npz").rename(tmp_path / "moved.npz")
    with pytest.raises(
        ValueError, match=r"2 of 3 arrays missing: trainable-only file, give --base\. .*pt_224"
    ):
        partial_weights.find(trained)
    assert set(partial_weights.find(trained, base=tmp_path / "moved.npz").read()) == set(BASE)
    places = {"pt_224": "moved.npz"}
    fetched = partial_weights.find(
        trained, fetch=lambda source: tmp_path / places[source], published=places
    )
    assert set(fetched.read()) == set(BASE)

    def refuse(source):
        raise OSError(f"no network for {source}")

    with pytest.raises(ValueError, match=r"2 of 3 arrays missing.*no network for pt_224"):
        partial_weights.find(trained, fetch=refuse, published=places)


def test_another_base_is_refused_naming_both(files, tmp_path):
    trained = files()
    npz.write(tmp_path / "other.npz", {**BASE, "llm/c": np.zeros(2, "float32")})
    message = r"trained\.npz was trained from pt_224 \(fingerprint \w{12}\); .*other\.npz is anoth"
    with pytest.raises(ValueError, match=message):
        partial_weights.find(trained, base=tmp_path / "other.npz")
    (tmp_path / "other.npz").rename(tmp_path / "base.npz")
    with pytest.raises(ValueError, match=r"base\.npz is another file"):
        partial_weights.find(trained)


def test_trained_arrays_from_elsewhere_are_laid_over_any_base(tmp_path):
    npz.write(tmp_path / "base.npz", BASE)
    np.savez(tmp_path / "bare.npz", **TRAINED)
    params = partial_weights.find(tmp_path / "bare.npz", base=tmp_path / "base.npz").read()
    np.testing.assert_array_equal(params["llm/b"], TRAINED["llm/b"])
    assert set(partial_weights.find(tmp_path / "bare.npz").read()) == set(TRAINED)


def test_what_the_base_cannot_give_differs_by_name_or_shape(files):
    base = partial_weights.find(files()).base
    arrays = {"img/a": np.zeros(4), "llm/b": np.zeros(6), "llm/new": np.zeros(1)}
    assert partial_weights.differing(arrays, base) == {"llm/b", "llm/new"}


def test_a_damaged_base_is_found_when_it_is_read(files, tmp_path):
    weights = partial_weights.find(files())
    data = bytearray((tmp_path / "base.npz").read_bytes())
    data[data.index(BASE["img/a"].tobytes())] ^= 1
    (tmp_path / "base.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"base\.npz: member 'img/a\.npy' is damaged"):
        weights.read()


def test_what_a_file_from_elsewhere_names_is_neither_opened_nor_fetched(files, tmp_path):
    trained = files(source="https://example.com/base.npz")
    elsewhere, theirs = tmp_path / "elsewhere", tmp_path / "theirs"
    elsewhere.mkdir()
    theirs.mkdir()
    (tmp_path / "base.npz").rename(elsewhere / "base.npz")
    trained = trained.rename(theirs / "trained.npz")
    header = npz.read_header(trained)
    base = {**header.metadata["base"], "path": str(elsewhere / "base.npz")}
    metadata = {k: x for k, x in header.metadata.items() if k != "dtypes"} | {"base": base}
    npz.write(trained, TRAINED, metadata=metadata)

    def refuse(source):
        raise AssertionError(f"{source} was asked for")

    for known in ((), ("pt_224",)):
        with pytest.raises(ValueError, match=r"2 of 3 .*give --base.*https://example.com.*opened"):
            partial_weights.find(trained, fetch=refuse, published=known)
    assert set(partial_weights.find(trained, base=elsewhere / "base.npz").read()) == set(BASE)
    # A run's folder is its user's own.
    (theirs / "config.json").write_text("{}")
    trained = trained.rename(theirs / "final.npz")
    assert set(partial_weights.find(trained).read()) == set(BASE)
    # A base beside the file is its own, whatever folder it was in once.
    (elsewhere / "base.npz").rename(theirs / "base.npz")
    trained = trained.rename(theirs / "trained.npz")
    assert partial_weights.find(trained).files == [trained, theirs / "base.npz"]


@pytest.mark.parametrize(
    ("base", "num_arrays", "message"),
    [
        ("a word", 3, "says base='a word', expected an object"),
        ([1], 3, r"says base=\[1\], expected an object"),
        ({"path": 5}, 3, "says base.path=5, which cannot be"),
        ({"path": "/dev/zero"}, 3, "2 of 3 arrays missing"),
        ({"source": "/dev/zero"}, 3, "2 of 3 arrays missing"),
        ({"path": "/dev/zero.npz/../../etc/passwd"}, 3, "2 of 3 arrays missing"),
        ({"fingerprint": {"a": 1}}, 3, "says base.fingerprint="),
        ({"dtype": "object"}, 3, "says base.dtype='object'"),
        ({"dtype": 7}, 3, "says base.dtype=7"),
        ({}, "three", "says num_arrays_with_base='three'"),
        ({}, -3, "says num_arrays_with_base=-3"),
        ({"path": "bad.npz"}, 3, "is the base of its own base"),
    ],
)
def test_metadata_that_cannot_be_is_an_error_of_its_file(tmp_path, base, num_arrays, message):
    metadata = {partial_weights.BASE: base, partial_weights.NUM_ARRAYS: num_arrays}
    npz.write(tmp_path / "bad.npz", {"a": np.ones(1)}, metadata=metadata)
    with pytest.raises(ValueError, match=rf"bad\.npz.*{message}.*(G|g)ive .*--base"):
        partial_weights.find(tmp_path / "bad.npz")


def test_a_base_that_is_replaced_is_noticed_and_never_described_as_the_old_one(files, tmp_path):
    base = partial_weights.find(files()).base
    first = base.fingerprint
    npz.write(tmp_path / "base.npz", {**BASE, "llm/c": np.zeros(2, "float32")})
    message = rf"base\.npz was replaced .*{first[:12]}, the file there now has \w{{12}}\. Put"
    with pytest.raises(ValueError, match=message):
        partial_weights.check_unchanged(base)
    with pytest.raises(ValueError, match="was replaced while it was in use"):
        base.read(["llm/c"])
    said = partial_weights.describe_base("pt_224", base, dtype=None)
    assert said["fingerprint"] == first
    npz.write(tmp_path / "trained.npz", TRAINED, metadata={"base": said, "num_arrays_with_base": 3})
    with pytest.raises(ValueError, match=r"trained\.npz was trained .*base\.npz is another file"):
        partial_weights.find(tmp_path / "trained.npz")
    (tmp_path / "base.npz").unlink()
    with pytest.raises(ValueError, match=r"base\.npz was replaced .*and now: .*base\.npz"):
        partial_weights.check_unchanged(base)
