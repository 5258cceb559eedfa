"""Embeddings on the disk: what is read is what was made, and anything else is noticed."""

import itertools
import multiprocessing
import os
import pathlib
import signal
import time

import filelock
import numpy as np
import PIL.Image
import pytest

from paligemma_jax.data import embeddings, records
from paligemma_jax.files import atomic

RES, SHAPE = 6, (2, 3)


@pytest.fixture
def store(tmp_path):
    return embeddings.Store(tmp_path / "store", SHAPE, np.float32)


@pytest.fixture
def paths(tmp_path) -> list[str]:
    """Five images, the last one equal to the first."""
    found = []
    for number in (0, 1, 2, 3, 0):
        path = tmp_path / f"{len(found)}.png"
        PIL.Image.fromarray(np.full((RES, RES, 3), 10 * number, np.uint8)).save(path)
        found.append(str(path))
    return found


def embed(image: np.ndarray) -> np.ndarray:
    """uint8[B, 1, R, R, 3] -> float32[B, 1, 2, 3]: the gray level, and 0 to 5 added to it."""
    return image[:, :, :1, 0, :1] + np.arange(6, dtype=np.float32).reshape(SHAPE)


def as_records(paths):
    return [records.Record((path,), "", source=f"x.jsonl:{i}") for i, path in enumerate(paths, 1)]


def make(store, paths, embed=embed, batch_size=3):
    examples = as_records(paths)
    digests = embeddings.hash_images(examples, num_workers=2)
    record_of = {digests[one.images[0]]: one for one in examples}
    with embeddings.alone(store):
        missing, damaged = embeddings.survey(store, record_of, num_workers=2)
        chosen = {digest: record_of[digest] for digest in missing + damaged}
        embeddings.fill(store, chosen, embed, res=RES, batch_size=batch_size, num_workers=2)
    return digests, missing, damaged


def test_every_image_is_embedded_once_in_batches_of_one_size(store, paths):
    sizes = []

    def count(image):
        sizes.append(len(image))
        return embed(image)

    digests, missing, _ = make(store, paths, count)
    assert len(missing) == 4 and sizes == [3, 3]
    for number, path in zip((0, 1, 2, 3, 0), paths, strict=True):
        expected = 10 * number + np.arange(6, dtype=np.float32).reshape(SHAPE)
        np.testing.assert_array_equal(store.read(digests[path]), expected)
    assert make(store, paths, count)[1:] == ([], []) and sizes == [3, 3]


def test_batches_hold_the_embeddings_of_their_examples_and_zeros(store, paths):
    digests, *_ = make(store, paths)
    examples = [
        (records.Record((paths[3],), "a"), 0),
        (records.Record((), "b"), 1),
        (records.Record((paths[1], paths[2]), "c"), 2),
    ]
    plan = [[examples[i], examples[j]] for i, j in itertools.product(range(3), repeat=2)]
    found = list(
        embeddings.read_batches(
            lambda: plan, store, digests, max_images=2, num_workers=2, prefetch=2
        )
    )
    assert len(found) == 9
    for batch, (i, j) in zip(found, itertools.product(range(3), repeat=2), strict=True):
        assert batch.shape == (2, 2, *SHAPE) and batch.dtype == np.float32
        grays = {0: [30, 0], 1: [0, 0], 2: [10, 20]}
        np.testing.assert_array_equal(batch[:, :, 0, 0], [grays[i], grays[j]])
    assert not found[4].any()


@pytest.mark.parametrize("damage", ["cut", "bit", "crc", "empty"])
def test_a_damaged_entry_is_found_and_made_again(store, paths, damage):
    digests, *_ = make(store, paths)
    path = store.path(digests[paths[2]])
    data = bytearray(path.read_bytes())
    if damage in ("bit", "crc"):
        data[-1 if damage == "bit" else 0] ^= 1
    path.write_bytes({"cut": data[:-4], "empty": b""}.get(damage, data))
    with pytest.raises(embeddings.DamagedError, match=r"bytes, not 28|CRC-32"):
        store.read(digests[paths[2]])
    assert make(store, paths)[2] == [digests[paths[2]]]
    assert store.read(digests[paths[2]])[0, 0] == 20


def test_an_entry_that_is_lost_while_training_is_named_with_its_row(store, paths):
    digests, *_ = make(store, paths)
    store.path(digests[paths[1]]).unlink()
    plan = [[(records.Record((paths[1],), "a", source="x.jsonl:7"), 0)]]
    batches = embeddings.read_batches(
        lambda: plan, store, digests, max_images=1, num_workers=1, prefetch=1
    )
    with pytest.raises(ValueError, match=rf"x.jsonl:7: the embedding of {paths[1]} was changed"):
        next(batches)


def test_an_image_that_cannot_be_read_is_named(store, paths):
    with pytest.raises(ValueError, match=r"x.jsonl:6: cannot read image gone.png: .*No such file"):
        embeddings.hash_images(as_records([*paths, "gone.png"]), num_workers=2)
    pathlib.Path(paths[1]).write_bytes(b"no image")
    with pytest.raises(ValueError, match=rf"x.jsonl:2: cannot read image {paths[1]}"):
        make(store, paths)


def test_an_embedding_that_is_not_finite_is_refused(store, paths):
    with pytest.raises(ValueError, match="is not finite in float32: look at the weights"):
        make(store, paths, lambda image: embed(image) * np.nan)
    assert not list(store.folder.glob("*/*.bin"))


def test_a_full_disk_is_said_with_what_is_needed(store, monkeypatch):
    store.folder.mkdir()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 27 * 10**9}))
    embeddings.check_space(store, 900_000_000)
    with pytest.raises(OSError, match=r"needs 28.00 GB and .*store has 27.00 GB free; make room"):
        embeddings.check_space(store, 1_000_000_000)


def fill_slowly(store, paths, started):
    def slow(image):
        if any(store.folder.glob("*/*.bin")):
            (store.folder / "00").mkdir(exist_ok=True)
            (store.folder / "00" / f"00{atomic.SUFFIX}").write_bytes(b"half")
            started.set()
            time.sleep(60)
        return embed(image)

    make(store, paths, slow, batch_size=2)


def test_a_killed_process_leaves_whole_entries_and_holds_up_nobody(store, paths):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=fill_slowly, args=(store, paths, started))
    process.start()
    assert started.wait(timeout=60)
    with pytest.raises(filelock.Timeout):  # the other one fills
        filelock.FileLock(store.folder / embeddings.LOCK).acquire(timeout=0)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    digests, missing, damaged = make(store, paths)
    assert len(missing) == 2 and not damaged
    assert not list(store.folder.glob(f"*/*{atomic.SUFFIX}"))
    assert {store.read(digest)[0, 0] for digest in digests.values()} == {0, 10, 20, 30}


def test_a_second_process_waits_and_says_so(store):
    told = []
    lock = filelock.FileLock(store.folder / embeddings.LOCK)
    store.folder.mkdir()

    def waits():
        told.append(True)
        lock.release()

    with lock, embeddings.alone(store, waits):
        assert told == [True]
