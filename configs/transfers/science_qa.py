"""ScienceQA: questions of a school, with choices.

    python -m paligemma_jax.check --config configs/transfers/science_qa.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/science_qa.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/science_qa.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows=(
        "`prefix` the question, `hint`, `options` as '(a) x (b) y', `suffix` as 'The answer is a.'"
    ),
    task="vqa",
    prompt="Question: {prefix}\nContext: {hint}\nOptions: {options}\nAnswer:",
    text_len=512,
    scores=("scienceqa_accuracy",),
    tuned_on="science_qa/minival",
    further=("test",),
    antialias=False,
    res=448,
    total_epochs=20,
    batch_size=128,
    lr=5e-5,
    best={
        224: dict(lr=1e-5, freeze_vit=True),
        448: dict(lr=1e-5, freeze_vit=True),
    },
    published={224: "95.39", 448: "95.93"},
    published_as="ScienceQA (Img subset, no CoT) (train+val): Accuracy (test)",
    unlike="it orders the choices anew in every pass; here they are as the row has them",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/science_qa", about=__doc__)
