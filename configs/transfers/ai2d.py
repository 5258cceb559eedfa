"""AI2D: questions about diagrams, with choices.

    python -m paligemma_jax.check --config configs/transfers/ai2d.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/ai2d.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/ai2d.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`prefix` the question, `choices` a list of texts, `suffix` the answer",
    task="vqa",
    prompt="answer en  {prefix} choose from: {choices}",
    text_len=128,
    tuned_on="ai2d/minival",
    further=("test",),
    wd=1e-6,
    best={224: {}, 448: {}},
    published={224: "72.12", 448: "73.28"},
    published_as="AI2D (train): Accuracy (test)",
    unlike="its evaluations resize without antialiasing",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/ai2d", about=__doc__)
