"""What a person reads while long work goes on."""

import io
import sys
import threading

import pytest

from paligemma_jax.console import say


def test_a_table_has_no_spaces_at_the_ends_of_its_lines():
    text = say.table([("a", "1", ""), ("long", "22", "x")], header=("", "n", "what"))
    assert text.splitlines() == [
        "       n  what",
        "--------------",
        "a      1",
        "long  22     x",
    ]


@pytest.fixture
def listen(monkeypatch):
    """A function that takes standard error's place, from when a test calls it.

    It returns what is written, and an event that is set once that holds "busy".
    """
    for name in ("TICK_S", "SHOW_AFTER_S", "LINE_AFTER_S"):
        monkeypatch.setattr(say, name, 1e-3)

    def listen(*, is_terminal):
        is_shown = threading.Event()

        class Stream(io.StringIO):
            def isatty(self):
                return is_terminal

            def write(self, text):
                if "busy" in text:
                    is_shown.set()
                return super().write(text)

        stream = Stream()
        monkeypatch.setattr(sys, "stderr", stream)
        return stream, is_shown

    return listen


@pytest.mark.parametrize("is_terminal", [True, False])
def test_work_that_reports_nothing_is_shown_while_it_goes_on(listen, is_terminal):
    stream, is_shown = listen(is_terminal=is_terminal)
    with say.working("busy"):
        assert is_shown.wait(20)
    assert "busy: 0" in stream.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_comes_before_the_first_report_is_shown_until_then(listen, is_terminal):
    stream, is_shown = listen(is_terminal=is_terminal)
    with say.progress("answering", unit="rows", first="busy") as report:
        assert is_shown.wait(20)
        report(1, 2)
        report(2, 2)
    assert "2/2" in stream.getvalue().rsplit("busy", maxsplit=1)[1]


def test_quick_work_says_nothing_where_there_is_no_terminal(listen, monkeypatch):
    monkeypatch.setattr(say, "LINE_AFTER_S", 3600)
    stream, _ = listen(is_terminal=False)
    with say.progress("busy", unit="rows") as report, say.working("busy"):
        report(1, 1)
    assert stream.getvalue() == ""
