"""NLVR2: whether a sentence is true of two photographs.

    python -m paligemma_jax.check --config configs/transfers/nlvr2.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/nlvr2.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/nlvr2.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`image` the left and the right one, `prefix` the sentence, `suffix` the label",
    task="vqa",
    text_len=64,
    tuned_on="nlvr2/dev",
    further=("test", "marvl_LANGUAGE"),
    log_percent=0.1,
    max_images=2,
    antialias=False,
    total_epochs=3,
    lr=1e-4,
    best={
        224: dict(lr=1e-5, wd=1e-6),
        448: dict(lr=3e-6, wd=3e-7, total_epochs=10),
    },
    published={224: "90.02", 448: "88.93"},
    published_as="NLVR2 (train+dev): Accuracy (test)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/nlvr2", about=__doc__)
