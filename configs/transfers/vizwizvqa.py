"""VizWiz: questions of blind people about their photographs.

    python -m paligemma_jax.check --config configs/transfers/vizwizvqa.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/vizwizvqa.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/vizwizvqa.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`prefix` the question, `suffix` one answer and `answers` all that people gave",
    made_by="import_data SRC DST --task vqa",
    task="vqa",
    text_len=48,
    scores=("vqa_accuracy",),
    tuned_on="vizwizvqa/minival",
    further=("test",),
    log_percent=0.1,
    draws_answers=True,
    best={224: {}, 448: {}},
    published={224: "73.7", 448: "75.52"},
    published_as="VizWiz VQA (train+val): Accuracy (Test server - std)",
    unlike="its evaluations resize without antialiasing",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/vizwizvqa", about=__doc__)
