"""Reports of a run's evaluations: their files, what they say and what they lead to."""

import json
import re

from paligemma_jax.evaluation import report
from paligemma_jax.settings import load, schema

ROW = dict(
    index=0, source="a.jsonl:1", images=[], prefix="p", suffix="s", prediction="s", score=1.0
)


def subject(**values):
    return report.Subject(**{"title": "a run", **values})


def test_evaluations_of_one_run_keep_their_own_files(tmp_path):
    for name, loss in (("one", 1.0), ("two", 2.0)):
        scores, about = {"loss": loss}, subject(title=name)
        report.write(tmp_path, [ROW], scores, subject=about, run=None, evaluation=name)
    found = [json.loads((tmp_path / f"metrics-{n}.json").read_text()) for n in ("one", "two")]
    assert found == [{"loss": 1.0}, {"loss": 2.0}]
    assert "<h1>two</h1>" in (tmp_path / "report-two.html").read_text()


def test_an_evaluation_of_the_loss_alone_has_a_page_and_no_predictions(tmp_path):
    files = report.write(tmp_path, [], {"loss": 1.0}, subject=subject(), run=None)
    assert [file.name for file in files] == ["metrics.json", "report.html"]
    assert not (tmp_path / "predictions.jsonl").exists()


def test_curves_have_the_evaluation_that_the_report_is_of(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "val/loss": 2.0}\n')
    shown = []
    monkeypatch.setattr(report.gallery, "write", lambda *_, history, **__: shown.append(history))
    now = {"step": 2, "val/loss": 1.0}
    report.write(tmp_path, [ROW], {}, subject=subject(), run=tmp_path, now=now)
    assert shown[0].rows == [{"step": 1, "val/loss": 2.0}, now]


def settings(config):
    config.evals = {"val": dict(fname="data/valid.jsonl"), "seen": dict(fname=schema.INPUT)}
    config.input.data.fname = "data/train.jsonl"
    return load.typed(config)


def test_the_page_says_what_was_evaluated_on_what_and_when(config, tmp_path):
    about = subject(
        **{"name": "val", "data": "data/valid.jsonl", "num_examples": 3, "weights": "final.npz"},
        **{"seconds": {"training": 3000.0, "this evaluation": 12.0}, "settings": settings(config)},
    )
    report.write(tmp_path, [ROW], {"step": 7, "loss": 1.0}, subject=about, run=None)
    text = re.sub(r"<[^>]*>", "|", (tmp_path / "report.html").read_text().partition("<main>")[2])
    for words in (
        *("tiny/14", "at 14 px", "final.npz", "data/valid.jsonl, 3 examples", "data/train.jsonl"),
        "training 50 min, this evaluation 12 s",
    ):
        assert words in text
    assert re.search(r"\|date\|\|20\d\d-\d\d-\d\d \d\d:\d\d", text)
    assert "|step|" not in text


def test_curves_are_labelled_with_the_files_of_their_data(config, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 1.0, "val/loss": 2.0, "seen/loss": 2.0}\n'
    )
    about = subject(name="seen", data=schema.INPUT, settings=settings(config))
    report.write(tmp_path, [ROW], {"loss": 2.0}, subject=about, run=tmp_path)
    text = (tmp_path / "report.html").read_text()
    for label in ("training (train.jsonl)", "val (valid.jsonl)", "seen (train.jsonl)"):
        assert label in text
    assert "none of them" not in text


def test_pages_lead_to_each_other_by_relative_addresses(config, tmp_path):
    run = tmp_path / "sweep" / "lr=0.1, #2"
    other = run / "evaluation-test" / "report.html"
    other.parent.mkdir(parents=True)
    for file in (other, run / "config.json", run.parent / "sweep.html"):
        file.write_text("{}")
    about = subject(settings=settings(config), name="val")
    links = dict(report.find_links(run / "report-val.html", run, about, run / "none"))
    assert links == {
        **{"report of seen": "report-seen.html", "sweep": "../sweep.html"},
        **{"evaluation of test": "evaluation-test/report.html", "config.json": "config.json"},
    }
    links = dict(report.find_links(other, run, about, run / "none"))
    assert links["report of val"] == "../report-val.html" and links["sweep"] == "../../sweep.html"
    assert "evaluation of test" not in links
    assert report.address(run / "a.html", run.parent) == "lr%3D0.1%2C%20%232/a.html"


def test_reports_that_were_there_lead_to_one_that_is_written_later(tmp_path):
    (tmp_path / "config.json").touch()
    evil = subject(title="</nav><a>")
    later = tmp_path / "evaluation-te&st"
    report.write(tmp_path, [ROW], {"loss": 1.0}, subject=evil, run=tmp_path)
    report.write(tmp_path / "evaluation-one", [ROW], {}, subject=evil, run=tmp_path)
    report.write(later, [ROW], {}, subject=evil, run=tmp_path)
    for _ in range(2):
        report.link_from_others(later / "report.html", tmp_path, "te&st")
    for path, place in (("report.html", ""), ("evaluation-one/report.html", "../")):
        links = (tmp_path / path).read_text().partition("<nav")[2].partition("</nav>")[0]
        link = f'<a href="{place}evaluation-te%26st/report.html">evaluation of te&amp;st</a>'
        assert links.count(link) == 1 and 'href="' in links.partition(link)[0]
    own = (later / "report.html").read_text().partition("<nav")[2].partition("</nav>")[0]
    assert "te%26st" not in own and "../report.html" in own
