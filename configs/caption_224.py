"""Caption images: PaliGemma 3B at 224 px, all of it trained, as its authors did on COCO captions.

    python -m paligemma_jax.import_data photos.csv data/captions --task caption \
        --split train=0.98,valid=0.02
    python -m paligemma_jax.train --config configs/caption_224.py --workdir runs/captions

photos.csv has the columns image and caption; a prompt is "caption en". The recipe is that of
arXiv:2407.07726, App. J, and of big_vision's transfers/cococap.py: batch 256, Adam at 1e-5 (b2
0.999) with cosine decay after 5% of warm-up, weight decay 1e-6, gradients clipped to norm 1, 5
epochs of images, beams of 2 in evaluation. With a row for each of COCO's five captions of an image
1 epoch is as long. CIDEr there: 141.9 (PaliGemma 1), 141.3 (PaliGemma 2 3B).

Arguments (configs/caption_224.py:batch_size=32,version=2): data (the folder), res, version (1 or
2), batch_size, epochs, overfit (8 examples until it repeats them), tiny (the small base).
"""

from paligemma_jax.settings import overfit, parse_arg, presets


def get_config(arg=""):
    arg = parse_arg(
        arg,
        data="data/captions",
        res=224,
        version=1,
        batch_size=256,
        epochs=5.0,
        overfit=False,
        tiny=False,
    )

    c = presets.finetune(model=f"paligemma{arg.version}-3b", res=arg.res, text_len=32)
    c.task = "caption"
    c.input.data.fname = f"{arg.data}/train.jsonl"
    c.input.batch_size = arg.batch_size
    c.total_epochs = arg.epochs
    c.optax, c.wd = dict(b2=0.999), 1e-6
    c.schedule = dict(decay_type="cosine", warmup_percent=0.05)
    c.grad_clip_norm = 1.0
    c.evals.val = dict(
        fname=f"{arg.data}/valid.jsonl",
        scores=("cider", "bleu4", "rouge_l"),
        log_percent=0.1,
        sampler="beam",
        beam_size=2,
        max_new_tokens=32,
    )
    c = presets.tiny(c) if arg.tiny else c
    return overfit.make(c) if arg.overfit else c
