"""Cached image embeddings, from settings: whether they may be, how large they are, making them.

They lie in $PALIGEMMA_JAX_CACHE/embeddings, a folder for each vision tower: whatever changes an
embedding (weights, resolution, types, devices) is in the folder's name. A folder that no run uses
any more may be removed.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paligemma_jax.assembly import assembly, training_data
from paligemma_jax.checkpoints import checksums
from paligemma_jax.console import say
from paligemma_jax.data import augment, embeddings, pipeline, records
from paligemma_jax.hub import sites
from paligemma_jax.models import family
from paligemma_jax.params import sharding
from paligemma_jax.settings import schema
from paligemma_jax.wording import phrases

# To be raised when images are decoded, resized or embedded in another way.
VERSION = 1


def check(
    settings: schema.Settings,
    model: family.Model,
    *,
    trainable: Iterable[str],
    augmentation: augment.Augmenter | None,
    examples: Iterable[records.Record],
) -> None:
    """Raises a ValueError if embeddings are to be cached and would change, or be too large."""
    dtype = settings.input.embedding_cache
    if dtype is None:
        return
    trained = sorted(name for name in trainable if name.startswith(model.kind.names.image))
    if trained:
        arrays = f"{len(trained)} arrays of the vision tower"
        raise _changing(model, f"{arrays} are trained, as {trained[0]}")
    if settings.model.img.dropout:
        raise _changing(model, "model.img.dropout draws at random in the vision tower")
    if augmentation and augmentation.settings.changes_pixels:
        raise _changing(
            model, f"images are augmented ({training_data.describe_augmentation(settings)})"
        )
    if jax.process_count() > 1:
        raise ValueError(
            f"input.embedding_cache: {jax.process_count()} processes train together, and each "
            f"would make all embeddings: set it to None, or train in one process"
        )
    num_images = len({path for example in examples for path in example.images})
    needed = num_images * np.prod(_shape(model)) * jnp.dtype(dtype).itemsize
    limit = settings.input.embedding_cache_gb
    if needed > limit * 1e9:
        raise ValueError(
            f"the embeddings of {num_images} images take {needed / 1e9:.2f} GB in {dtype}, more "
            f"than input.embedding_cache_gb={limit:g}: raise that, choose a 16-bit type, or leave "
            f"out input.embedding_cache"
        )


def batch_arrays(
    settings: schema.Settings, model: family.Model, spec: pipeline.BatchSpec
) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Returns name -> (shape of one row, type) of a training batch, as `training_arrays` does."""
    arrays = pipeline.training_arrays(spec)
    dtype = settings.input.embedding_cache
    if dtype is None:
        return arrays
    del arrays["image"]
    return {family.IMAGE_TOKENS: ((spec.max_images, *_shape(model)), jnp.dtype(dtype))} | arrays


def prepare(
    built: assembly.Assembly,
    examples: Sequence[records.Record],
    params: Mapping[str, jax.Array],
    spec: pipeline.BatchSpec,
    *,
    stored: str | None,
) -> pipeline.ReadImages | None:
    """Returns what reads the embeddings of batches, after making those that are missing.

    Damaged entries are made again, with a warning.

    Args:
      built: of the run.
      examples: of all batches, training and evaluation.
      params: with the vision tower's.
      spec: of training batches: as many images are embedded at a time.
      stored: type of the embeddings on the disk; None: none are cached, and None is returned.

    Raises:
      OSError: the disk has no room for them.
      ValueError: an image that cannot be read.
    """
    if stored is None:
        return None
    num_workers = spec.num_workers
    start = built.model.kind.names.image
    tower = {name: array for name, array in params.items() if name.startswith(start)}
    folder = sites.own_cache() / "embeddings" / _name(built, tower, spec, stored=stored)
    store = embeddings.Store(folder, _shape(built.model), jnp.dtype(stored))
    with say.progress("hashing images", unit="images") as report:
        digests_of = embeddings.hash_images(examples, num_workers=num_workers, progress=report)
    chosen = {
        digests_of[path]: records.Record((path,), "", source=example.source)
        for example in examples
        for path in example.images
    }

    def waits() -> None:
        say.info(f"another run makes image embeddings in {folder}: waiting for it")

    with embeddings.alone(store, waits):
        with say.progress("checking image embeddings", unit="images") as report:
            missing, damaged = embeddings.survey(
                store, chosen, num_workers=num_workers, progress=report
            )
        if damaged:
            more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            say.info(f"{store.path(damaged[0])}{more}: damaged, made again")
        to_make = {digest: chosen[digest] for digest in missing + damaged}
        embeddings.check_space(store, len(missing))
        _fill(built, store, to_make, tower, spec)
    size = phrases.size(len(chosen) * store.entry_bytes)
    say.info(f"image embeddings: {len(chosen)} in {folder}, {size}, {len(to_make)} of them new")
    return functools.partial(_read, store, digests_of)


def _fill(
    built: assembly.Assembly,
    store: embeddings.Store,
    examples: Mapping[str, records.Record],
    tower: Mapping[str, jax.Array],
    spec: pipeline.BatchSpec,
) -> None:
    with say.progress("embedding images", unit="images") as report:
        embeddings.fill(
            store,
            examples,
            _make_embed(built, tower, store.dtype),
            res=spec.res,
            # As many as in a step of training, whose numbers the results then equal bit for bit.
            batch_size=spec.batch_size,
            num_workers=spec.num_workers,
            resampling=spec.resampling,
            progress=report,
        )


def _make_embed(
    built: assembly.Assembly, tower: Mapping[str, jax.Array], dtype: Any
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function uint8[B, 1, R, R, 3] -> dtype[B, 1, P, D]."""
    run = jax.jit(lambda tower, image: built.functions.embed(tower, image).astype(dtype))

    def embed(image: np.ndarray) -> np.ndarray:
        return np.asarray(run(tower, sharding.place_batch({"image": image}, built.mesh)["image"]))

    return embed


def _read(
    store: embeddings.Store,
    digests_of: Mapping[str, str],
    plan: pipeline.Plan,
    spec: pipeline.BatchSpec,
) -> Iterator[pipeline.Batch]:
    arrays = embeddings.read_batches(
        plan,
        store,
        digests_of,
        max_images=spec.max_images,
        num_workers=spec.num_workers,
        prefetch=spec.prefetch,
    )
    return ({family.IMAGE_TOKENS: array} for array in arrays)


def _name(
    built: assembly.Assembly,
    tower: Mapping[str, jax.Array],
    spec: pipeline.BatchSpec,
    *,
    stored: str,
) -> str:
    """Returns a hash of all that an embedding depends on, besides its image."""
    arrays = {
        f"{name}/{number}": array
        for name, parts in tower.items()
        for number, array in enumerate(jax.tree.leaves(parts))
    }
    about = {
        "version": VERSION,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "compute_dtype": built.functions.compute.dtype,
        "stored": stored,
        "res": spec.res,
        "resampling": spec.resampling,
        "img": built.model.image_metadata(),
        "types": {name: str(array.dtype) for name, array in arrays.items()},
        "weights": checksums.of_arrays(arrays),
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def _shape(model: family.Model) -> tuple[int, int]:
    return model.num_image_tokens, model.image_width


def _changing(model: family.Model, reason: str) -> ValueError:
    return ValueError(
        f"input.embedding_cache: {reason}, so embeddings would not stay the same. Set it to None, "
        f"or train with trainable='{model.kind.names.text}', without dropout there and without "
        f"changes of images"
    )
