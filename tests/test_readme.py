"""README says what the program does."""

import pathlib
import re

from paligemma_jax.config import keys
from paligemma_jax.tasks import metrics

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONFIGS = (ROOT / "configs" / "README.md").read_text()


def test_key_table_is_printed_from_the_code():
    table = re.search(r"<!-- keys -->\n(.*)<!-- /keys -->", CONFIGS, re.DOTALL)
    assert table, "configs/README.md has no <!-- keys --> ... <!-- /keys -->"
    expected = keys.markdown() + "\n"
    assert table[1] == expected, "paste the output of python -m paligemma_jax.config.keys"


def test_score_table_is_printed_from_the_code():
    table = re.search(r"<!-- scores -->\n(.*)<!-- /scores -->", CONFIGS, re.DOTALL)
    assert table and table[1] == metrics.markdown() + "\n"


def test_every_local_link_leads_somewhere():
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert targets
    assert not missing


def test_every_config_is_listed():
    for path in (ROOT / "configs").glob("*.py"):
        assert f"(configs/{path.name})" in README
