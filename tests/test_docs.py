"""README and the pages of docs/ say what the program does."""

import importlib
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from paligemma_jax import __main__
from paligemma_jax.models.paligemma import paligemma, variants
from paligemma_jax.params import released_models
from paligemma_jax.settings import load, schema, transfers
from paligemma_jax.tasks import metrics, task
from tests import pages

ROOT = pages.ROOT
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
CONFIGS = (ROOT / "docs" / "configs.md").read_text()
DATA = (ROOT / "docs" / "data.md").read_text()
INTEROP = (ROOT / "docs" / "interop.md").read_text()


def test_key_table_is_printed_from_the_code():
    table = re.search(r"<!-- keys -->\n(.*)<!-- /keys -->", CONFIGS, re.DOTALL)
    assert table, "docs/configs.md has no <!-- keys --> ... <!-- /keys -->"
    expected = schema.markdown() + "\n"
    assert table[1] == expected, "paste the output of python -m paligemma_jax.settings.schema"


def test_score_table_is_printed_from_the_code():
    table = re.search(r"<!-- scores -->\n(.*)<!-- /scores -->", CONFIGS, re.DOTALL)
    assert table and table[1] == metrics.markdown() + "\n"


def test_rows_of_each_task_are_read_as_such():
    rows = re.findall(r"^\| `(\w+)` \| `[^`]*` \| `([^`]*)` \|$", DATA, re.MULTILINE)
    assert [name for name, _ in rows] == [name for name in task.TASKS if name != "mixed"]
    for name, suffix in rows:
        assert task.look_up(name).check(suffix) is None


@pytest.mark.parametrize("page", pages.names())
def test_every_local_link_leads_somewhere(page):
    file = ROOT / page
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", file.read_text())
    for name, anchor in links:
        target = file.parent / name if name else file
        assert target.exists(), target
        assert not anchor or anchor in anchors(target), f"{target}#{anchor}"


def anchors(path):
    """Yields what a file's headings are called in links."""
    for title in re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE):
        yield re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")


def test_every_page_is_reached():
    """From the README, which is the site's first page, and from the site's menu."""
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in README
        assert page.name in (ROOT / "mkdocs.yml").read_text()


def test_readme_is_read_in_one_sitting():
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", pages.names())
def test_commands_are_understood(page, monkeypatch):
    """Their words by their door, and the config's own by the config."""
    monkeypatch.chdir(ROOT)
    for door, *words in pages.commands(page):
        module = importlib.import_module(f"paligemma_jax.{__main__.choose(door, words)}")
        if words == ["--help"]:
            continue
        parsed = module.parse_args(words)
        if isinstance(parsed, tuple):  # a door whose words may set keys
            args, overrides = parsed
            source = getattr(args, "config", None)
            if source and pathlib.Path(source.partition(":")[0]).exists():
                load.load(source, overrides["config"])


@pytest.mark.parametrize("arg", ["", ":overfit"])
def test_config_for_own_data_builds(arg, tmp_path):
    (snippet,) = re.findall(r"```python\n(from paligemma_jax.settings .*?)```", CONFIGS, re.DOTALL)
    (tmp_path / "mine.py").write_text(textwrap.dedent(snippet))
    config = load.load(f"{tmp_path}/mine.py{arg}")
    assert config.model_init == "pt_3b_224"
    assert (config.stop_at is None) == (arg == "")


def test_weights_are_the_released_ones():
    listed = re.findall(r"`((?:pt|mix)_[^`]*RES[^`]*)`", INTEROP)
    sides = {"pt": (224, 448, 896), "mix": (224, 448)}
    spelt = {one.replace("RES", str(res)) for one in listed for res in sides[one.partition("_")[0]]}
    known = {name for name, one in released_models.FILES.items() if one.kind != "ft"}
    assert spelt == known
    tasks = re.search(r"fine-tuned on TASK: ([^|]*?);", INTEROP)
    assert tasks and set(re.findall(r"`(\w+)`", tasks[1])) == set(released_models.FINE_TUNED)


def test_every_config_is_listed():
    pages = CONFIGS + (ROOT / "docs/transfers.md").read_text()
    assert set(re.findall(r"\(\.\./configs/([\w/]+)\.py\)", pages)) == set(load.SHIPPED)
    assert set(load.shipped_configs()) == set(load.SHIPPED)


LORA = "9,805,824", "11,298,816", "10,383,360", "11,876,352", "27,009,024", "28,502,016"
# Page -> where its figures are from -> the figures, as they are spelt in both.
FIGURES = {
    "README.md": {
        "experiments/demo/README.md": ("0.947", "0.866"),
        "experiments/benchmarks/README.md": ("0.98", "0.44", "0.43", "0.47"),
    },
    "docs/configs.md": {
        "experiments/digits/README.md": ("1.8",),
        "experiments/tiny_base/README.md": ("4.1",),
        "experiments/noise_boxes/README.md": ("0.923", "0.955"),
        "experiments/adapters/README.md": ("0.516", "0.531", "0.563", "284", "168", "4,304"),
        "tests/models/test_lora.py": LORA,
    },
    "docs/data.md": {"experiments/import_coco/README.md": ("50,000", "7,000", "13.8")},
    "docs/labelling.md": {"tests/labelling/test_page_in_browser.py": ("10,000",)},
    "docs/interop.md": {"docs/interop.md": ("6.1", "19.3", "55.3", "5.8", "11.7", "0.7")},
    "docs/transfers.md": {
        "tests/reference/transfers.json": tuple(re.findall(r"\d+\.\d+", transfers.markdown()))
    },
    "docs/scale.md": {"experiments/faults/README.md": ("35 kills",)},
}
# Numbers of a page that nobody measures: versions, addresses, settings.
GIVEN = {
    "README.md": {"3.11", "3.13", "2.0"},
    "docs/configs.md": {"2412.03555", "0.5", "0.1"},
    "docs/house.md": {"1.9", "5.8"},
    "docs/labelling.md": {"0.5"},
    "docs/transfers.md": {"2407.07726"},
}
NUMBER = r"\d+\.\d+|\d+(?:,\d{3})+|\d+ kills"
NOT_TEXT = r"```.*?```|`[^`\n]*`|<!-- keys.*?/keys -->|\]\([^)]*\)"


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in DOCS.glob("*.md"))])
def test_figures_stand_where_they_come_from(page):
    """Every number of a page's own text: a new one needs a place that it is from."""
    text = (ROOT / page).read_text()
    known = set(GIVEN.get(page, ()))
    for source, figures in FIGURES.get(page, {}).items():
        known.update(figures)
        origin = (ROOT / source).read_text().replace("_", ",")
        assert [figure for figure in figures if figure not in text or figure not in origin] == []
    found = re.findall(NUMBER, re.sub(NOT_TEXT, "", text, flags=re.DOTALL))
    assert [number for number in found if number not in known] == []


def test_sizes_of_downloads_are_those_of_the_parameters():
    def gigabytes(name, itemsize, part=""):
        shapes = paligemma.shapes(variants.released(name, res=224))
        count = sum(x.size for key, x in shapes.items() if key.startswith(part))
        return f"{count * itemsize / 1e9:.1f} GB"

    big, bigger = (gigabytes(f"paligemma2-{size}", 2) for size in ("10b", "28b"))
    half, whole = (gigabytes("paligemma1-3b", itemsize) for itemsize in (2, 4))
    rows = re.findall(r"^\| `pt_.*\| ([^|]* GB) \|$", INTEROP, re.MULTILINE)
    assert rows == [gigabytes("paligemma2-3b", 2), f"{big}, {bigger}", f"{half}, {half}, {whole}"]
    attention = gigabytes("paligemma1-3b", 4, "llm/layers/attn/")
    assert (
        f"({attention} in float32, of {half.split()[0]} for attention in PaliGemma 3B)" in INTEROP
    )


@pytest.mark.slow
def test_site_builds(tmp_path):
    """Every page with its links, and nothing that a reader's browser asks another server for."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    built = list(tmp_path.rglob("index.html"))
    assert len(built) == len(list((ROOT / "docs").glob("*.md"))) + 1  # and the README
    for page in built:
        asked = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text()
        )
        assert not asked
        for picture in re.findall(r'<img[^>]+src="([^"]+)"', page.read_text()):
            assert (page.parent / picture).exists()
