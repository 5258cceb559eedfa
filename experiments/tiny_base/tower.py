"""Train the vision tower alone, before it meets the language model.

    python experiments/tiny_base/tower.py --data data/tiny_base

PaliGemma's own tower was pretrained before it was joined to Gemma; this is done here by what is
known of drawn scenes. Each patch says, by linear heads that are thrown away afterwards, what the
smallest thing on it is (or that there is none), its colour or pattern, and where the four sides of
its box lie on 64 lines; all patches together say the background. A language model that starts on
such a tower finds what it is asked for; one that starts on a random tower learns to speak first,
and its tower falls silent.

Scenes are drawn in parts of 500 and training is saved every 200 steps: stopped anywhere, the same
command goes on, and ends the same. It writes DATA/tower.npz.
"""

import argparse
import collections
import pathlib

import jax
import jax.numpy as jnp
import make_data
import numpy as np
import optax
import rows
import scenes
import sources
from PIL import Image

from paligemma_jax.assembly import model_functions
from paligemma_jax.checkpoints import npz
from paligemma_jax.console import say
from paligemma_jax.models.family import Compute
from paligemma_jax.models.paligemma import paligemma
from paligemma_jax.params import names
from paligemma_jax.settings import load

TRAINED = "tower.npz"
CONFIG = pathlib.Path(__file__).with_name("config.py")
SEED = 13
SCENES, PASSES, BATCH_SIZE, RATE = 40_000, 3, 32, 1e-3
RES, GRID, LINES = 112, 8, 64
WAVES = (0.25, 4.0)  # over the side of a picture
WHITENED, NOISE = 2000, 0.15  # pictures; deviation of a component, pixels from -1 to 1
LEAST_SHARE = 0.25  # of the smaller of a patch and a thing, that lies on the other
NOTHING_WEIGHT = 0.2  # of a patch with nothing on it
SAVE_EVERY, REPORT_EVERY = 200, 50
WEIGHTS = {"noun": 1.0, "look": 0.5, "box": 2.0, "background": 0.2}  # of the losses
NOUNS = ["", *dict.fromkeys([*rows.NOUNS, *scenes.LETTERS])]
LOOKS = ["", *scenes.COLORS, *scenes.SURFACES, "striped", "outlined"]
BACKGROUNDS = [*scenes.COLORS, *scenes.SURFACES, "a gradient", "a photo"]
PLAIN = [*scenes.COLORS, "a gradient"]
FIELDS = {"noun": (GRID * GRID,), "look": (GRID * GRID,), "box": (GRID * GRID, 4)}
FIELDS |= {"background": (), "pixels": (RES, RES, 3)}


def label(scene: scenes.Scene) -> dict[str, np.ndarray]:
    """Returns what each patch should say: uint8 noun[P], look[P], box[P, 4], background[]."""
    side = scenes.SIDE // GRID
    noun, look = np.zeros((2, GRID, GRID), np.uint8)
    box, smallest = np.zeros((GRID, GRID, 4), np.uint8), np.full((GRID, GRID), np.inf)
    edges = np.arange(GRID) * side
    for thing in scene.things:
        x1, y1, x2, y2 = thing.box
        across = (np.minimum(edges + side, x2) - np.maximum(edges, x1)).clip(0)
        down = (np.minimum(edges + side, y2) - np.maximum(edges, y1)).clip(0)
        area = (x2 - x1) * (y2 - y1)
        on = np.outer(down, across) >= LEAST_SHARE * min(side * side, area)
        on &= area < smallest
        smallest[on] = area
        noun[on] = NOUNS.index(thing.noun)
        look[on] = LOOKS.index(thing.adjective)
        sides = np.array([y1, x1, y2, x2]) / scenes.SIDE * LINES
        box[on] = sides.astype(int).clip(0, LINES - 1)
    found = {"noun": noun.reshape(-1), "look": look.reshape(-1), "box": box.reshape(-1, 4)}
    return found | {"background": np.uint8(BACKGROUNDS.index(scene.background))}


def draw(out: pathlib.Path, count: int) -> dict[str, np.ndarray]:
    """Returns scenes with their labels, each field in one array, drawn where they are not there."""
    out.mkdir(parents=True, exist_ok=True)
    parts = []
    with say.progress("drawing for the tower", unit="scenes") as report:
        for start in range(0, count, make_data.PART):
            stop = min(start + make_data.PART, count)
            path = out / f"{start:06d}-{stop - start}.npz"
            if not path.exists():
                made = collections.defaultdict(list)
                for index in range(start, stop):
                    part = sources.PARTS["train"]
                    scene = scenes.make(SEED, index, part=part, words=make_data.words())
                    small = scene.picture.resize((RES, RES), Image.Resampling.BOX)
                    for name, value in (label(scene) | {"pixels": np.asarray(small)}).items():
                        made[name].append(value)
                npz.write(path, {name: np.stack(values) for name, values in made.items()})
            parts.append(npz.read(path))
            report(stop, count)
    return {name: np.concatenate([part[name] for part in parts]) for name in FIELDS}


def whitening(pixels: np.ndarray, width: int) -> np.ndarray:
    """Returns float32[14, 14, 3, width], filters under which patches of pictures are uncorrelated.

    The principal components of patches, each divided by its deviation, faint ones (below NOISE)
    less: edges are then as loud as brightness, and what is learnt from them comes sooner.
    """
    side = RES // GRID
    patches = np.float32(pixels[:WHITENED]) / 127.5 - 1
    patches = patches.reshape(-1, GRID, side, GRID, side, 3).swapaxes(2, 3)
    patches = patches.reshape(-1, side * side * 3)
    variances, vectors = np.linalg.eigh(np.cov(patches, rowvar=False))
    filters = vectors[:, -width:] / np.sqrt(variances[-width:] + NOISE**2)
    return filters.reshape(side, side, 3, width).astype(np.float32)


def waves(places: np.ndarray, width: int) -> np.ndarray:
    """Returns float32[n, width], a quarter of a wave to four waves of places from 0 to 1."""
    angles = 2 * np.pi * places[:, None] * np.geomspace(*WAVES, width // 2)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def positions(width: int) -> np.ndarray:
    """Returns float32[1, P, width]: every patch has a direction of its own, near ones alike."""
    axis = waves((np.arange(GRID) + 0.5) / GRID, width // 2)
    down, across = np.repeat(axis, GRID, axis=0), np.tile(axis, (GRID, 1))
    return np.concatenate([down, across], axis=1)[None]


def make_heads(rng: jax.Array, width: int) -> dict[str, jax.Array]:
    shapes = {"noun": len(NOUNS), "look": len(LOOKS), "box": 4 * width}
    shapes |= {"background": len(BACKGROUNDS)}
    keys = jax.random.split(rng, len(shapes))
    return {
        f"heads/{name}": jax.random.normal(key, (width, size)) * 0.5 / width
        for key, (name, size) in zip(keys, shapes.items(), strict=True)
    }


def losses(params, batch, tower):
    """Returns name -> mean cross-entropy of a head."""
    img = names.unflatten({k: v for k, v in params.items() if k.startswith("img/")})["img"]
    tokens = tower.apply({"params": img}, batch["pixels"])
    tokens = tokens / jnp.sqrt(jnp.mean(tokens**2, axis=-1, keepdims=True) + 1e-6)
    entropy = optax.softmax_cross_entropy_with_integer_labels
    thing = (batch["noun"] > 0).astype(jnp.float32)
    weight = thing + NOTHING_WEIGHT * (1 - thing)

    def mean(values, weight):
        return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1)

    width = tokens.shape[-1]
    lines = waves((np.arange(LINES) + 0.5) / LINES, width)  # near lines share what is learnt
    boxes = (tokens @ params["heads/box"]).reshape(*tokens.shape[:2], 4, width) @ lines.T
    pooled = tokens.mean(axis=1) @ params["heads/background"]
    return {
        "noun": mean(entropy(tokens @ params["heads/noun"], batch["noun"]), weight),
        "look": mean(entropy(tokens @ params["heads/look"], batch["look"]), thing),
        "box": mean(entropy(boxes, batch["box"]).mean(axis=-1), thing),
        "background": entropy(pooled, batch["background"]).mean(),
    }


def start(model, pixels: np.ndarray) -> dict[str, jax.Array]:
    """Returns the parameters of a tower and its heads to start from."""
    params = {k: v for k, v in model.init(jax.random.key(SEED)).items() if k.startswith("img/")}
    params["img/embedding/kernel"] = jnp.asarray(whitening(pixels, model.dims.img.width))
    params["img/pos_embedding"] = jnp.asarray(positions(model.dims.img.width))
    return params | make_heads(jax.random.key(SEED + 1), model.image_width)


def make_step(tower, optimizer):
    """Returns a compiled function: (state, batch) to (state, losses)."""

    def total(params, batch):
        parts = losses(params, batch, tower)
        return sum(WEIGHTS[name] * loss for name, loss in parts.items()), parts

    @jax.jit
    def step(state, batch):
        params, moments = state
        grads, parts = jax.grad(total, has_aux=True)(params, batch)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), parts

    return step


def choose(number: int, is_plain: np.ndarray) -> np.ndarray:
    """Returns the scenes of a step: in the first pass, plain backgrounds come first."""
    count = len(is_plain)
    epoch, place = divmod(number, count // BATCH_SIZE)
    order = np.random.default_rng((SEED, epoch)).permutation(count)
    if epoch == 0:
        order = order[np.argsort(~is_plain[order], kind="stable")]
    return np.sort(order[place * BATCH_SIZE :][:BATCH_SIZE])


def train(data: pathlib.Path, count: int, passes: int) -> None:
    """Writes DATA/tower.npz, unless it is there."""
    out, saved = data / TRAINED, data / "tower-so-far.npz"
    if out.exists():
        return
    found = draw(data / "tower", count)
    is_plain = np.isin(found["background"], [BACKGROUNDS.index(name) for name in PLAIN])
    settings = load.load(f"{CONFIG}:data={data}")
    model = model_functions.describe(settings, vocab_size=make_data.VOCABULARY)
    steps = count // BATCH_SIZE * passes
    schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, steps // 20, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))
    params = start(model, found["pixels"])
    state, first = (params, optimizer.init(params)), 0
    if saved.exists():
        stored = npz.read(saved)
        leaves, shape = jax.tree.flatten(state)
        first = int(stored["step"])
        state = jax.tree.unflatten(shape, [stored[f"{i:04d}"] for i in range(len(leaves))])
    step = make_step(paligemma.vision_tower(model.dims, Compute()), optimizer)

    with say.progress("training the tower", unit="steps") as report:
        for number in range(first, steps):
            chosen = choose(number, is_plain)
            state, parts = step(state, {name: found[name][chosen] for name in FIELDS})
            report(number + 1, steps)
            if (number + 1) % REPORT_EVERY == 0:
                shown = ", ".join(f"{name} {float(loss):.2f}" for name, loss in parts.items())
                print(f"step {number + 1}: {shown}", flush=True)
            if (number + 1) % SAVE_EVERY == 0:
                leaves = jax.tree.leaves(state)
                arrays = {f"{i:04d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
                npz.write(saved, arrays | {"step": np.asarray(number + 1)})
    params = {k: np.asarray(v) for k, v in state[0].items() if k.startswith("img/")}
    npz.write(out, params, metadata={"format": "paligemma_jax"})


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--passes", type=int, default=PASSES)
    args = parser.parse_args()
    say.show_on_stderr()
    train(args.data, args.scenes, args.passes)


if __name__ == "__main__":
    main()
