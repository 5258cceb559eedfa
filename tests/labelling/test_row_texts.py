"""What is drawn becomes rows that training reads, and what training refuses is refused."""

import json

import numpy as np
import pytest

from paligemma_jax.assembly import weights
from paligemma_jax.data import objects, records, tokens
from paligemma_jax.importers import formatting
from paligemma_jax.labelling import row_store, row_texts
from paligemma_jax.tasks import box_text, task

BOX = {"label": "cat", "box": [10, 20, 60, 80]}
SIZE = (100, 100)


def write(writer, row=None, **answer):
    return writer.write(row, row_texts.Answer(**answer), images=("a.png",), size=lambda: SIZE)


def test_boxes_become_a_row_of_detection():
    writer = row_texts.Writer("detection", ["cat", "dog"])
    row = write(writer, objects=[BOX])
    assert row == {
        **{"image": "a.png", "prefix": "detect cat ; dog", "width": 100, "height": 100},
        **{"suffix": "<loc0205><loc0102><loc0818><loc0614> cat", "objects": [BOX]},
    }
    assert write(writer, objects=[])["suffix"] == ""


def test_what_else_a_row_has_stays_and_so_does_its_prompt():
    writer = row_texts.Writer("detection", ["cat", "dog"])
    old = {"image": "a.png", "prefix": "detect cat", "suffix": "", "camera": 3}
    row = write(writer, old, objects=[BOX])
    assert (row["camera"], row["prefix"]) == (3, "detect cat")
    assert write(writer, old, objects=[], prefix="detect dog")["prefix"] == "detect dog"


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        ([{"label": "cat", "box": [10, 20, 160, 80]}], "not inside the image's 100x100"),
        ([{"label": "cat", "box": [10, 20, 10.01, 80]}], "smaller than a <loc> bin"),
        ([{"label": "a ; b", "box": [1, 2, 3, 4]}], "class 'a ; b' cannot be written"),
        ([{"label": " ", "box": [1, 2, 3, 4]}], "expected a class name"),
        ([{"box": [1, 2, 3, 4]}], "expected label, box"),
        (["cat"], "expected a JSON object"),
    ],
)
def test_objects_that_no_row_can_hold_are_refused(drawn, message):
    with pytest.raises(ValueError, match=message):
        write(row_texts.Writer("detection", ["cat"]), objects=drawn)


def test_counts_are_made_of_boxes_or_written():
    writer = row_texts.Writer("counting", ["cat", "dog"])
    row = write(writer, objects=[BOX, BOX, {**BOX, "label": "dog"}])
    assert json.loads(row["suffix"]) == {"cat": 2, "dog": 1} and len(row["objects"]) == 3
    assert write(writer, text='{"cat": 1}')["suffix"] == '{"cat": 1}'
    with pytest.raises(ValueError, match="is no JSON"):
        write(writer, text="two cats")


def test_a_question_is_put_into_the_prompt_and_an_empty_answer_is_refused():
    writer = row_texts.Writer("vqa", [])
    row = write(writer, question="which events are there?", text="fall: 1")
    assert (row["prefix"], row["suffix"]) == ("answer en which events are there?", "fall: 1")
    assert write(writer, row, text="fall: 2")["prefix"] == row["prefix"]
    with pytest.raises(ValueError, match="the answer is empty"):
        write(writer, row, text=" ")


@pytest.fixture(scope="module")
def codec():
    made = weights.load_codec("tiny_base/mask_codec.npz")
    return formatting.MaskCodec(made.encode, made.decode)


def test_masks_become_tokens_and_come_back_in_pixels(codec):
    writer = row_texts.Writer("segmentation", ["cat"], load_codec=lambda: codec)
    mask = np.zeros((100, 100), bool)
    mask[20:80, 10:60] = True
    outline = {"size": [100, 100], "counts": objects.encode_bitmap(mask)}
    row = write(writer, objects=[{**BOX, "segmentation": outline}])
    assert task.look_up("segmentation").check(row["suffix"]) is None
    assert row["objects"][0]["segmentation"] == outline
    (again,) = writer.read_objects({"suffix": row["suffix"]}, lambda: SIZE)
    drawn = objects.bitmap(again["segmentation"]["counts"], width=100, height=100)
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.8
    with pytest.raises(ValueError, match="without an outline"):
        write(writer, objects=[BOX])


def test_boxes_of_an_answer_are_read_in_pixels():
    writer = row_texts.Writer("detection", ["cat"])
    row = write(writer, objects=[BOX])
    (box,) = writer.read_objects({"suffix": row["suffix"]}, lambda: SIZE)
    assert box["label"] == "cat" and box["box"] == pytest.approx(BOX["box"], abs=0.06)
    assert writer.read_objects(None, lambda: SIZE) == []
    assert row_texts.Writer("vqa", []).read_objects({"suffix": "x"}, lambda: SIZE) is None


def test_rows_are_read_by_training(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    writer = row_texts.Writer("detection", ["cat"])
    made = row_store.make_about("ann", 1, is_done=True)
    row = write(writer, objects=[BOX]) | {row_store.ABOUT: made}
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    (read,) = records.read_jsonl(tmp_path / "x.jsonl", check=box_text.check)
    assert read.objects is not None and read.objects.labels == ("cat",)
    assert read.extra == {row_store.ABOUT: made}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    return row_texts.Reader(tokens.train_tokenizer(["detect cat", "cat"], path), "t", 12)


def test_a_row_is_explained_as_it_is_read(reader):
    answer = "<loc0205><loc0102><loc0818><loc0614> cat"
    told = row_texts.explain({"prefix": "detect cat", "suffix": answer}, reader)
    learnt = [piece for piece, _, is_learnt in told["pieces"] if is_learnt]
    assert learnt[:4] == ["<loc0205>", "<loc0102>", "<loc0818>", "<loc0614>"]
    assert learnt[-1] == reader.tokenizer.piece(reader.tokenizer.eos)
    assert told["fits"] and told["needed"] == len(told["pieces"]) - 1
    long = row_texts.explain({"prefix": "detect cat", "suffix": " ; ".join([answer] * 3)}, reader)
    assert not long["fits"] and long["needed"] > 12


def test_findings_are_those_of_check(reader):
    def item(number, suffix, prefix="detect cat"):
        row = {"prefix": prefix, "suffix": suffix}
        return row_store.Item(f"x|{number}|0", "x", ("a.png",), row)

    answer = "<loc0205><loc0102><loc0818><loc0614> {}"
    made = [item(0, answer.format("cat")), item(1, answer.format("Cat")), item(2, "", "detect dog")]
    writer = row_texts.Writer("detection", ["cat"])
    kinds = {one.kind: one for one in row_texts.check(made, writer, reader)}
    assert kinds["class spelt in several ways"].places == ("x|1|0",)
    assert kinds["prefix names no class"].severity == "error"
    assert kinds["empty suffix"].severity == "note"
    assert row_texts.check([], writer, reader) == []
