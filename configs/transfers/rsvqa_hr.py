"""RSVQA-HR: questions about aerial images, no numbers.

    python -m paligemma_jax.check --config configs/transfers/rsvqa_hr.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/rsvqa_hr.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/rsvqa_hr.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`prefix` the question, `suffix` the answer in lower case, `question_type`",
    made_by="import_data SRC DST --task vqa",
    task="vqa",
    scores=("rsvqa_accuracy",),
    tuned_on="rsvqa_hr/minival",
    further=("test", "test2"),
    log_percent=1,
    draws_answers=True,
    total_epochs=1,
    best={224: {}, 448: {}},
    published={224: "92.61 / 90.58", 448: "92.79 / 90.54"},
    published_as="RSVQA-HR (Non numeric) (train+val): Mean Accuracy (test/test2)",
    unlike="its evaluations resize without antialiasing",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/rsvqa_hr", about=__doc__)
