"""Visual question answering: PaliGemma 2 3B at 448 px, the language model trained with AdamW.

    python -m paligemma_jax.train --config configs/vqa_448.py --workdir runs/vqa

Expects JSONL rows {"image": "1.jpg", "question": "how many dogs are there?", "answer": "2"}. The
recipe is the transformers fine-tuning guide's: vision tower frozen, 2 epochs, batch 16 with four
micro-batches each, lr 2e-5 after 2 steps of warm-up, linear decay, weight decay 1e-6. (There
weight decay is multiplied by lr, here it is not: hence 1e-6 * 2e-5.)

Arguments (configs/vqa_448.py:res=224): res, batch_size.
"""

from paligemma_jax.config import presets, settings


def get_config(arg=""):
    arg = settings.parse_arg(arg, res=448, batch_size=64)

    c = presets.finetune(model="paligemma2-3b", res=arg.res, text_len=64)
    c.task = "vqa"
    c.input.data.fname = "data/vqa/train.jsonl"
    c.input.data.fields = {"image": "image", "prefix": "question", "suffix": "answer"}
    c.input.data.prefix_template = "answer en {question}"
    c.input.batch_size = arg.batch_size
    c.accumulation_steps = 4
    c.total_epochs = 2
    c.optax_name, c.lr, c.wd = "scale_by_adam", 2e-5, 1e-6 * 2e-5
    c.optax = dict(b2=0.999)
    c.schedule = [
        ("img/.*", None),
        ("llm/.*", dict(decay_type="linear", warmup_steps=2)),
    ]
    c.wd_mults = [(".*/scale", 0.0), (".*", 1.0)]
    c.grad_clip_norm = 1.0
    c.compute_dtype = "bfloat16"
    c.evals.val = dict(fname="data/vqa/valid.jsonl", log_percent=0.25, max_new_tokens=32)
    return c
