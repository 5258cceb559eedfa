"""The same step and the same decoding in transformers, to be run on the same machine.

    python experiments/benchmarks/peer_transformers.py --what step --model paligemma2-3b
    python experiments/benchmarks/peer_transformers.py --what decode --model paligemma2-3b

Random bfloat16 weights of the real size, attention-only SGD (`--trainable attn`) or AdamW on
everything (`--trainable all`), gradient checkpointing as its users switch it on for a 3B model,
16 prompt and 32 supervised tokens padded to `--text_len`, greedy decoding through `generate`.
"""

import argparse
import json
import statistics
import time

import torch
import transformers

LLM = {
    "paligemma1-3b": dict(
        model_type="gemma", hidden_size=2048, intermediate_size=16384, num_hidden_layers=18,
        num_attention_heads=8, num_key_value_heads=1, head_dim=256,
    ),
    "paligemma2-3b": dict(
        model_type="gemma2", hidden_size=2304, intermediate_size=9216, num_hidden_layers=26,
        num_attention_heads=8, num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256,
        final_logit_softcapping=None,
    ),
    "tiny": dict(
        model_type="gemma", hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=1, head_dim=16,
    ),
}  # fmt: skip
VIT = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16)
TINY_VIT = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=("step", "decode"), default="step")
    parser.add_argument("--model", choices=LLM, default="paligemma2-3b")
    parser.add_argument("--res", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--text_len", type=int, default=128)
    parser.add_argument("--supervised", type=int, default=32)
    parser.add_argument("--trainable", choices=("attn", "all"), default="attn")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_model(args, device)
    measured = step(args, model, device) if args.what == "step" else decode(args, model, device)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    row = {
        **vars(args),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **measured,
        "peak_gib": round(peak, 2),
    }
    print(json.dumps(row), flush=True)


def make_model(args, device: str):
    tokens = (args.res // 14) ** 2
    text = {**LLM[args.model], "vocab_size": 257_216, "num_image_tokens": tokens}
    vision = dict(
        model_type="siglip_vision_model", image_size=args.res, patch_size=14,
        projection_dim=text["hidden_size"], num_image_tokens=tokens, vision_use_head=False,
        **(TINY_VIT if args.model == "tiny" else VIT),
    )  # fmt: skip
    config = transformers.PaliGemmaConfig(
        text_config=text, vision_config=vision, image_token_index=257_152,
        projection_dim=text["hidden_size"], hidden_size=text["hidden_size"],
        attn_implementation=args.attention,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.PaliGemmaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model._image_tokens = tokens
    return model


def make_inputs(args, model, device: str, *, supervised: int):
    generator = torch.Generator().manual_seed(0)
    prompt = 16 if supervised == 0 else min(16, args.text_len - supervised)
    length = prompt + supervised if supervised == 0 else args.text_len
    shape = (args.batch_size, length)
    ids = torch.randint(3, 256_000, shape, generator=generator)
    image = torch.full((args.batch_size, model._image_tokens), 257_152)
    position = torch.arange(length).expand(shape)
    valid = position < prompt + supervised
    mask = torch.cat([torch.ones_like(image), valid.long()], 1)
    types = torch.cat([torch.zeros_like(image), (position >= prompt).long()], 1)
    labels = torch.where((position >= prompt) & valid, ids, -100)
    return {
        "input_ids": torch.cat([image, ids], 1).to(device),
        "attention_mask": mask.to(device),
        "token_type_ids": types.to(device),
        "pixel_values": torch.rand(
            (args.batch_size, 3, args.res, args.res), generator=generator
        ).to(device, torch.bfloat16),
        "labels": torch.cat([torch.full_like(image, -100), labels], 1).to(device),
    }


def step(args, model, device: str):
    for name, parameter in model.named_parameters():
        parameter.requires_grad = args.trainable == "all" or (
            "language_model" in name and "self_attn" in name
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    if args.trainable == "attn":
        optimizer = torch.optim.SGD(trained, lr=1e-5)
    else:
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device == "cuda")
    if args.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    batch = make_inputs(args, model, device, supervised=args.supervised)
    seconds = []
    for number in range(args.steps + 3):
        start = now(device)
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if number >= 3:
            seconds.append(now(device) - start)
    median = statistics.median(seconds)
    return {
        "step_ms": round(1000 * median, 1),
        "examples_per_s": round(args.batch_size / median, 2),
        "trained_parameters": sum(p.numel() for p in trained),
        "loss": round(float(loss), 4),
    }


@torch.no_grad()
def decode(args, model, device: str):
    model.eval()
    batch = make_inputs(args, model, device, supervised=0)
    batch.pop("labels")

    def run(new_tokens: int) -> float:
        start = now(device)
        model.generate(
            **batch, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
        )
        return now(device) - start

    run(4)
    one = statistics.median(run(1) for _ in range(3))
    many = statistics.median(run(args.new_tokens) for _ in range(3))
    per_token = (many - one) / (args.new_tokens - 1)
    return {
        "first_token_ms": round(1000 * one, 2),
        "per_token_ms": round(1000 * per_token, 3),
        "tokens_per_s": round(args.batch_size / per_token, 1),
    }


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
