"""Widget Captioning: what part of a phone's screen is for.

    python -m paligemma_jax.check --config configs/transfers/widgetcap.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/widgetcap.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/widgetcap.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows=(
        "with the widget's box drawn into the image, `suffix` one caption and `answers` "
        "all of them, in one row an image"
    ),
    made_by="import_data SRC DST --task caption",
    task="caption",
    prompt="caption en",
    scores=transfers.CAPTION_SCORES,
    tuned_on="widgetcap/val",
    further=("test",),
    log_percent=0.1,
    draws_answers=True,
    total_epochs=4,
    batch_size=64,
    lr=3e-6,
    wd=3e-7,
    label_smoothing=0.1,
    dropout=0.1,
    best={224: {}, 448: {}},
    published={224: "136.07", 448: "148.36"},
    published_as="Widget Captioning (train+dev): CIDEr (test)",
    unlike="it draws the widget's box after resizing; here it is in the file",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/widgetcap", about=__doc__)
