"""TextVQA: questions about text in photographs.

    python -m paligemma_jax.check --config configs/transfers/textvqa.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/textvqa.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/textvqa.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`prefix` the question, `suffix` one answer and `answers` all that people gave",
    made_by="import_data SRC DST --task vqa",
    task="vqa",
    scores=("vqav2_accuracy",),
    tuned_on="textvqa/eval",
    further=("test",),
    eval_batch_size=256,
    draws_answers=True,
    total_epochs=5,
    lr=3e-6,
    best={224: {}, 448: dict(wd=3e-7, total_epochs=10), 896: dict(total_epochs=10)},
    published={224: "55.47", 448: "73.15", 896: "76.48"},
    published_as="TextVQA (train+val): Accuracy (Test server - std)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/textvqa", about=__doc__)
