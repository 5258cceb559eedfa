"""The keys of training data, `input.*`, but for augmentation; part of keys.KEYS."""

from paligemma_jax.settings import spec

# Every line of the table says them.
Key, NUMBER, OPTIONAL = spec.Key, spec.NUMBER, spec.OPTIONAL

KEYS = (
    Key("input.data.fname", None, (str, *OPTIONAL), "training set: a JSONL file"),
    Key(
        "input.data.image_dir",
        None,
        (str, *OPTIONAL),
        "folder that holds the images; None: the JSONL file's folder",
    ),
    Key(
        "input.data.fields",
        {"image": "image", "prefix": "prefix", "suffix": "suffix"},
        (dict,),
        "the JSONL's names for image, prefix and suffix",
    ),
    Key(
        "input.data.prefix_template",
        None,
        (str, *OPTIONAL),
        "prompt made from the row, as 'answer en {question}'; None: the prefix as it is",
    ),
    Key(
        "input.mixture",
        {},
        (dict,),
        "several training sets by name, instead of input.data.fname: dict(fname=..., weight=2.0)",
    ),
    Key(
        "input.num_examples",
        None,
        (int, *OPTIONAL),
        "use only the first so many rows, of a mixture of each source; None: all",
        least=1,
    ),
    Key(
        "input.batch_size", 8, (int,), "examples per step, over all devices and processes", least=1
    ),
    Key(
        "input.text_len",
        128,
        (int,),
        "tokens of prefix and suffix together, with bos, \\n, eos",
        least=1,
    ),
    Key("input.max_images", 1, (int,), "image slots per example; unused ones are masked", least=1),
    Key("input.lowercase", False, (bool,), "lower-case prefix and suffix, as the Colabs do"),
    Key("input.allow_truncation", False, (bool,), "accept examples that lose their eos"),
    Key(
        "input.num_workers",
        None,
        (int, *OPTIONAL),
        "threads that decode images; None: all cores",
        least=1,
    ),
    Key(
        "input.noise_piece",
        None,
        (str, *OPTIONAL),
        "fill detection answers up with boxes of noise, this piece ('<unused0>') being their class",
    ),
    Key(
        "input.text_lens",
        None,
        (list, tuple, *OPTIONAL),
        "up to three lengths below text_len, as [32, 64]: a batch gets the smallest that its texts "
        "fit, and the step is compiled for each; None: always text_len",
    ),
    Key(
        "input.embedding_cache",
        None,
        (str, *OPTIONAL),
        "embed every image once, and keep that on the disk in this type; needs a frozen vision "
        "tower and images that nothing changes; None: embed in every step",
        (None, "float32", "bfloat16", "float16"),
    ),
    Key(
        "input.embedding_cache_gb",
        100.0,
        NUMBER,
        "the most that the embeddings of a run may take on the disk; 1 MB an image in bfloat16 at "
        "224 px",
        least=0,
    ),
)
