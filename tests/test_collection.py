"""Every test file of the tree runs: pytest collects it whatever its folder is called."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


class Listing:
    """A plugin of pytest that notes which test files it would import, and imports none."""

    def __init__(self):
        self.files = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makemodule(self, module_path, parent):
        self.files.add(module_path)
        return Nothing.from_parent(parent, path=module_path)


class Nothing(pytest.File):
    def collect(self):
        return []


@pytest.fixture
def collected(monkeypatch):
    """Returns the files that the command `pytest`, without arguments, collects in a folder."""

    def collected(root: pathlib.Path) -> set[pathlib.Path]:
        monkeypatch.chdir(root)
        monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
        listing = Listing()
        status = pytest.main(["--collect-only", "-p", "no:cacheprovider"], plugins=[listing])
        assert status == pytest.ExitCode.NO_TESTS_COLLECTED
        return listing.files

    return collected


def in_tree(root: pathlib.Path) -> set[pathlib.Path]:
    return {*root.rglob("test_*.py")}


def test_every_test_file_is_collected(collected):
    expected = in_tree(ROOT / "tests")
    assert pathlib.Path(__file__) in expected
    assert collected(ROOT) == expected


SHOWS_ALL = "norecursedirs = .*"


@pytest.mark.slow  # each begins pytest anew
@pytest.mark.parametrize(
    ("settings", "conftest"),
    [
        ("", ""),  # pytest's own list holds build
        ("norecursedirs = b*", ""),
        ("norecursedirs = .*\naddopts = --ignore-glob=*/build/*", ""),
        ("norecursedirs = .*\npython_files = check_*.py", ""),
        (SHOWS_ALL, "collect_ignore = ['test_a.py']"),
        (SHOWS_ALL, "def pytest_ignore_collect(collection_path): return True"),
    ],
)
def test_a_file_that_settings_hide_is_noticed(settings, conftest, collected, tmp_path):
    folder = tmp_path / tmp_path.name / "build"  # the outer name keeps modules of two trees apart
    folder.mkdir(parents=True)
    (folder / "test_a.py").write_text("raise AssertionError('imported')")
    ini = f"[pytest]\ntestpaths = {tmp_path.name}\n"
    (tmp_path / "pytest.ini").write_text(ini + SHOWS_ALL)
    assert collected(tmp_path) == in_tree(tmp_path)
    (tmp_path / "pytest.ini").write_text(ini + settings)
    (folder / "conftest.py").write_text(conftest)
    assert collected(tmp_path) < in_tree(tmp_path)
