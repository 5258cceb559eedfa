"""COCO-35L: captions in 35 languages.

    python -m paligemma_jax.check --config configs/transfers/coco35l.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/coco35l.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/coco35l.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows=(
        "`language` its code, `suffix` one caption and `answers` all of them, in one row an image"
    ),
    made_by="import_data SRC DST --task caption",
    task="caption",
    prompt="caption {language}",
    scores=transfers.CAPTION_SCORES,
    tuned_on="coco35l/en",
    further=("valid_LANGUAGE", "xm3600_LANGUAGE"),
    log_percent=0.25,
    antialias=False,
    draws_answers=True,
    sources=dict.fromkeys(transfers.LANGUAGES, 1),
    total_epochs=None,
    total_examples=566_435,
    lr=1e-4,
    best={
        224: dict(lr=1e-5, wd=1e-6, total_examples=2_832_175),
        448: dict(lr=1e-5, wd=1e-6, total_examples=2_832_175),
    },
    published={224: "139.2 / 115.8 / 116.4", 448: "141.2 / 118.0 / 118.6"},
    published_as="COCO-35L (train): CIDEr dev (en / avg-34 / avg)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/coco35l", about=__doc__)
