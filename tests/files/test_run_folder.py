"""The names of the files in a run's folder are a format: old runs must stay readable."""

from paligemma_jax.files import run_folder


def test_an_evaluations_files_are_named_after_it_where_there_are_several():
    assert run_folder.predictions("val", 200) == "predictions-val-000200.jsonl"
    assert (run_folder.scores(), run_folder.report()) == ("metrics.json", "report.html")
    assert (run_folder.scores("val"), run_folder.report("val")) == (
        "metrics-val.json",
        "report-val.html",
    )
    assert run_folder.evaluation("val") == "evaluation-val"
