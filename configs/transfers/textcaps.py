"""TextCaps: captions that read what stands in a photograph.

    python -m paligemma_jax.check --config configs/transfers/textcaps.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/textcaps.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/textcaps.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`suffix` one caption and `answers` all of them, in one row an image, in lower case",
    made_by="import_data SRC DST --task caption",
    task="caption",
    prompt="caption en",
    scores=transfers.CAPTION_SCORES,
    tuned_on="textcaps/minival",
    further=("test",),
    log_percent=0.1,
    beam_size=3,
    antialias=False,
    draws_answers=True,
    total_epochs=5,
    best={224: dict(wd=1e-6), 448: dict(wd=1e-6)},
    published={224: "127.48", 448: "153.94"},
    published_as="TextCaps (train): CIDEr (val)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/textcaps", about=__doc__)
