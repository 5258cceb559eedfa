"""In CI a test that skips itself for a reason that nobody listed is a failure."""

import textwrap

import pytest

BODIES = {
    "decorated": """
        @pytest.mark.skipif(True, reason={reason!r})
        def test_a(): pass
    """,
    "called": """
        def test_a(): pytest.skip({reason!r})
    """,
    "whole_file": """
        pytest.skip({reason!r}, allow_module_level=True)
    """,
    "no_parameters": """
        @pytest.mark.parametrize("a", [])
        def test_a(a): pass
    """,
    "missing_package": """
        def test_a(): pytest.importorskip("torch_of_nobody")
    """,
}
KNOWN = "the allocator is glibc's"


@pytest.fixture
def status_of(tmp_path, monkeypatch, pytestconfig):
    """Returns a function that runs a test file: (body, reason, CI) -> exit status."""
    plugin = pytestconfig.pluginmanager.get_plugin("known_skips")

    def status_of(body: str, *, reason: str = "", ci: str = "true") -> pytest.ExitCode:
        monkeypatch.setenv("CI", ci)
        path = tmp_path / f"test_{tmp_path.name}.py"
        path.write_text("import pytest\n" + textwrap.dedent(body).format(reason=reason))
        (tmp_path / "pytest.ini").write_text("[pytest]")
        words = [str(path), f"--rootdir={tmp_path}", "-c", str(tmp_path / "pytest.ini")]
        return pytest.main([*words, "-p", "no:cacheprovider"], plugins=[plugin])

    return status_of


@pytest.mark.slow
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_an_unlisted_reason_fails_in_ci_alone(body, status_of, capsys):
    assert status_of(body, reason="no reason", ci="") != pytest.ExitCode.TESTS_FAILED
    assert status_of(body, reason="no reason") != pytest.ExitCode.OK
    assert "skips itself in CI" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["decorated", "called"])
def test_a_listed_reason_is_let_pass(name, status_of):
    assert status_of(BODIES[name], reason=KNOWN) == pytest.ExitCode.OK


def test_a_failure_that_is_expected_is_no_skip(status_of):
    body = """
        @pytest.mark.xfail
        def test_a(): raise ValueError
    """
    assert status_of(body) == pytest.ExitCode.OK
