"""What runs need of elsewhere, by name: weights, tokenizers, mask codecs; fetched beforehand."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence

from paligemma_jax.assembly import assembly, weights
from paligemma_jax.params import released_models
from paligemma_jax.settings import schema
from paligemma_jax.tasks import task
from paligemma_jax.wording import phrases

TOKENIZER, MASK_CODEC = "tokenizer", "mask_codec"


def sources_of_names(names: Sequence[str], *, res: int | None = None) -> dict[str, str]:
    """Returns what to call it -> a name or an address, of all that names stand for.

    Raises:
      ValueError: a name that stands for nothing, or a resolution that a model is not released for.
    """
    sources, usual = {}, schema.Settings()
    for name in names:
        if name in (TOKENIZER, MASK_CODEC):
            sources[name] = getattr(usual, name)
        elif name in released_models.MODELS:
            chosen = res or released_models.RESOLUTIONS[0]
            weights_name = released_models.MODELS[name].init.format(res=chosen)
            if weights_name not in released_models.FILES:
                known = ", ".join(map(str, released_models.RESOLUTIONS))
                raise ValueError(f"--res {chosen}: {name} has weights for {known} pixels")
            sources |= {weights_name: weights_name, TOKENIZER: usual.tokenizer}
        elif name in released_models.FILES:
            sources |= {name: name, TOKENIZER: usual.tokenizer}
        elif "://" in name:
            sources[name] = name
        else:
            known = [TOKENIZER, MASK_CODEC, *released_models.MODELS]
            hint = phrases.did_you_mean(name, [*known, *released_models.FILES])
            raise ValueError(
                f"'{name}' is no name of what can be fetched. {hint}Known: {', '.join(known)}, "
                f"{released_models.list_names()}, and addresses (kaggle:// hf:// https:// gs:// s3://)"
            )
    return sources


def list_weights() -> list[tuple[str, ...]]:
    """Returns (name, model, px, type, GB, where) of all published weights."""
    rows = []
    for name, one in released_models.FILES.items():
        places = ", ".join(source.partition("://")[0] for source in one.sources)
        size = f"{one.num_bytes / 1e9:.1f}"
        rows.append((name, one.model, str(one.res), one.dtype, size, places))
    return rows


def sources_of_settings(settings: schema.Settings) -> dict[str, str]:
    """Returns what to call it -> a name, an address or a path, of all that settings name."""
    named = {
        "model_init": settings.model_init,
        "model_init_base": settings.model_init_base,
        TOKENIZER: assembly.choose_tokenizer(settings, settings.model_init),
    }
    if task.look_up(settings.task).needs_codec:
        named[MASK_CODEC] = settings.mask_codec
    return {name: source for name, source in named.items() if source}


def fetch(sources: Mapping[str, str]) -> Iterator[tuple[str, pathlib.Path]]:
    """Yields (what it is called, its file) of each of them, fetched unless it is here.

    Raises:
      ValueError, OSError: as of `addresses.resolve`, of the first one that cannot be had.
    """
    for name, source in sources.items():
        yield name, weights.find_npz(source)[0]
