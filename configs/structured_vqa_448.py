"""Questions with structured answers: PaliGemma 2 3B at 448 px, LoRA as with PEFT.

    python -m paligemma_jax.import_data data/events/labels.jsonl data/structured_vqa --task vqa \
        --split train=0.8,valid=0.2
    python -m paligemma_jax.train --config configs/structured_vqa_448.py --workdir runs/events

labels.jsonl has rows {"image": "1.jpg", "question": "which events are there?", "answer": "fall:
start; cry: end"}; a prompt is "answer en" and the question. Answers may be sentences: "I can see a
fall in the start phase, and no other events are visible." The recipe is that of a published
PaliGemma 2 project: rank 8 beside q, k, v, o, gate, up and down (with PEFT these names hit q, k and
v of the vision tower too), AdamW at 2e-5 after 2 steps of warm-up, linear decay, batch 4 with two
accumulation steps, 10 epochs, weight decay 1e-6. (There weight decay is multiplied by lr, here it
is not: hence 1e-6 * 2e-5.) final.npz holds the factors, 48 MB.

Scores: exact_match, event_phase_f1 (pairs of event and phase) and event_f1.

Arguments (configs/structured_vqa_448.py:qlora): data (the folder), res, batch_size, rank, lr, qlora
(the base in NF4, 4 bits), overfit (8 examples until it repeats them), tiny (the small base).
"""

from paligemma_jax.settings import overfit, parse_arg, presets


def get_config(arg=""):
    arg = parse_arg(
        arg,
        data="data/structured_vqa",
        res=448,
        batch_size=8,
        rank=8,
        lr=2e-5,
        qlora=False,
        overfit=False,
        tiny=False,
    )

    method = "qlora" if arg.qlora else "lora"
    c = presets.finetune(model="paligemma2-3b", res=arg.res, text_len=128, method=method)
    c.task = "vqa"
    c.input.data.fname = f"{arg.data}/train.jsonl"
    c.input.batch_size = arg.batch_size
    c.accumulation_steps = 2
    c.total_epochs = 10
    c.lora.targets, c.lora.rank, c.lora.alpha = "hf_compat", arg.rank, 8
    c.lr, c.wd = arg.lr, 1e-6 * arg.lr
    c.schedule = dict(decay_type="linear", warmup_steps=2)
    c.wd_mults = [(".*", 1.0)]
    c.grad_clip_norm = 1.0
    c.evals.val = dict(
        fname=f"{arg.data}/valid.jsonl",
        scores=("exact_match", "event_phase_f1", "event_f1"),
        log_percent=0.1,
        max_new_tokens=128,
    )
    c = presets.tiny(c) if arg.tiny else c
    return overfit.make(c) if arg.overfit else c
