"""POPE: whether an object is in a photograph; evaluation alone.

    python -m paligemma_jax.check --config configs/transfers/pope.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/pope.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/pope.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`prefix` the question, `suffix` yes or no",
    made_by="import_data SRC DST --task vqa --prompt '{question}'",
    task="vqa",
    prompt=None,
    text_len=48,
    scores=("pope_accuracy",),
    tuned_on="pope/pope_random",
    trained_on="random",
    evals=("random", "popular", "adversarial"),
    log_percent=1,
    eval_batch_size=None,
    antialias=False,
    total_epochs=None,
    total_steps=0,
    optax_name="sgd",
    optax={},
    lr=0.0,
    wd=None,
    grad_clip_norm=None,
    published={224: "87.80 / 85.87 / 84.27", 448: "88.23 / 86.77 / 85.90"},
    published_as="POPE (Eval of VQAv2 transfer): Accuracy (random / popular / adversarial)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/pope", about=__doc__)
