"""A-OKVQA, multiple choice: questions that ask for knowledge.

    python -m paligemma_jax.check --config configs/transfers/aokvqa_mc.py --out runs/check
    python -m paligemma_jax.train --config configs/transfers/aokvqa_mc.py --workdir runs/mine

docs/transfers.md says what the data must be, which arguments there are
(configs/transfers/aokvqa_mc.py:res=448,version=2), and which score is published.
"""

from paligemma_jax.settings import transfers

RECIPE = transfers.Recipe(
    rows="`prefix` the question, `choices` a list of texts, `suffix` the answer",
    task="vqa",
    prompt="answer en  {prefix} choose from: {choices}",
    text_len=128,
    tuned_on="aokvqa_mc/eval",
    further=("test",),
    log_percent=0.25,
    eval_batch_size=256,
    total_epochs=15,
    batch_size=128,
    lr=5e-6,
    best={224: {}, 448: {}},
    published={224: "76.37", 448: "76.90"},
    published_as="A-OKVQA (MC) (train+val): Accuracy (Test server)",
)


def get_config(arg=""):
    return transfers.make(RECIPE, arg, data="data/aokvqa_mc", about=__doc__)
