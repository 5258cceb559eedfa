"""Makes moondream/crops.npz: what the authors' releases with crops give, and their preprocessing.

    python tests/reference/make_moondream_crops.py 2024-05-20 DIR    # transformers 4.40
    python tests/reference/make_moondream_crops.py 2024-08-26 DIR    # transformers 4.44

DIR is a checkout of github.com/vikhyat/moondream: 3f7e3cb and 211cc2f; torch is 2.13. What is in
the file of another release stays. Their vision encoder has its numbers in its text; it is run with
others in their place: width 48, depth 3, 4 heads, images of 56 px in 4 x 4 patches, from 75 px on
in crops. Everything else of it, and of the text model, is as it is. Weights are those of
moondream/model.safetensors, and `projection`, which here reads twice the width.

`image0` .. of four sizes, which become four numbers of crops. Of these and the `text` of
expected.npz: `image_tokens`, `logits`, `greedy` as there, and the same `losses` and `norms` of ten
steps; with the release in front. `size` and `some`, `sum`: of what the authors' own numbers make of
`photo0` .., the height and width, every 27th pixel, and the sum of all.
"""

import importlib
import pathlib
import re
import sys

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import nn

sys.path.insert(0, str(pathlib.Path(__file__).parent))
HERE = pathlib.Path(__file__).parent / "moondream"
WIDTH, RES, GRID = 48, 56, 4
OTHERS = {
    r"range\(27\)": "range(3)",
    r"num_heads=16": "num_heads=4",
    "1152": str(WIDTH),
    "4304": "96",
    "378": str(RES),
    "756": str(2 * RES),
    "729": str(GRID**2),
    "27": str(GRID),
    "2048": "64",
    "512": str(512 * RES // 378),
}
EOS, NEW_TOKENS, STEPS = 0, 8, 10
PROJECTION = "vision_encoder.projection.mlp.fc1.weight"
SIZES = [(40, 33), (90, 200), (160, 70), (150, 140)]
PHOTOS = [(20, 33), (400, 511), (512, 512), (600, 700), (300, 1000), (640, 480), (1000, 380)]


def load(folder: str):
    """Returns the modules of a checkout: its vision encoder, that with other numbers, its text."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "moondream"]:
        del sys.modules[name]
    sys.path.insert(0, folder)
    names = ("vision_encoder", "modeling_phi", "configuration_moondream")
    encoder, phi, config = (importlib.import_module(f"moondream.{name}") for name in names)
    sys.path.pop(0)
    text = pathlib.Path(encoder.__file__).read_text()
    for own, other in OTHERS.items():
        text = re.sub(rf"\b{own}(?!\d)", other, text)
    small = type(sys)("small")
    exec(compile(text, "small", "exec"), small.__dict__)
    return encoder, small, phi, config


class Tiny(nn.Module):
    """The authors' modules under their names."""

    def __init__(self, small, phi, config):
        super().__init__()
        self.vision_encoder = small.VisionEncoder()
        numbers = dict(vocab_size=320, hidden_size=64, intermediate_size=128)
        numbers |= dict(num_hidden_layers=3, num_attention_heads=4)
        self.text_model = phi.PhiForCausalLM(config.PhiConfig(**numbers))

    def embed(self, images, text):
        ztxt = self.text_model.get_input_embeddings()(torch.from_numpy(text).long())
        return torch.cat([ztxt[:, :1], self.vision_encoder(images), ztxt[:, 1:]], 1)

    def logits(self, images, text):
        made = self.text_model(inputs_embeds=self.embed(images, text), use_cache=False).logits
        return made[:, -(text.shape[1] - 1) :]


def run(model: Tiny, images, given, heads):
    """Returns what one release gives."""
    text = given["in/text"]
    with torch.no_grad():
        result = {
            "image_tokens": model.vision_encoder(images).numpy(),
            "logits": model.logits(images, text).numpy(),
            "greedy": np.stack(
                [
                    model.text_model.generate(
                        inputs_embeds=model.embed(images[i : i + 1], text[i : i + 1, : heads[i]]),
                        max_new_tokens=NEW_TOKENS,
                        eos_token_id=None,
                        pad_token_id=EOS,
                        do_sample=False,
                    )[0].numpy()
                    for i in range(len(text))
                ]
            ),
        }
    names = [name for name, _ in model.named_parameters()]
    update = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.0
    )
    labels = torch.from_numpy(text[:, 1:]).long()[..., None]
    mask = torch.from_numpy(given["in/mask_loss"][:, 1:]).float()
    losses, norms = [], []
    for _ in range(STEPS):
        logp = torch.log_softmax(model.logits(images, text), -1)
        before = torch.roll(logp, 1, 1).gather(-1, labels)[..., 0]
        loss = ((-before * mask).sum(1) / mask.sum(1)).mean()
        update.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append([parameter.grad.norm().item() for parameter in model.parameters()])
        update.step()
    return result | {
        "losses": np.array(losses),
        "norms": np.array(norms),
        "names": np.array(names),
    }


def main(revision: str, folder: str):
    rng = np.random.default_rng(2)
    with np.load(HERE / "expected.npz") as file:
        given = {name: file[name] for name in file if name.startswith("in/")}
    heads = (given["in/mask_input"] & ~given["in/mask_ar"]).sum(1)
    weights = safetensors.torch.load_file(HERE / "model.safetensors")
    projection = 1.2 * (2 * WIDTH) ** -0.5 * rng.normal(size=(256, 2 * WIDTH)).astype(np.float32)
    weights[PROJECTION] = torch.from_numpy(projection)
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
    # Each photo is a smaller one with repeated pixels, so that few bytes are kept.
    photos = []
    for height, width in PHOTOS:
        small = rng.integers(0, 256, (height // 20 + 1, width // 20 + 1, 3), dtype=np.uint8)
        photos.append(small.repeat(20, 0).repeat(20, 1)[:height, :width])
    arrays = {"projection": projection}
    arrays |= {f"image{i}": picture for i, picture in enumerate(pictures)}
    arrays |= {f"photo{i}": photo for i, photo in enumerate(photos)}
    encoder, small, phi, config = load(folder)
    model = Tiny(small, phi, config).eval()
    model.load_state_dict(weights)
    made = run(model, [Image.fromarray(x) for x in pictures], given, heads)
    with torch.device("meta"):
        preprocess = encoder.VisionEncoder().preprocess
    for i, photo in enumerate(photos):
        x = preprocess(Image.fromarray(photo)).numpy()
        pixels = np.round((x.transpose(1, 2, 0) * 0.5 + 0.5) * 255).astype(np.uint8)
        made |= {f"size{i}": np.array(pixels.shape[:2]), f"some{i}": pixels[::27, ::27]}
        made |= {f"sum{i}": pixels.sum()}
    arrays |= {f"{revision}/{name}": x for name, x in made.items()}
    path = HERE / "crops.npz"
    if path.exists():
        with np.load(path) as file:
            arrays = dict(file) | arrays
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
