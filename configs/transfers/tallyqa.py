"""TallyQA: how many there are.

    python -m paligemma_jax.check --config configs/transfers/tallyqa.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/tallyqa.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/tallyqa.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`prefix` the question, `suffix` the count in digits, `issimple` 1 or 0",
    made_by="import_data SRC DST --task vqa",
    task="vqa",
    scores=("tallyqa_accuracy",),
    tuned_on="tallyqa/eval",
    further=("countbenchqa",),
    log_percent=0.25,
    eval_batch_size=256,
    total_epochs=2,
    best={224: {}, 448: dict(wd=1e-6), 896: dict(lr=7e-6, wd=7e-7)},
    published={224: "81.72 / 69.56", 448: "84.86 / 72.27"},
    published_as="TallyQA (train): Accuracy (test_simple/test_complex)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/tallyqa", about=__doc__)
