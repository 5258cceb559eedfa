"""Questions with structured answers: PaliGemma 2 3B at 448 px, LoRA as with PEFT.

    python -m paligemma_jax.train --config configs/structured_vqa_448.py --workdir runs/vqa

Expects JSONL rows {"image": "1.jpg", "question": "which parts are damaged?", "answer": "..."},
answers being what the model is to write, JSON for one. The recipe is that of a published PaliGemma
2 project: rank 8 beside q, k, v, o, gate, up and down (with PEFT these names hit q, k and v of the
vision tower too), AdamW at 2e-5 after 2 steps of warm-up, linear decay, batch 4 with two
accumulation steps, 10 epochs, weight decay 1e-6. (There weight decay is multiplied by lr, here it
is not: hence 1e-6 * 2e-5.) The base stays in its 16 bits; final.npz holds the factors, 48 MB.

Arguments (configs/structured_vqa_448.py:res=224): res, batch_size, rank, lr.
"""

from paligemma_jax.config import presets, settings


def get_config(arg=""):
    arg = settings.parse_arg(arg, res=448, batch_size=8, rank=8, lr=2e-5)

    c = presets.finetune(model="paligemma2-3b", res=arg.res, text_len=128, method="lora")
    c.task = "vqa"
    c.input.data.fname = "data/structured_vqa/train.jsonl"
    c.input.data.fields = {"image": "image", "prefix": "question", "suffix": "answer"}
    c.input.data.prefix_template = "answer en {question}"
    c.input.batch_size = arg.batch_size
    c.accumulation_steps = 2
    c.total_epochs = 10
    c.lora.targets, c.lora.rank, c.lora.alpha = "hf_compat", arg.rank, 8
    c.lr, c.wd = arg.lr, 1e-6 * arg.lr
    c.schedule = dict(decay_type="linear", warmup_steps=2)
    c.wd_mults = [(".*", 1.0)]
    c.grad_clip_norm = 1.0
    c.compute_dtype = "bfloat16"
    c.evals.val = dict(fname="data/structured_vqa/valid.jsonl", log_percent=0.1, max_new_tokens=128)
    return c
