"""GQA: questions about what is where.

    python -m paligemma_jax.check --config configs/transfers/gqa.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/gqa.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/gqa.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`prefix` the question, `suffix` the answer",
    made_by="import_data SRC DST --task vqa",
    task="vqa",
    tuned_on="gqa/val_balanced/decode",
    further=("test", "xgqa_LANGUAGE"),
    antialias=False,
    total_epochs=1,
    freeze_vit=True,
    best={224: dict(freeze_vit=False), 448: {}},
    published={224: "65.61", 448: "67.03"},
    published_as="GQA (train_balanced+val_balanced): Accuracy (testdev balanced)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/gqa", about=__doc__)
