"""Visual question answering: PaliGemma 2 3B at 448 px, the language model trained with AdamW.

    python -m paligemma_jax.import_data data/vqav2 data/vqa --task vqa \
        --columns answer=multiple_choice_answer --split train=0.9,valid=0.1
    python -m paligemma_jax.train --config configs/vqa_448.py --workdir runs/vqa

The source is a folder of parquet files or of Hugging Face's save_to_disk, or JSONL or CSV with
image, question and answer; a prompt is "answer en" and the question. The recipe is the transformers
fine-tuning guide's: vision tower frozen, 2 epochs, batch 16 with four accumulation steps, lr 2e-5
after 2 steps of warm-up, linear decay, weight decay 1e-6. (There weight decay is multiplied by lr,
here it is not: hence 1e-6 * 2e-5.) With `qlora` it is the guide's other one: rank 8 beside q, k, v,
o, gate, up and down of a base in NF4, 4 bits (these names hit q, k and v of the vision tower too).

Arguments (configs/vqa_448.py:res=224,version=1,qlora): data (the folder), res, version (1 or 2),
batch_size, lora (hf_compat or llm: factors beside a base in 16 bits), qlora, overfit (8 examples
until it repeats them), tiny (the small base).
"""

from paligemma_jax.settings import overfit, parse_arg, presets


def get_config(arg=""):
    arg = parse_arg(
        arg,
        data="data/vqa",
        res=448,
        version=2,
        batch_size=64,
        lora="",
        qlora=False,
        overfit=False,
        tiny=False,
    )
    targets = arg.lora or ("hf_compat" if arg.qlora else None)

    c = presets.finetune(
        model=f"paligemma{arg.version}-3b",
        res=arg.res,
        text_len=64,
        method="qlora" if arg.qlora else "lora" if targets else "full",
    )
    c.task = "vqa"
    c.input.data.fname = f"{arg.data}/train.jsonl"
    c.input.batch_size = arg.batch_size
    c.accumulation_steps = 4
    c.total_epochs = 2
    c.lr, c.wd = 2e-5, 1e-6 * 2e-5
    c.optax = dict(b2=0.999)
    schedule = dict(decay_type="linear", warmup_steps=2)
    if targets:
        c.lora.targets, c.schedule = targets, schedule
        c.wd_mults = [(".*", 1.0)]
    else:
        c.schedule = [("img/.*", None), ("llm/.*", schedule)]
        c.wd_mults = [(".*/scale", 0.0), (".*", 1.0)]
    c.grad_clip_norm = 1.0
    c.evals.val = dict(fname=f"{arg.data}/valid.jsonl", log_percent=0.25, max_new_tokens=32)
    c = presets.tiny(c) if arg.tiny else c
    return overfit.make(c) if arg.overfit else c
