"""Two evaluations of one data set beside each other: what is counted, shown and refused."""

import json

import numpy as np
import pytest
from PIL import Image

from paligemma_jax.evaluation import comparison


def box(left: float) -> dict:
    return {"box_yxyx": [0.1, left, 0.5, left + 0.2], "label": "cat"}


def side(folder, name: str, scores: list[float], map50: float, *, image="a.png"):
    """Writes an evaluation of detections, whose boxes lie where their score says."""
    folder = folder / name
    folder.mkdir()
    rows = [
        {
            "index": index,
            "source": f"valid.jsonl:{index + 1}",
            "images": [str(folder.parent / image)],
            "prefix": "detect cat",
            "suffix": "<loc0100> cat",
            "prediction": f"{name} says {index}",
            "detections": [{**box(score / 2), "score": 0.5}],
            "truths": [box(0.5)],
            "score": score,
        }
        for index, score in enumerate(scores)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "predictions.jsonl").write_text(text)
    values = {"data": "valid.jsonl", "map50": map50, "loss": 1.5, "num_images": len(rows)}
    (folder / "metrics.json").write_text(json.dumps(values))
    (folder / "report.html").write_text("<nav></nav><p>a report</p>")
    return comparison.Side(name, folder)


@pytest.fixture
def sides(tmp_path):
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(tmp_path / "a.png")
    before = side(tmp_path, "base", [0.0, 0.5, 1.0, 0.25], 0.1)
    return before, side(tmp_path, "tuned", [1.0, 0.5, 0.25, 0.5], 0.7)


def test_what_got_better_and_worse_is_counted(sides):
    made = comparison.write(*sides, sides[1].folder)
    assert (made.wins, made.losses, made.ties) == (2, 1, 1)
    assert made.scores["map50"] == (0.1, 0.7)
    header, rows = made.table()
    assert header == ("", "base", "tuned", "difference")
    assert ("mAP 50", "0.100", "0.700", "+0.600") in rows
    stored = json.loads((sides[1].folder / "comparison.json").read_text())
    assert stored["wins"] == 2 and stored["data"] == "valid.jsonl"


def test_the_page_shows_both_answers_those_that_differ_most_first(sides):
    out = sides[1].folder
    comparison.write(*sides, out)
    text = (out / "comparison.html").read_text()
    places = [text.index(f"tuned says {index}") for index in (0, 2, 3, 1)]
    assert places == sorted(places) and "base says 3" in text
    assert "2 better, 1 worse, 1 alike" in text and "data:image/png" in text
    with Image.open(out / "comparison.png") as drawn:
        assert drawn.width > 3 * 200 and drawn.height > 4 * 200


def test_the_report_beside_it_leads_to_the_page_once(sides):
    comparison.link(sides[1].folder)
    comparison.link(sides[1].folder)
    text = (sides[1].folder / "report.html").read_text()
    assert text.count("comparison.html") == 1 and text.endswith("<p>a report</p>")


def test_pictures_that_are_gone_leave_the_page_without_them(sides, tmp_path):
    (tmp_path / "a.png").unlink()
    comparison.write(*sides, sides[1].folder)
    assert "data:image/png" not in (sides[1].folder / "comparison.html").read_text()


def test_evaluations_of_different_data_are_refused(sides, tmp_path):
    other = side(tmp_path, "other", [1.0, 0.5, 0.25], 0.7)
    with pytest.raises(ValueError, match="evaluations of different data"):
        comparison.write(sides[0], other, tmp_path)
