"""InfographicVQA: questions about infographics.

    python -m paligemma_jax.check --config configs/transfers/infovqa.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/infovqa.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/infovqa.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows=(
        "`prefix` the question, `suffix` one answer and `answers` all that people gave, "
        "in lower case"
    ),
    made_by="import_data SRC DST --task vqa",
    task="vqa",
    text_len=48,
    scores=("anls",),
    tuned_on="infovqa/minival",
    further=("test",),
    log_percent=0.1,
    eval_batch_size=256,
    draws_answers=True,
    res=896,
    total_epochs=3,
    batch_size=32,
    lr=3e-6,
    wd=3e-7,
    label_smoothing=0.4,
    best={224: dict(lr=1e-5, wd=1e-6), 448: dict(lr=1e-5, wd=1e-6), 896: {}},
    published={224: "28.46", 448: "40.47", 896: "47.75"},
    published_as="Infographic VQA (train+val): ANLS (Test server)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/infovqa", about=__doc__)
