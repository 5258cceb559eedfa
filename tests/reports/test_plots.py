import xml.etree.ElementTree as ET

from paligemma_jax.reports import plots

ROWS = [
    {"step": 1, "train/loss": 3.0, "n": 5},
    {"step": 2, "train/loss": float("nan"), "val/loss": 2.0, "n": 5},
    {"step": 3, "train/loss": 1.0, "val/loss": 1.5, "per_class/cat/map50": 0.1, "n": 5},
    {"step": 4, "per_class/cat/map50": 0.2, "n": 5},
]


def test_curves_are_an_svg_that_depends_on_the_rows_alone():
    svg = plots.curves(ROWS, ["train/loss", "val/loss", "missing"], title="loss <&>")
    assert ET.fromstring(svg).tag.endswith("svg")
    assert svg == plots.curves(ROWS, ["train/loss", "val/loss", "missing"], title="loss <&>")
    assert svg != plots.curves(ROWS, ["train/loss"], title="loss <&>")


def test_no_rows_give_empty_axes():
    assert ET.fromstring(plots.curves([], ["loss"])).tag.endswith("svg")


def test_losses_share_a_panel_and_what_never_changes_has_none():
    assert plots.choose_panels(ROWS) == {"loss": ["train/loss", "val/loss"]}


def test_shared_panels_come_first_then_evaluations():
    rows = [{"step": n, "norm": n, "loss": n, "val/map": n, "val/loss": n} for n in (1, 2)]
    assert list(plots.choose_panels(rows)) == ["loss", "map", "norm"]


def test_a_whole_and_its_parts_share_the_last_panel():
    rows = [{"step": n, "norm": n, "norm/a": n, "norm/b": n, "loss": n} for n in (1, 2)]
    assert plots.choose_panels(rows) == {"loss": ["loss"], "norm": ["norm", "norm/a", "norm/b"]}


def test_precision_over_recall_shows_names_as_they_are():
    curves = {"$a$": [1.0, 0.5, 0.0], "_b": [1.0, 1.0, 0.2], "\u732b": [0.5, 0.0, 0.0]}
    svg = plots.precision_recall(curves, colors={"_b": "#ff0000"}, title="pr")
    assert ET.fromstring(svg).tag.endswith("svg") and svg.count(b"#ff0000") == 2
    assert ET.fromstring(plots.precision_recall({}, colors={})).tag.endswith("svg")
