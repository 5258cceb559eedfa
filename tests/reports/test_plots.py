import re

import pytest

from paligemma_jax.reports import plots

ROWS = [
    {"step": 1, "train/loss": 3.0, "n": 5},
    {"step": 2, "train/loss": float("nan"), "val/loss": 2.0, "n": 5},
    {"step": 3, "train/loss": 1.0, "val/loss": 1.5, "per_class/cat/map50": 0.1, "n": 5},
    {"step": 4, "per_class/cat/map50": 0.2, "n": 5},
]


def test_curves_are_those_of_keys_with_values_and_depend_on_the_rows_alone():
    drawn = plots.curves(ROWS, ["train/loss", "val/loss", "missing"], title="loss <&>")
    assert [curve.label for curve in drawn.curves] == ["train/loss", "val/loss"]
    assert drawn == plots.curves(ROWS, ["train/loss", "val/loss", "missing"], title="loss <&>")
    assert drawn.curves[0].color != drawn.curves[1].color


def test_a_value_that_is_no_number_breaks_its_curve():
    drawn = plots.curves(ROWS, ["train/loss", "val/loss"])
    assert drawn.curves[0].path.count("M") == 2 and len(drawn.curves[0].dots) == 2
    assert drawn.curves[1].path.count("M") == 1 and drawn.curves[1].path.count("L") == 1


def test_high_values_are_above_low_ones_and_later_steps_to_the_right():
    drawn = plots.curves(ROWS, ["val/loss"])
    (x1, y1, text), (x2, y2, _) = drawn.curves[0].dots
    assert x1 < x2 and y1 < y2 and text == "step 2: 2"
    assert drawn.left <= x1 and x2 <= drawn.right and y1 >= 0 and y2 <= drawn.height


def test_a_dot_of_a_value_is_where_the_ticks_say():
    rows = [{"step": step, "a": value} for step, value in ((0, 0.0), (10, 10.0))]
    drawn = plots.curves(rows, ["a"])
    places = {text: place for place, text in drawn.y_ticks}
    assert places["0"] == pytest.approx(drawn.curves[0].dots[0][1], abs=0.2)
    assert places["10"] == pytest.approx(drawn.curves[0].dots[1][1], abs=0.2)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (0, 30000, ["0", "10k", "20k", "30k"]),
        (-0.0003, 0.0004, ["-0.0002", "0", "0.0002", "0.0004"]),
        (2e6, 4e6, ["2M", "2.5M", "3M", "3.5M", "4M"]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    rows = [{"step": 1, "a": low}, {"step": 2, "a": high}]
    assert [text for _, text in plots.curves(rows, ["a"]).y_ticks] == expected


def test_a_curve_that_never_changes_and_one_value_are_drawn():
    for rows in ([{"step": 1, "a": 0.0}], [{"step": n, "a": 7.0} for n in (1, 2)]):
        drawn = plots.curves(rows, ["a"])
        assert len(drawn.curves[0].dots) == len(rows) and drawn.y_ticks
        assert 0 < drawn.curves[0].dots[0][1] <= drawn.height


def test_a_long_curve_keeps_its_peaks_and_has_no_dots():
    rows = [{"step": n, "a": 100.0 if n == 7777 else 0.0} for n in range(20_000)]
    (curve,) = plots.curves(rows, ["a"]).curves
    lows = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", curve.path)]
    assert len(lows) <= plots.MAX_POINTS + 2 and not curve.dots
    assert min(lows) == pytest.approx(plots.TOP, abs=10)


def test_no_rows_give_empty_axes():
    drawn = plots.curves([], ["loss"])
    assert not drawn.curves and drawn.y_ticks


def test_losses_share_a_panel_and_what_never_changes_has_one_too_but_classes_have_none():
    assert plots.choose_panels(ROWS) == {"loss": ["train/loss", "val/loss"], "n": ["n"]}


def test_named_panels_come_first_then_shared_ones_then_evaluations_then_constants():
    rows = [
        {"step": n, "norm": n, "loss": n, "val/cider": n, "val/map": 0.5, "val/loss": n, "k": 1}
        for n in (1, 2)
    ]
    assert list(plots.choose_panels(rows, ["map"])) == ["map", "loss", "cider", "norm", "k"]


def test_a_whole_and_its_parts_share_the_last_panel():
    rows = [{"step": n, "norm": n, "norm/a": n, "norm/b": n, "loss": n} for n in (1, 2)]
    assert plots.choose_panels(rows) == {"loss": ["loss"], "norm": ["norm", "norm/a", "norm/b"]}


def test_precision_over_recall_has_the_colours_of_labels_and_a_mean():
    curves = {"$a$": [1.0, 0.5, 0.0], "_b": [1.0, 1.0, 0.2], "\u732b": [0.5, 0.0, 0.0]}
    drawn = plots.precision_recall(curves, colors={"_b": "#ff0000"}, title="pr")
    assert {curve.label: curve.color for curve in drawn.curves} == {
        **{"\u732b": "#5d6d7e", "$a$": "#5d6d7e", "_b": "#ff0000"},
        **{"mean of 3": "var(--ink)"},
    }
    assert [text for _, text in drawn.y_ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert not plots.precision_recall({}, colors={}).curves


def test_labels_show_what_text_would_hide():
    drawn = plots.precision_recall({"a\x01b\u202e": [1.0, 0.5]}, colors={}, title="\ud800")
    assert [curve.label for curve in drawn.curves] == [r"a\u0001b\u202e"]
    assert drawn.title == r"\ud800"
