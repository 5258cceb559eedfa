"""RefCOCO, RefCOCO+ and RefCOCOg: the mask of what a phrase names.

    python -m paligemma_jax.check --config configs/transfers/refcoco_seg.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/refcoco_seg.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/refcoco_seg.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`prefix` the phrase, `suffix` its box and mask, `objects` its outline",
    made_by="import_data SRC DST --task segmentation",
    task="segmentation",
    prompt=None,
    text_len=48,
    scores=None,
    tuned_on="seg/refcoco/val",
    further=("test",),
    log_percent=0.2,
    eval_batch_size=256,
    antialias=False,
    res=448,
    total_epochs=5,
    batch_size=64,
    label_smoothing=0.3,
    best={
        224: dict(lr=3e-5, total_epochs=100, dropout=0.1, batch_size=256),
        448: dict(total_epochs=100, batch_size=256),
        896: dict(total_epochs=100),
    },
    published={
        224: "73.40 / 68.32 / 67.65",
        448: "75.57 / 69.76 / 70.17",
        896: "76.94 / 72.18 / 72.22",
    },
    published_as=(
        "RefCOCO (combined refcoco, refcoco+, refcocog excluding val and test images): "
        "MIoU (validation) refcoco / refcoco+ / refcocog"
    ),
    unlike="a row holds one phrase; its order of phrases is drawn anew in every pass",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/refcoco_seg", about=__doc__)
