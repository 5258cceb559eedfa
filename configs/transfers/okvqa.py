"""OK-VQA: questions that ask for knowledge.

    python -m paligemma_jax.check --config configs/transfers/okvqa.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/okvqa.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/okvqa.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`prefix` the question, `suffix` one answer and `answers` all that people gave",
    made_by="import_data SRC DST --task vqa",
    task="vqa",
    scores=("vqa_accuracy",),
    tuned_on="okvqa/minival",
    further=("test",),
    log_percent=0.25,
    draws_answers=True,
    batch_size=128,
    lr=5e-6,
    best={224: {}, 448: {}},
    published={224: "63.54", 448: "63.15"},
    published_as="OKVQA (train): Accuracy (val)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/okvqa", about=__doc__)
