"""Find fractures in X-rays: PaliGemma 3B at 224 px, attention-only SGD on float16 weights.

    python -m paligemma_jax.train --config configs/fracture_224.py --workdir runs/fracture

Expects a Roboflow export in data/fracture: _annotations.train.jsonl, _annotations.valid.jsonl and
the images beside them. The recipe is that of the Roboflow fine-tuning notebook: batch 8, 512
examples (64 steps), SGD at 0.01 with cosine decay, evaluated eight times.

Arguments (configs/fracture_224.py:res=448,version=2): data (the folder), res, version (1 or 2),
batch_size, lora (llm or hf_compat: low-rank factors with Adam instead of attention with SGD),
overfit (8 examples until it repeats them), tiny (the small base).
"""

from paligemma_jax.settings import overfit, parse_arg, presets


def get_config(arg=""):
    arg = parse_arg(
        arg,
        data="data/fracture",
        res=224,
        version=1,
        batch_size=8,
        lora="",
        overfit=False,
        tiny=False,
    )

    c = presets.finetune(
        model=f"paligemma{arg.version}-3b",
        res=arg.res,
        text_len=128,
        method="lora" if arg.lora else "attention",
    )
    c.task = "detection"
    c.input.data.fname = f"{arg.data}/_annotations.train.jsonl"
    c.input.batch_size = arg.batch_size
    c.total_examples = 512
    if arg.lora:
        c.lora.targets = arg.lora
    else:
        c.lr = 0.01
    c.log_training_steps = 1
    c.evals.val = dict(fname=f"{arg.data}/_annotations.valid.jsonl", log_percent=1 / 8)
    c = presets.tiny(c) if arg.tiny else c
    return overfit.make(c) if arg.overfit else c
