"""MSVD-QA: questions about a video.

    python -m paligemma_jax.check --config configs/transfers/msvd_qa.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/msvd_qa.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/msvd_qa.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows=(
        "`image` the list of frames of a video (8, every 26th), `prefix` the question, "
        "`suffix` the answer"
    ),
    task="vqa",
    text_len=64,
    tuned_on="msvd_qa/minival",
    further=("test",),
    log_percent=0.25,
    eval_batch_size=None,
    max_images=8,
    stride=26,
    total_epochs=3,
    batch_size=128,
    lr=3e-6,
    wd=3e-7,
    best={224: dict(total_epochs=1)},
    published={224: "60.22"},
    published_as="MSVD (QA): Accuracy (test)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/msvd_qa", about=__doc__)
