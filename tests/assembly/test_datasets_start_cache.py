"""A large data set is checked and measured once; what any result depends on changes its entry."""

import contextlib
import json
import pathlib

import pytest

from paligemma_jax.assembly import datasets
from paligemma_jax.data import prefix_lm, records, tokens
from paligemma_jax.settings import load


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Makes every data set a large one, and the cache a folder of the test's own."""
    monkeypatch.setenv("PALIGEMMA_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "MIN_ROWS", 1)
    monkeypatch.setattr(datasets, "MIN_BYTES", 1)
    monkeypatch.setattr(datasets, "MOST_BYTES_KEPT", 0)


def read(config):
    return datasets.read_records(
        load.typed(config), config.input.data.fname, key="input.data.fname"
    )


def entries(tmp_path, what):
    return sorted((tmp_path / "cache" / "starts").glob(f"{what}-*.npz"))


def test_suffixes_are_checked_once(config, tmp_path, monkeypatch):
    first = read(config)
    assert len(entries(tmp_path, "checks")) == 1
    monkeypatch.setattr(prefix_lm, "clean", lambda *_: pytest.fail("a suffix is checked again"))
    assert read(config) == first


def test_a_process_reads_a_data_set_once_and_again_when_anything_changed(
    config, tmp_path, monkeypatch
):
    monkeypatch.setattr(datasets, "MOST_BYTES_KEPT", 2**20)
    scan, scanned = records.scan_jsonl, []
    monkeypatch.setattr(records, "scan_jsonl", lambda *a, **k: scanned.append(a) or scan(*a, **k))
    first = read(config)
    first.clear()  # what a run does with its list is its own business
    first = read(config)
    assert len(scanned) == 1 and first
    config.input.data.prefix_template = "find {prefix}"
    assert read(config)[0].prefix.startswith("find ") and len(scanned) == 2
    config.input.data.prefix_template = None
    other = tmp_path / "other.jsonl"
    rows = pathlib.Path(config.input.data.fname).read_text()
    other.write_text(rows)
    config.input.data.fname, config.input.data.image_dir = str(other), ""
    with contextlib.suppress(ValueError):  # its images are elsewhere
        read(config)
    assert len(scanned) == 3


def test_a_file_setting_or_convention_that_changed_is_checked_again(config, tmp_path):
    read(config)
    config.coordinates = "1024"
    read(config)
    assert len(entries(tmp_path, "checks")) == 2
    row = {"image": [], "prefix": "detect cat", "suffix": "<loc0001> cat"}
    (tmp_path / "bad.jsonl").write_text(json.dumps(row))
    config.input.data.fname = str(tmp_path / "bad.jsonl")
    for _ in range(2):  # what is wrong is not kept
        with pytest.raises(ValueError, match=r"bad\.jsonl:1: suffix"):
            read(config)
    assert len(entries(tmp_path, "checks")) == 2


def measure(config, tokenizer):
    return datasets.check_lengths(load.typed(config), read(config), tokenizer, name="data")


def test_lengths_are_counted_once(config, data_folder, tmp_path, monkeypatch):
    tokenizer = tokens.load_tokenizer(config.tokenizer)
    config.input.data.fname = f"{data_folder}/eos.jsonl"
    first = measure(config, tokenizer)
    assert first.removed
    with monkeypatch.context() as patched:
        patched.setattr(prefix_lm, "measure", lambda *_, **__: pytest.fail("measured again"))
        assert measure(config, tokenizer) == first
        config.input.text_len = 3
        config.input.allow_truncation = True
        assert len(measure(config, tokenizer).too_long) == 2
    config.input.lowercase = True
    measure(config, tokenizer)
    assert len(entries(tmp_path, "lengths")) == 2


def test_a_damaged_entry_is_made_again_with_one_line(config, tmp_path, capsys):
    tokenizer = tokens.load_tokenizer(config.tokenizer)
    first = measure(config, tokenizer)
    (path,) = (tmp_path / "cache" / "starts").glob("lengths-*")
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    capsys.readouterr()
    assert measure(config, tokenizer) == first
    line = f"{path}: damaged, removed: the data is checked again"
    assert capsys.readouterr().err.splitlines().count(line) == 1
    assert path.read_bytes() == whole
    measure(config, tokenizer)
    assert line not in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_stops_nothing(config, tmp_path):
    (tmp_path / "cache").write_text("a file")
    measure(config, tokens.load_tokenizer(config.tokenizer))


def test_parts_of_a_name_do_not_run_into_each_other():
    names = {datasets.name_entry("a", parts) for parts in ([b"xy", b"z"], [b"x", b"yz"], [b"xyz"])}
    assert len(names) == 3
