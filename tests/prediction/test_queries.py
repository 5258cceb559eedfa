"""What predict's arguments stand for."""

import json

import numpy as np
import pytest
from PIL import Image

from paligemma_jax.data import pipeline, records, tokens
from paligemma_jax.prediction import queries, video


def find(arguments, config, prompt="detect cat", **options):
    return queries.find([str(argument) for argument in arguments], config, prompt=prompt, **options)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of 9 frames, 4 a second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with video.VideoFile(path, rate=4) as file:
        for _ in range(9):
            file.append(Image.new("RGB", (32, 32)))
    return path


def test_files_folders_and_globs_are_found_once(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", "sub.png", "c.mp4"):
        (tmp_path / name).touch()
    folder = str(tmp_path)
    found = queries.find_files([folder, f"{folder}/*.png", f"{folder}/a.JPG"])
    assert found == [f"{folder}/{name}" for name in ("a.JPG", "b.png", "c.mp4", "sub.png")]
    assert queries.find_files(["https://host/a.png"]) == ["https://host/a.png"]


def test_an_argument_that_stands_for_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no such file, and no folder or glob"):
        queries.find_files([f"{tmp_path}/*.png"])
    (tmp_path / "test.jsonl").touch()
    with pytest.raises(ValueError, match=r"no such file; did you mean .*test.jsonl\?"):
        queries.find_files([f"{tmp_path}/tset.jsonl"])


def test_of_a_video_one_frame_a_second_is_asked_about_or_every_so_many(clip, config):
    found, rates = find([clip], config)
    assert [query.place for query in found] == [
        {"frame": 0, "time_s": 0.0},
        {"frame": 4, "time_s": 1.0},
        {"frame": 8, "time_s": 2.0},
    ]
    assert rates == {str(clip): pytest.approx(1)}
    assert found[1].record.source == f"{clip} at 1.000 s" and found[1].num_images == 1
    found, rates = find([clip], config, every=3)
    assert [query.place["frame"] for query in found] == [0, 3, 6]
    assert rates == {str(clip): pytest.approx(4 / 3)}


def test_rows_of_a_jsonl_have_their_own_prompts_unless_all_are_asked_one(tmp_path, config):
    rows = [
        {"image": "a.png", "prefix": "detect cat", "suffix": "any text"},
        {"image": ["a.png", "b.png"], "prefix": "what changed?"},
    ]
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, _ = find([path], config, prompt=None)
    assert [query.record.prefix for query in found] == ["detect cat", "what changed?"]
    assert [query.num_images for query in found] == [1, 2]
    assert {query.record.suffix for query in found} == {None}
    found, _ = find([path], config, prompt="caption en")
    assert {query.record.prefix for query in found} == {"caption en"}
    path.write_text('{"image": "a.png"}\n')
    assert len(find([path], config)[0]) == 1
    with pytest.raises(ValueError, match=r"rows.jsonl:1: key 'prefix' missing"):
        find([path], config, prompt=None)


def test_images_together_are_one_query(data_folder, config):
    paths = [data_folder / "a.png", data_folder / "b.png"]
    (query,), _ = find(paths, config, together=True)
    assert query.record.images == tuple(map(str, paths)) and query.num_images == 2
    with pytest.raises(ValueError, match=r"--together is for images, and .*train.jsonl is none"):
        find([*paths, data_folder / "train.jsonl"], config, together=True)


def test_every_row_of_a_batch_has_its_own_prompt_and_image(data_folder, config):
    tokenizer = tokens.load_tokenizer(config.tokenizer)
    asked = [("cat", 200), ("detect cat", 100), ("dog", 0)]
    chosen = [
        queries.Query(records.Record((), prompt), None, (np.full((14, 14, 3), pixel, np.uint8),))
        for prompt, pixel in asked
    ]
    spec = pipeline.BatchSpec(res=14, text_len=12, batch_size=2, max_images=1)
    answered = []
    for batch in queries.make_batches(chosen, tokenizer, spec, {}, {}):
        rows = zip(batch["index"], batch["text"], batch["image"], batch["_mask"], strict=True)
        for place, text, image, is_real in rows:
            if is_real:
                answered.append((place, tokenizer.decode(text), int(image.max())))
    assert answered == [(n, f"{prompt}\n", pixel) for n, (prompt, pixel) in enumerate(asked)]


def test_what_has_no_effect_or_no_prompt_is_an_error(data_folder, config):
    with pytest.raises(ValueError, match="--every is for videos, and there is none"):
        find([data_folder / "a.png"], config, every=2)
    with pytest.raises(ValueError, match=r"a.png: a prompt is missing: give --prompt"):
        find([data_folder / "a.png"], config, prompt=None)
    with pytest.raises(ValueError, match="videos are read from this machine; download it"):
        find(["https://host/a.mp4"], config)
