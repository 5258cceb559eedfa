"""Pretrain the small base: every prompt of PaliGemma's language, on composed scenes, on a CPU.

    python experiments/tiny_base/pretrain.py --data data/tiny_base --workdir runs/tiny_base

runs this four times, after drawing the data (`make_data.py`) and training the vision tower alone
(`tower.py`): the language model learns on images that are embedded once, first to find one thing,
then every prompt; then everything learns, at lower rates; at last without empty answers, and again
one thing alone in half of the rows: as long as a box may lie in many places, the most probable
answer is none.

Arguments (experiments/tiny_base/config.py:stage=all,steps=100): data, stage (find, language, all or
last), steps, start (a file of weights), evaluate (losses of held-out rows on the way).
"""

from paligemma_jax.settings import parse_arg, presets

STAGES = {  # steps and rate
    "find": (2500, 1.5e-3),
    "language": (2000, 1e-3),
    "all": (1500, 5e-4),
    "last": (700, 4e-4),
}
KINDS = ("detect", "segment", "count", "answer", "caption", "ocr")


def get_config(arg=""):
    arg = parse_arg(arg, data="data/tiny_base", stage="find", steps=0, start="", evaluate=True)
    steps, rate = STAGES[arg.stage]

    c = presets.from_scratch(
        res=112,
        text_len=20 if arg.stage == "find" else 36,
        img=dict(width=192, depth=4, mlp_dim=768, num_heads=6, posemb_init="sines"),
        llm=dict(width=192, depth=3, mlp_dim=512, num_heads=4, num_kv_heads=4, head_dim=48),
    )
    c.task = "mixed"
    c.tokenizer = f"{arg.data}/tokenizer.model"
    c.model_init = arg.start or None
    if arg.stage == "last":
        for rows in ("alone", "answered"):
            fname = f"{arg.data}/_annotations.{rows}.jsonl"
            c.input.mixture[rows] = {"fname": fname, "weight": 0.5}
    else:
        rows = "alone" if arg.stage == "find" else "train"
        c.input.data.fname = f"{arg.data}/_annotations.{rows}.jsonl"
    c.input.batch_size = 32 if arg.stage == "find" else 16
    c.total_steps = arg.steps or steps
    c.lr = rate
    if arg.stage in ("find", "language"):
        c.trainable = "llm/.*"
        c.input.embedding_cache = "bfloat16"
    c.remat_policy = "none"
    c.schedule = dict(decay_type="cosine", warmup_percent=0.05)
    c.log_training_steps = 50
    c.ckpt_percent = 0.05
    kinds = ("alone-valid",) if arg.stage == "find" else KINDS
    for kind in kinds if arg.evaluate else ():
        c.evals[kind] = dict(
            fname=f"{arg.data}/_annotations.{kind}.jsonl",
            num_examples=64,
            log_percent=0.2,
            batch_size=32,
            decode=False,
        )
    return c
