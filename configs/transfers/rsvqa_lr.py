"""RSVQA-LR: questions about satellite images, no numbers.

    python -m paligemma_jax.check --config configs/transfers/rsvqa_lr.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/rsvqa_lr.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/rsvqa_lr.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`prefix` the question, `suffix` the answer in lower case, `question_type`",
    made_by="import_data SRC DST --task vqa",
    task="vqa",
    scores=("rsvqa_accuracy",),
    tuned_on="rsvqa_lr/minival",
    further=("test",),
    log_percent=0.1,
    draws_answers=True,
    total_epochs=3,
    lr=3e-6,
    label_smoothing=0.2,
    best={224: {}, 448: {}},
    published={224: "92.65", 448: "93.11"},
    published_as="RSVQA-LR (Non numeric) (train+val): Mean Accuracy (test)",
    unlike="its evaluations resize without antialiasing",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/rsvqa_lr", about=__doc__)
