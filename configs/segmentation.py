"""Outlines of drawn shapes, "segment dark": one million parameters, on a CPU.

    python experiments/segmentation/make_data.py --out data/shapes
    python -m paligemma_jax.train --config configs/segmentation.py --workdir runs/shapes

From random weights, with the mask codec of experiments/mask_codec. experiments/segmentation has the
scores. Arguments (configs/segmentation.py:steps=200): data, steps, overfit, tiny (the small base).
"""

from paligemma_jax.settings import overfit, parse_arg, presets


def get_config(arg=""):
    arg = parse_arg(arg, data="data/shapes", steps=14_000, overfit=False, tiny=False)

    c = presets.from_scratch(
        res=112,
        text_len=32,
        img=dict(width=96, depth=3, mlp_dim=384, num_heads=3, posemb_init="sines"),
        llm=dict(width=96, depth=3, mlp_dim=512, num_heads=3, num_kv_heads=1, head_dim=32),
    )
    c.task = "segmentation"
    c.mask_codec = "experiments/mask_codec/codec.npz"
    c.tokenizer = f"{arg.data}/tokenizer.model"
    c.input.data.fname = f"{arg.data}/_annotations.train.jsonl"
    c.input.batch_size = 16
    c.total_steps = arg.steps
    c.schedule = dict(decay_type="cosine", warmup_percent=0.05)
    c.log_training_steps = 100
    c.evals.valid = dict(
        fname=f"{arg.data}/_annotations.valid.jsonl", log_percent=0.1, batch_size=100
    )
    c = presets.tiny(c) if arg.tiny else c
    return overfit.make(c) if arg.overfit else c
