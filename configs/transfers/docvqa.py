"""DocVQA: questions about scanned documents.

    python -m paligemma_jax.check --config configs/transfers/docvqa.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/docvqa.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/docvqa.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`prefix` the question, `suffix` one answer and `answers` all that people gave",
    made_by="import_data SRC DST --task vqa --prompt '{question}'",
    task="vqa",
    prompt=None,
    scores=("anls",),
    tuned_on="docvqa/minival",
    further=("test",),
    eval_batch_size=256,
    draws_answers=True,
    res=896,
    wd=1e-6,
    best={224: {}, 448: {}, 896: {}},
    published={224: "43.74", 448: "78.02", 896: "84.77"},
    published_as="DocVQA (train+val): ANLS (Test server)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/docvqa", about=__doc__)
