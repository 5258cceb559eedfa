"""ActivityNet captions: part of a video in a sentence.

    python -m paligemma_jax.check --config configs/transfers/activitynet_cap.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/activitynet_cap.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/activitynet_cap.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows=(
        "`image` the list of frames of a video (16, every 30th), `suffix` and `answers` "
        "the captions"
    ),
    task="caption",
    prompt="caption en",
    text_len=64,
    scores=transfers.CAPTION_SCORES,
    tuned_on="activitynet_captions_mr/minival",
    further=("test",),
    log_percent=0.25,
    eval_batch_size=None,
    max_images=16,
    stride=30,
    draws_answers=True,
    total_epochs=3,
    batch_size=128,
    lr=3e-6,
    wd=3e-7,
    best={224: dict(lr=1e-5, wd=1e-6, total_epochs=1, freeze_vit=True)},
    published={224: "34.62"},
    published_as="ActivityNet (Captioning): CIDEr (test)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/activitynet_cap", about=__doc__)
