"""MSR-VTT captions: a video in a sentence.

    python -m paligemma_jax.check --config configs/transfers/msrvtt_cap.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/msrvtt_cap.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/msrvtt_cap.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows=(
        "`image` the list of frames of a video (16, every 9th), `suffix` and `answers` the captions"
    ),
    task="caption",
    prompt="caption en",
    scores=transfers.CAPTION_SCORES,
    tuned_on="msrvtt/minival",
    further=("test",),
    log_percent=0.25,
    eval_batch_size=None,
    max_images=16,
    stride=9,
    draws_answers=True,
    batch_size=128,
    wd=1e-6,
    best={224: dict(wd=0.0, total_epochs=20, freeze_vit=True)},
    published={224: "70.54"},
    published_as="MSR-VTT (Captioning): CIDEr (test)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/msrvtt_cap", about=__doc__)
