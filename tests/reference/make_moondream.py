"""Makes moondream/: a tiny Moondream2 of the authors' code, its results, and ten steps of training.

    MOONDREAM_DIR=... python tests/reference/make_moondream.py    # torch 2.13, transformers 4.40

MOONDREAM_DIR is a checkout of github.com/vikhyat/moondream at 8fa2f2c, the release 2024-04-02. Its
modules are put together with small dimensions, which its own constructor has not.

model.safetensors holds random weights under the authors' names. expected.npz holds the `in/` of a
batch as ours have it (bos first, then text), and of these `image_tokens`, `logits` of all text but
bos, `greedy` tokens behind the prompts, the `losses` before each of ten steps of AdamW on all
weights, the norms of all gradients at each of them (`norms`, in the order of `names`), a few
gradients of the first whole, and `trained` logits after the last. The loss is the mean over
examples of each one's mean over its supervised tokens.

resized.npz holds images and what the authors' preprocessing gives of them at 378 px, every 27th
pixel, and the sum of all.
"""

import os
import pathlib
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, os.environ["MOONDREAM_DIR"])
from moondream import configuration_moondream, modeling_phi, vision_encoder

HERE = pathlib.Path(__file__).parent
WIDTH, DEPTH, HEADS, MLP, PATCH, RES = 48, 3, 4, 96, 14, 56
PHI = dict(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
)
EOS, NEW_TOKENS, STEPS = 0, 8, 10
WHOLE = (
    "text_model.transformer.h.1.mixer.Wqkv.weight",
    "vision_encoder.encoder.model.visual.blocks.2.attn.qkv.bias",
    "vision_encoder.projection.mlp.fc1.bias",
    "text_model.lm_head.linear.bias",
)


class Tiny(nn.Module):
    """The authors' modules under their names."""

    def __init__(self):
        super().__init__()
        tower = vision_encoder.VisionTransformer.__new__(vision_encoder.VisionTransformer)
        nn.Module.__init__(tower)
        tower.patch_embed = vision_encoder.LinearPatchEmbedding()
        tower.patch_embed.linear = nn.Linear(3 * PATCH**2, WIDTH)
        tower.pos_embed = nn.Parameter(torch.zeros(1, (RES // PATCH) ** 2, WIDTH))
        blocks = []
        for _ in range(DEPTH):
            block = vision_encoder.VitBlock.__new__(vision_encoder.VitBlock)
            nn.Module.__init__(block)
            block.attn = vision_encoder.Attention(WIDTH, HEADS)
            block.mlp = vision_encoder.MLP(WIDTH, MLP)
            block.norm1, block.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            blocks.append(block)
        tower.blocks, tower.norm = nn.Sequential(*blocks), nn.LayerNorm(WIDTH)
        self.vision_encoder = nn.Module()
        self.vision_encoder.encoder = vision_encoder.EncoderWrapper.__new__(
            vision_encoder.EncoderWrapper
        )
        nn.Module.__init__(self.vision_encoder.encoder)
        self.vision_encoder.encoder.model = nn.ModuleDict({"visual": tower})
        projection = vision_encoder.VisionProjection.__new__(vision_encoder.VisionProjection)
        nn.Module.__init__(projection)
        D = PHI["hidden_size"]
        projection.mlp = vision_encoder.MLP(WIDTH, 4 * D, D)
        self.vision_encoder.projection = projection
        self.text_model = modeling_phi.PhiForCausalLM(configuration_moondream.PhiConfig(**PHI))

    def image_tokens(self, image):
        x = torch.from_numpy(image.astype(np.float32) / 255).permute(0, 3, 1, 2)
        x = (x - 0.5) / 0.5
        B, c, R, _ = x.shape
        x = x.reshape(B, c, R // PATCH, PATCH, R // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
        x = x.reshape(B, -1, c * PATCH**2)
        return self.vision_encoder.projection(self.vision_encoder.encoder(x))

    def embed(self, image, text):
        """Returns bos, the image, the rest of the text."""
        ztxt = self.text_model.get_input_embeddings()(torch.from_numpy(text).long())
        return torch.cat([ztxt[:, :1], self.image_tokens(image), ztxt[:, 1:]], 1)

    def logits(self, image, text):
        made = self.text_model(inputs_embeds=self.embed(image, text), use_cache=False).logits
        return made[:, -(text.shape[1] - 1) :]


def main(out):
    torch.manual_seed(0)
    model = Tiny().eval()
    for name, parameter in model.named_parameters():
        scale = 0.1 if name.endswith("bias") or "pos_embed" in name else 1.0
        if parameter.ndim == 2 and "wte" not in name:
            scale = 1.2 * parameter.shape[1] ** -0.5
        nn.init.normal_(parameter, std=scale)
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.data = 1 + 0.2 * parameter.data
    (out / "moondream").mkdir(exist_ok=True)
    save_file(model.state_dict(), out / "moondream" / "model.safetensors")
    given, heads = make_inputs()
    image, text = given["image"], given["text"]
    with torch.no_grad():
        result = {
            "image_tokens": model.image_tokens(image).numpy(),
            "logits": model.logits(image, text).numpy(),
            "greedy": np.stack(
                [
                    model.text_model.generate(
                        inputs_embeds=model.embed(image[i : i + 1], text[i : i + 1, : heads[i]]),
                        max_new_tokens=NEW_TOKENS,
                        eos_token_id=None,
                        pad_token_id=EOS,
                        do_sample=False,
                    )[0].numpy()
                    for i in range(len(text))
                ]
            ),
        }
    result |= train(model, given)
    np.savez_compressed(
        out / "moondream" / "expected.npz",
        **{f"in/{name}": value for name, value in given.items()},
        **result,
    )
    resize(out)


def make_inputs():
    """Returns a batch, and how many tokens each prompt has."""
    rng = np.random.default_rng(0)
    B, T = 4, 14
    heads, lengths = np.array([5, 3, 6, 4]), np.array([14, 9, 13, 10])
    image = rng.integers(0, 256, (B, RES, RES, 3), dtype=np.uint8)
    text = rng.integers(1, PHI["vocab_size"], (B, T)).astype(np.int32)
    at = np.arange(T)
    text[:, 0] = EOS  # bos and eos are one
    mask_input = at < lengths[:, None]
    text[~mask_input] = EOS
    mask_ar = at >= heads[:, None]
    mask_loss = mask_ar & mask_input
    given = dict(
        image=image, text=text, mask_input=mask_input, mask_ar=mask_ar, mask_loss=mask_loss
    )
    return given, heads


def train(model, given):
    """Returns what ten steps give."""
    text, mask_loss, image = (given[name] for name in ("text", "mask_loss", "image"))
    result = {}
    names = [name for name, _ in model.named_parameters()]
    update = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    losses, norms = [], []
    labels = torch.from_numpy(text[:, 1:]).long()[..., None]
    mask = torch.from_numpy(mask_loss[:, 1:]).float()
    for step in range(STEPS):
        logp = torch.log_softmax(model.logits(image, text), -1)
        # What stands before a token predicts it.
        before = torch.roll(logp, 1, 1).gather(-1, labels)[..., 0]
        loss = ((-before * mask).sum(1) / mask.sum(1)).mean()
        update.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients = [parameter.grad for parameter in model.parameters()]
        norms.append([gradient.norm().item() for gradient in gradients])
        if step == 0:
            by_name = dict(zip(names, gradients, strict=True))
            result |= {f"gradient/{name}": by_name[name].numpy().copy() for name in WHOLE}
        update.step()
    with torch.no_grad():
        result["trained"] = model.logits(image, text).numpy()
    return result | {
        "losses": np.array(losses),
        "norms": np.array(norms),
        "names": np.array(names),
    }


def resize(out):
    """Writes what `VisionEncoder.preprocess` makes of images, as pixels."""
    encoder = vision_encoder.VisionEncoder.__new__(vision_encoder.VisionEncoder)
    nn.Module.__init__(encoder)
    with torch.device("meta"):
        encoder.preprocess = vision_encoder.VisionEncoder().preprocess
    rng = np.random.default_rng(1)
    arrays = {}
    for i, (height, width) in enumerate([(20, 33), (91, 64), (60, 60)]):
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        made = encoder.preprocess(Image.fromarray(image)).numpy()
        pixels = np.round((made.transpose(1, 2, 0) * 0.5 + 0.5) * 255).astype(np.uint8)
        arrays |= {f"image{i}": image, f"some{i}": pixels[::27, ::27], f"sum{i}": pixels.sum()}
    np.savez_compressed(out / "moondream" / "resized.npz", **arrays)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
