"""Screen2Words: a screen of a phone in a phrase.

    python -m paligemma_jax.check --config configs/transfers/screen2words.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/screen2words.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/screen2words.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`suffix` one caption and `answers` all of them, in one row an image",
    made_by="import_data SRC DST --task caption",
    task="caption",
    prompt="caption en",
    text_len=24,
    scores=transfers.CAPTION_SCORES,
    tuned_on="screen2words/dev",
    further=("test",),
    log_percent=0.1,
    antialias=False,
    draws_answers=True,
    label_smoothing=0.2,
    dropout=0.3,
    best={224: {}, 448: {}},
    published={224: "117.57", 448: "119.59"},
    published_as="Screen2words (train+dev): CIDEr (test)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/screen2words", about=__doc__)
