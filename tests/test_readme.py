"""README says what the program does."""

import pathlib
import re
import textwrap

import pytest

from paligemma_jax.params import released_models
from paligemma_jax.settings import load, schema
from paligemma_jax.tasks import metrics

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIGS = (ROOT / "configs" / "README.md").read_text()


def test_key_table_is_printed_from_the_code():
    table = re.search(r"<!-- keys -->\n(.*)<!-- /keys -->", CONFIGS, re.DOTALL)
    assert table, "configs/README.md has no <!-- keys --> ... <!-- /keys -->"
    expected = schema.markdown() + "\n"
    assert table[1] == expected, "paste the output of python -m paligemma_jax.settings.schema"


def test_score_table_is_printed_from_the_code():
    table = re.search(r"<!-- scores -->\n(.*)<!-- /scores -->", CONFIGS, re.DOTALL)
    assert table and table[1] == metrics.markdown() + "\n"


@pytest.mark.parametrize("path", ["README.md", "configs/README.md"])
def test_every_local_link_leads_somewhere(path):
    file = ROOT / path
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", file.read_text())
    found = [(file.parent / target if target else file, anchor) for target, anchor in links]
    assert found
    for target, anchor in found:
        assert target.exists()
        assert not anchor or anchor in anchors(target), f"{target}#{anchor}"


def anchors(path):
    """Yields what a file's headings are called in links."""
    for title in re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE):
        yield re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("arg", ["", ":overfit"])
def test_config_for_own_data_builds(arg, tmp_path):
    (snippet,) = re.findall(r"```python\n(   from .*?)   ```", README, re.DOTALL)
    (tmp_path / "mine.py").write_text(textwrap.dedent(snippet))
    config = load.load(f"{tmp_path}/mine.py{arg}")
    assert config.model_init == "pt_3b_224"
    assert (config.stop_at is None) == (arg == "")


def test_weights_are_the_released_ones():
    listed = re.findall(r"`(pt_[^`]*RES[^`]*)`", README)
    spelt = {name.replace("RES", str(res)) for name in listed for res in (224, 448, 896)}
    assert spelt == set(released_models.FILES)


def test_every_config_is_listed():
    for path in (ROOT / "configs").glob("*.py"):
        assert f"(configs/{path.name})" in README
