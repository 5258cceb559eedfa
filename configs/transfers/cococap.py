"""COCO captions: a photograph in a sentence.

    python -m paligemma_jax.check --config configs/transfers/cococap.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/cococap.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/cococap.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`suffix` one caption and `answers` all of them, in one row an image",
    made_by="import_data SRC DST --task caption",
    task="caption",
    prompt="caption en",
    scores=transfers.CAPTION_SCORES,
    tuned_on="cococap/minival",
    further=("test", "nocaps"),
    log_percent=0.1,
    beam_size=2,
    antialias=False,
    draws_answers=True,
    total_epochs=5,
    lr=1e-4,
    best={224: dict(lr=1e-5, wd=1e-6), 448: dict(lr=1e-5, wd=1e-6)},
    published={224: "141.92", 448: "144.60"},
    published_as="COCO captions (train+restval): CIDEr (val)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/cococap", about=__doc__)
