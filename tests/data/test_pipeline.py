"""Batches: their order, their slices, their contents, and what a bad image does."""

import concurrent.futures
import dataclasses
import itertools
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import PIL.Image
import pytest

from paligemma_jax.data import images, index_sampler, pipeline, prefix_lm, records, tokens

RES, TEXT_LEN = 28, 8
REFERENCE = pathlib.Path(__file__).parents[1] / "reference"


@pytest.fixture(scope="module")
def tokenizer():
    return tokens.load_tokenizer(REFERENCE / "tiny_spm.model")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[records.Record]:
    """Ten records, each with an image and a prompt of its own."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    data = []
    for i in range(10):
        path = folder / f"{i}.png"
        pixels = rng.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(path)
        data.append(records.Record((str(path),), f"answer {i}", f"{i}", source=f"x.jsonl:{i + 1}"))
    return data


def spec(**kwargs) -> pipeline.BatchSpec:
    return pipeline.BatchSpec(**{**dict(res=RES, text_len=TEXT_LEN, batch_size=4), **kwargs})


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for key in batch:
        np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def test_one_of_the_answers_is_drawn_anew_each_time(data, tokenizer):
    answers = ["one", "two", "three"]
    several = [dataclasses.replace(record, extra={"answers": answers}) for record in data[:2]]

    def drawn(given, **how):
        chosen = spec(batch_size=2, draw_answers=True)
        batches = pipeline.train_batches(given, tokenizer, chosen, **{"seed": 0, **how})
        return [row.tolist() for batch in batches for row in batch["text"]]

    first = drawn(several, total_steps=12)
    possible = [
        prefix_lm.encode_training(tokenizer, record.prefix, answer, text_len=TEXT_LEN)["text"]
        for record in several
        for answer in answers
    ]
    assert {tuple(row) for row in first} == {tuple(row.tolist()) for row in possible}
    # As with all that is drawn, a resumed run goes on with the same.
    assert drawn(several, total_steps=12, start_step=5) == first[10:]
    assert drawn(several, total_steps=12, seed=1) != first
    # Records without answers have their suffix.
    usual = pipeline.train_batches(data[:2], tokenizer, spec(batch_size=2), seed=0, total_steps=2)
    assert drawn(data[:2], total_steps=2) == [r.tolist() for b in usual for r in b["text"]]


def test_a_training_batch_holds_what_a_model_reads(data, tokenizer):
    batch = next(pipeline.train_batches(data, tokenizer, spec(), seed=0, total_steps=1))
    shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert shapes == dict(
        image=((4, 1, RES, RES, 3), "uint8"),
        mask_image=((4, 1), "bool"),
        text=((4, TEXT_LEN + 1), "int32"),
        mask_ar=((4, TEXT_LEN + 1), "bool"),
        mask_loss=((4, TEXT_LEN + 1), "bool"),
        mask_input=((4, TEXT_LEN + 1), "bool"),
    )
    assert batch["mask_image"].all()
    read = index_sampler.Order(0, [index_sampler.Source("", 10)], batch_size=4).records(0)
    for i, number in enumerate(read):
        record = data[number]
        image = images.load(record.images[0], res=RES)
        row = prefix_lm.encode_training(tokenizer, record.prefix, record.suffix, text_len=TEXT_LEN)
        np.testing.assert_array_equal(batch["image"][i, 0], image)
        assert_equal({key: batch[key][i] for key in row}, row)


def test_training_resumes_with_the_same_batches(data, tokenizer):
    straight = list(pipeline.train_batches(data, tokenizer, spec(), seed=3, total_steps=5))
    resumed = pipeline.train_batches(data, tokenizer, spec(), seed=3, total_steps=5, start_step=2)
    assert len(straight) == 5
    for batch, other in zip(straight[2:], resumed, strict=True):
        assert_equal(batch, other)


@pytest.mark.parametrize("make", ["train", "eval", "validation"])
def test_the_processes_slices_make_up_the_batch(data, tokenizer, make):
    def batches(**kwargs):
        if make == "train":
            return pipeline.train_batches(data, tokenizer, spec(**kwargs), seed=0, total_steps=3)
        function = getattr(pipeline, f"{make}_batches")
        return function(data, tokenizer, spec(**kwargs))

    whole = list(batches())
    parts = [list(batches(process_index=i, process_count=2)) for i in range(2)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 3
    for batch, *shares in zip(whole, *parts, strict=True):
        joined = {key: np.concatenate([share[key] for share in shares]) for key in batch}
        assert_equal(joined, batch)


def test_processes_agree_on_the_length_of_every_batch(data, tokenizer, monkeypatch):
    short = [records.Record(one.images, "a", "1") for one in data[:3]]

    def batches(largest=int, **kwargs):
        told = dict(seed=0, total_steps=2, text_lens=[5], largest=largest)
        return list(pipeline.train_batches([*short, data[3]], tokenizer, spec(**kwargs), **told))

    def widths(found):
        return [one["text"].shape[1] - 1 for one in found]

    both = widths(batches(batch_size=2)), widths(batches(batch_size=4))
    assert set(both[0]) == {5, TEXT_LEN} and both[1] == [TEXT_LEN] * 2

    together, told = threading.Barrier(4, timeout=60), [0] * 4
    encode, encoded = prefix_lm.encode_training, []

    def count(*args, **kwargs):
        encoded.append(threading.get_ident())
        return encode(*args, **kwargs)

    def share(index: int) -> list[int]:
        def largest(here: int) -> int:
            told[index] = here
            together.wait()
            found = max(told)
            together.wait()
            return found

        return widths(batches(largest, batch_size=4, process_index=index, process_count=4))

    monkeypatch.setattr(prefix_lm, "encode_training", count)
    with concurrent.futures.ThreadPoolExecutor(4) as processes:
        shares = list(processes.map(share, range(4)))
    assert shares == [both[1]] * 4  # three of four have short rows only
    assert len(encoded) == 8 and len(set(encoded)) == 4  # each its own row of each batch


def test_evaluation_sees_every_record_once_and_fills_the_last_batch(data, tokenizer):
    batches = list(pipeline.eval_batches(data, tokenizer, spec()))
    joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    assert joined["text"].shape == (12, TEXT_LEN) and "mask_loss" not in joined
    assert joined["_mask"].tolist() == [True] * 10 + [False] * 2
    assert joined["index"].tolist() == [*range(10), -1, -1]
    assert joined["index"].dtype == np.int32
    for i in range(12):
        record = data[min(i, 9)]
        prompt = prefix_lm.encode_prompt(tokenizer, record.prefix, text_len=TEXT_LEN)
        assert_equal({key: joined[key][i] for key in prompt}, prompt)
        np.testing.assert_array_equal(joined["image"][i, 0], images.load(record.images[0], res=RES))


def test_validation_has_the_rows_of_training(data, tokenizer):
    batch = next(pipeline.validation_batches(data, tokenizer, spec()))
    row = prefix_lm.encode_training(tokenizer, data[1].prefix, data[1].suffix, text_len=TEXT_LEN)
    assert_equal({key: batch[key][1] for key in row}, row)
    assert batch["index"].tolist() == [0, 1, 2, 3]


def test_unused_image_slots_are_empty_and_masked(data, tokenizer):
    paths = [record.images[0] for record in data]
    mixed = [
        records.Record((), "a", source="x.jsonl:1"),
        records.Record((paths[0],), "a", source="x.jsonl:2"),
        records.Record((paths[2], paths[1]), "a", source="x.jsonl:3"),
    ]
    (batch,) = pipeline.eval_batches(mixed, tokenizer, spec(batch_size=3, max_images=2))
    assert batch["mask_image"].tolist() == [[False, False], [True, False], [True, True]]
    assert not batch["image"][~batch["mask_image"]].any()
    used = [images.load(path, res=RES) for path in (paths[0], paths[2], paths[1])]
    np.testing.assert_array_equal(batch["image"][batch["mask_image"]], used)


@pytest.mark.parametrize("content", [b"no image", None])
def test_a_bad_image_stops_at_its_batch_and_names_its_source(data, tokenizer, tmp_path, content):
    bad = tmp_path / "bad.png"
    if content is not None:
        bad.write_bytes(content)
    broken = [*data[:6], records.Record((str(bad),), "a", "b", source="x.jsonl:7"), *data[7:]]
    batches = pipeline.eval_batches(broken, tokenizer, spec(batch_size=2))
    assert len(list(itertools.islice(batches, 3))) == 3
    with pytest.raises(ValueError, match=rf"x.jsonl:7: cannot read image {bad}: "):
        next(batches)


def test_text_that_does_not_fit_names_its_source(data, tokenizer):
    long = [records.Record((), "a", "b " * 20, source="x.jsonl:1")]
    with pytest.raises(ValueError, match=r"x.jsonl:1: .* eos would be cut off"):
        next(pipeline.train_batches(long, tokenizer, spec(), seed=0, total_steps=1))
    cut = spec(allow_truncation=True)
    batch = next(pipeline.train_batches(long, tokenizer, cut, seed=0, total_steps=1))
    assert batch["mask_input"].all()


def test_what_can_be_known_is_said_before_the_first_batch(data, tokenizer):
    two = records.Record((data[0].images * 2), "a", "b", source="x.jsonl:1")
    with pytest.raises(ValueError, match=r"x.jsonl:1: 2 images, but max_images is 1"):
        pipeline.eval_batches([two], tokenizer, spec())
    no_suffix = records.Record((), "a", source="x.jsonl:1")
    with pytest.raises(ValueError, match=r"x.jsonl:1: no suffix"):
        pipeline.train_batches([no_suffix], tokenizer, spec(), seed=0, total_steps=1)
    with pytest.raises(ValueError, match="no suffix"):
        pipeline.validation_batches([no_suffix], tokenizer, spec())
    with pytest.raises(ValueError, match="no records"):
        pipeline.eval_batches([], tokenizer, spec())


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        (dict(batch_size=6, process_count=4), "batch_size 6 does not divide among 4 processes"),
        (dict(batch_size=0), "batch_size must be at least 1, found 0"),
        (dict(max_images=0), "max_images must be at least 1"),
        (dict(process_index=2, process_count=2), "no process 2 among 2"),
    ],
)
def test_a_spec_that_makes_no_sense_is_an_error(kwargs, reason):
    with pytest.raises(ValueError, match=reason):
        spec(**kwargs)


ABANDON = """
import sys
from paligemma_jax.data import pipeline, records, tokens
data = [records.Record((sys.argv[1],), "a", "b")] * 100
spec = pipeline.BatchSpec(res=28, text_len=8, batch_size=2)
tokenizer = tokens.load_tokenizer(sys.argv[2])
batches = pipeline.train_batches(data, tokenizer, spec, seed=0, total_steps=1000)
print(next(batches)["image"].shape)
raise SystemExit("stopped")
"""


@pytest.mark.slow
def test_a_run_that_stops_early_adds_no_words_of_tensorflow(data):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    command = [sys.executable, "-c", ABANDON, data[0].images[0], str(REFERENCE / "tiny_spm.model")]
    root = pathlib.Path(__file__).parents[2]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert result.stdout == "(2, 1, 28, 28, 3)\n"
    assert result.stderr == "stopped\n"
