"""OCR-VQA: questions about covers of books.

    python -m paligemma_jax.check --config configs/transfers/ocrvqa.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/ocrvqa.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/ocrvqa.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`prefix` the question, `suffix` the answer",
    made_by="import_data SRC DST --task vqa",
    task="vqa",
    tuned_on="ocrvqa/minival",
    further=("test",),
    log_percent=0.25,
    eval_batch_size=256,
    total_epochs=3,
    batch_size=128,
    lr=3e-6,
    best={224: {}, 448: {}, 896: dict(lr=1e-5)},
    published={224: "73.24", 448: "75.60", 896: "75.90"},
    published_as="OCR-VQA (train+val): Accuracy (test)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/ocrvqa", about=__doc__)
