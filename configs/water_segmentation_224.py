"""Outline water in satellite images: PaliGemma 3B at 224 px, attention-only SGD on float16 weights.

    python -m paligemma_jax.import_data data/water_masks data/water --task segmentation \
        --classes water --split train=0.89,valid=0.11
    python -m paligemma_jax.train --config configs/water_segmentation_224.py --workdir runs/water

The source has images in one folder and black and white masks of the same names in another. The
recipe is that of a published run on a T4 (164 images to train on, 21 to test): batch 8, SGD at
0.003 with cosine decay, 158 steps. An answer is `<loc>` x 4, `<seg>` x 16 and the class; converting
and scoring take the same mask codec, by default the published one. Rows keep their masks, which
answers are scored against at the images' own size.

Arguments (configs/water_segmentation_224.py:res=448,version=2): data (the folder), res, version (1
or 2), batch_size, overfit (8 examples until it repeats them), tiny (the small base).
"""

from paligemma_jax.settings import overfit, parse_arg, presets


def get_config(arg=""):
    arg = parse_arg(
        arg, data="data/water", res=224, version=1, batch_size=8, overfit=False, tiny=False
    )

    c = presets.finetune(
        model=f"paligemma{arg.version}-3b", res=arg.res, text_len=64, method="attention"
    )
    c.task = "segmentation"
    c.input.data.fname = f"{arg.data}/train.jsonl"
    c.input.batch_size = arg.batch_size
    c.total_steps = 158
    c.lr = 0.003
    c.evals.val = dict(fname=f"{arg.data}/valid.jsonl", log_percent=1 / 8)
    c = presets.tiny(c) if arg.tiny else c
    return overfit.make(c) if arg.overfit else c
