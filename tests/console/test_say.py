"""What a person reads: lines that can be silenced, and that long work goes on."""

import io
import json
import logging
import subprocess
import sys
import threading
import time
import types

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


@pytest.fixture
def logger():
    """The doors' logger as it is before any door has begun; afterwards as it was."""
    kept = say.LOGGER.handlers[:], say.LOGGER.level, say.LOGGER.propagate
    say.LOGGER.handlers, say.LOGGER.propagate = [], True
    say.LOGGER.setLevel(logging.NOTSET)
    yield say.LOGGER
    say.LOGGER.handlers, say.LOGGER.propagate = kept[0], kept[2]
    say.LOGGER.setLevel(kept[1])


def on_screen(text):
    """Returns the lines that a terminal shows for what was written to it."""
    lines, row, column = [""], 0, 0
    for character in text.replace("\x1b[A", "\v"):
        if character in "\n\v":
            row, column = row + (1 if character == "\n" else -1), 0
            lines += [""] * (row + 1 - len(lines))
        elif character == "\r":
            column = 0
        else:
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def test_a_line_stands_alone_above_a_bar_that_is_on_screen(listen):
    stream, is_shown = listen(is_terminal=True)
    with say.progress("busy", unit="rows") as report:
        assert is_shown.wait(20)
        report(1, 2)
        say.info("a line")
        say.warning("another")
        report(2, 2)
    lines = on_screen(stream.getvalue())
    assert lines[:2] == ["a line", "warning: another"]
    assert lines[2].startswith("busy: 100%") and "2/2" in lines[2] and not any(lines[3:])


@pytest.mark.parametrize(("level", "expected"), [("WARNING", ["warning: b", "error: c"]), (60, [])])
def test_a_silenced_logger_shows_no_line_and_no_bar(listen, logger, level, expected):
    stream, _ = listen(is_terminal=True)
    logger.setLevel(level)
    say.show_on_stderr()
    with say.progress("working", unit="rows") as report, say.working("working"):
        say.info("a")
        say.warning("b")
        say.error("c")
        report(1, 1)
    assert stream.getvalue().splitlines() == expected


def test_a_program_that_has_a_handler_gets_the_lines_instead(listen, logger):
    stream, records = listen(is_terminal=False)[0], []
    handler = logging.Handler()
    handler.emit = lambda record: records.append((record.levelname, record.getMessage()))
    logger.addHandler(handler)
    say.show_on_stderr()
    say.info("100% of it")
    say.warning("mind")
    assert records == [("INFO", "100% of it"), ("WARNING", "mind")]
    assert stream.getvalue() == ""


def test_a_room_without_a_door_shows_warnings_alone_and_a_door_each_line_once():
    program = """if True:
        import logging
        from paligemma_jax.console import arguments, say
        say.info("unseen")
        logging.basicConfig()  # of the program: a second way out for each line
        arguments.parser("A door.")
        arguments.parser("Another.")
        say.info("seen")
        say.result("result")
        """
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert (done.stderr, done.stdout) == ("seen\n", "result\n")


def test_lines_show_what_text_would_hide(capsys):
    say.warning("cat \u202egod\u202c \x1b[2J")
    say.result(json.dumps({"prediction": "\u202egod \ud800"}, ensure_ascii=False))
    out, err = capsys.readouterr()
    assert err.rstrip() == r"warning: cat \u202egod\u202c \u001b[2J"
    assert json.loads(out) == {"prediction": "\u202egod \ud800"} and "\u202e" not in out


def test_results_for_a_full_disk_are_one_error_that_names_standard_output():
    program = (
        "from paligemma_jax.console import arguments, say\n"
        "arguments.run(lambda: say.result('x' * 100_000))"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: standard output is not written: its disk is full")
    assert len(rest) == 1, "and how to see more, nothing else"


def test_lines_of_a_block_are_kept_in_a_file_with_an_error_as_the_last_one(tmp_path, logger):
    say.show_on_stderr()
    path = tmp_path / "train.log"

    def work():
        with say.kept_in_file() as keep:
            say.info("before its folder was there")
            keep(path)
            say.warning("two\nlines")
            raise ValueError("an image cannot be read")

    with pytest.raises(ValueError, match="an image"):
        work()
    say.info("afterwards")
    with say.kept_in_file() as keep:
        keep(path)
        say.info("again")
    when, texts = zip(*(line.split("  ", 1) for line in path.read_text().splitlines()), strict=True)
    assert all(time.strptime(one, "%Y-%m-%d %H:%M:%S") for one in when)
    assert texts == (
        *("before its folder was there", "warning: two", "lines", "error: an image cannot be read"),
        "again",
    )
    assert not [one for one in logger.handlers if isinstance(one, say.LogFile)]


def test_a_block_that_ends_before_its_folder_is_there_leaves_no_file(tmp_path):
    with say.kept_in_file():
        say.info("all wrong")
    assert not list(tmp_path.iterdir())


def test_that_work_goes_on_is_no_line_of_the_file(tmp_path, listen, logger):
    say.show_on_stderr()
    stream, is_shown = listen(is_terminal=False)
    with say.kept_in_file() as keep, say.working("busy"):
        keep(tmp_path / "train.log")
        assert is_shown.wait(20)
        say.info("done")
    assert "busy: 0 s" in stream.getvalue()
    assert (tmp_path / "train.log").read_text().count("\n") == 1


def test_long_work_without_a_terminal_says_less_and_less_often(monkeypatch, listen):
    stream, _ = listen(is_terminal=False)
    monkeypatch.setattr(say, "LINE_AFTER_S", 2.0)
    now = [0.0]
    monkeypatch.setattr(say, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(say, "_last_line_at", 0.0)
    lines = say._Lines("training", "steps", "")
    for second in range(3600):
        now[0] = float(second)
        lines.report(second, 10_000)
    shown = stream.getvalue().splitlines()
    assert shown[:3] == ["training: 2/10000 steps, 2 s", *shown[1:3]]
    assert 30 < len(shown) < 60 and shown[-1].endswith("min")


# A notebook's kernel, as tqdm knows it, without ipywidgets.
IN_A_NOTEBOOK = """
import sys, types, warnings
sys.modules["ipykernel.zmqshell"] = types.ModuleType("zmqshell")
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: "a shell")
sys.modules["ipywidgets"] = None  # it cannot be imported
with warnings.catch_warnings(record=True) as shown:
    warnings.simplefilter("always")
    from paligemma_jax.console import say
print([str(one.message) for one in shown if "IProgress" in str(one.message)], say.shows_bars())
"""


def test_a_notebook_without_widgets_gets_lines_and_no_warning_of_them():
    command = [sys.executable, "-c", IN_A_NOTEBOOK]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "[] False\n"
