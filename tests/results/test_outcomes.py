"""What a command leaves, in a notebook: read from its folder, shown without text as HTML."""

import json

import numpy as np
import pytest
from PIL import Image

from paligemma_jax.reports import sections
from paligemma_jax.results import outcomes

EVIL = "<b>cat</b>"


@pytest.fixture
def run(tmp_path):
    """A run of 20 steps with two evaluations."""
    rows = [
        {"step": n, "loss": 2 / n, "lr": 1e-3, "val/map50": n / 20, "val/loss": 3 / n}
        for n in range(1, 21)
    ]
    rows[-1] |= {f"val/per_class/{EVIL}/map50": 0.5, "val/per_class/dog/map50": 1.0}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.json").write_text(json.dumps({"evals": {"val": {}}}))
    (tmp_path / "report.html").touch()
    return outcomes.Run(tmp_path)


def test_a_run_has_its_last_scores_its_curves_and_its_state(run):
    assert run.scores == {"val/map50": 1.0, "val/loss": 0.15}
    assert run.to_dataframe().loc[10, "loss"] == pytest.approx(0.2)
    assert "20 steps, not finished, val/map50 1.000, val/loss 0.150)" in repr(run)
    (run.folder / "final.npz").touch()
    assert "20 steps, finished" in repr(run)
    page = run._repr_html_()
    assert "<svg" in page and "&lt;b&gt;cat" in page and EVIL not in page
    assert f"report: {run.folder / 'report.html'}" in page


def test_curves_are_drawn_by_their_names(run, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    figure = run.plot("loss", "val/map50")
    assert [place.get_title() for place in figure.axes] == ["loss", "val/map50"]
    assert "loss" in [place.get_title() for place in run.plot().axes]
    with pytest.raises(ValueError, match=r"has \['val/map5'\]. Did you mean 'val/map50'"):
        run.plot("val/map5")


def test_a_run_that_has_written_nothing_is_shown_too(tmp_path):
    empty = outcomes.Run(tmp_path / "none")
    assert empty.rows == [] and empty.scores == {} and "not finished" in empty._repr_html_()


def test_an_evaluation_has_scores_by_class_and_its_answers_the_worst_first(tmp_path):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    box = {"box_yxyx": [0, 0, 1, 1], "label": EVIL, "score": 0.5}
    common = {"images": [str(tmp_path / "a.png")], "prefix": "detect", "prediction": EVIL}
    rows = [{**common, "detections": [box], "score": n / 10} for n in range(9, 0, -1)]
    (tmp_path / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {"weights": "w", "data": "d.jsonl", "map50": 0.25, "num_truths": 9, "map": None}
    values |= {"per_class": {EVIL: {"map50": 0.5}, "dog": {"map50": 0.0, "map": None}}}
    (tmp_path / "metrics.json").write_text(json.dumps(values))
    evaluation = outcomes.Evaluation(tmp_path, Image.open)
    assert evaluation.scores["per_class/dog/map50"] == 0.0 and "weights" not in evaluation.scores
    assert [one["score"] for one in evaluation.worst(2)] == [0.1, 0.2]
    assert evaluation.to_dataframe().loc[EVIL, "map50"] == 0.5
    assert repr(evaluation).endswith(": map50 0.250)")
    page = evaluation._repr_html_()
    assert page.count("<img") == 6 and EVIL not in page and "d.jsonl" in page
    np.testing.assert_array_equal(evaluation.predictions[0].xyxy, [[0, 0, 30, 20]])


def test_a_check_is_ready_or_says_what_is_wrong():
    note = {"severity": "note", "kind": "empty", "what": EVIL, "remedy": "r", "subject": "s"}
    note |= {"count": 1, "places": ()}
    facts = sections.Section("data", "Data", (sections.Facts((("rows", EVIL),)),))
    ready = outcomes.Check([note], [facts])
    assert ready.is_ready and repr(ready) == "Check(READY, 1 note)"
    assert EVIL not in ready._repr_html_() and ready.to_dataframe()["what"].tolist() == [EVIL]
    wrong = outcomes.Check([{**note, "severity": "error"}] * 2, [facts])
    assert not wrong.is_ready and repr(wrong) == "Check(2 errors: empty)"
    assert "rows" in str(wrong)


def test_every_outcome_is_one_short_line_however_long_its_names_are(tmp_path):
    folder, many = tmp_path / ("x" * 200) / ("y" * 200), {f"split{n}": 10 for n in range(99)}
    summary = {"rows": many, "format": "coco", "task": "detection", "classes": [EVIL] * 300}
    finding = {"severity": "error", "kind": "k" * 900, "what": "", "remedy": "", "subject": ""}
    made = [
        outcomes.Run(folder),
        outcomes.Check([finding], []),
        outcomes.DataSet(folder, summary, folder / "sheet.png"),
        outcomes.Weights(folder, {"arrays": 9, "bytes": 1024}),
    ]
    for one in made:
        assert len(repr(one)) < 200 and "\n" not in repr(one)
    assert EVIL not in made[2]._repr_html_()
