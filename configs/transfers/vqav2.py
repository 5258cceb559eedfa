"""VQAv2: questions about photographs.

    python -m paligemma_jax.check --config configs/transfers/vqav2.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/vqav2.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/vqav2.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows=(
        "`prefix` the question, `suffix` one answer and `answers` all that people gave, "
        "`answer_type`"
    ),
    made_by="import_data SRC DST --task vqa",
    task="vqa",
    scores=("vqav2_accuracy",),
    tuned_on="vqav2/minival",
    further=("test", "mmvp"),
    log_percent=0.25,
    draws_answers=True,
    optax={},
    lr=3e-6,
    wd=3e-7,
    best={224: dict(lr=1e-5, wd=1e-6), 448: dict(lr=1e-5, wd=0.0)},
    published={224: "83.19", 448: "85.64"},
    published_as="VQAv2 (train+validation): Accuracy (Test server - std)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/vqav2", about=__doc__)
