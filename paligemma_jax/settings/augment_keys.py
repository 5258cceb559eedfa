"""The keys of augmentation, `input.augment.*`: random changes of training examples, all off."""

from paligemma_jax.settings import spec

# Every line of the table says them.
Key, NUMBER, OPTIONAL, RULES = spec.Key, spec.NUMBER, spec.OPTIONAL, spec.RULES

KEYS = (
    Key("input.augment.flip_lr", 0.0, NUMBER, "probability of a flip left to right"),
    Key("input.augment.flip_ud", 0.0, NUMBER, "probability of a flip upside down"),
    Key(
        "input.augment.crop",
        None,
        (*NUMBER, *OPTIONAL),
        "crop to between this share of the image's area and all of it; None: no crop",
    ),
    Key(
        "input.augment.aspect",
        1.0,
        NUMBER,
        "stretch by up to this factor, along either side",
    ),
    Key(
        "input.augment.scale",
        None,
        (*RULES, *OPTIONAL),
        "magnify by (least, most); below 1 the image is smaller, on black; None: 1",
    ),
    Key(
        "input.augment.min_visible",
        0.3,
        NUMBER,
        "a box of which a smaller share stays in the picture leaves the answer",
    ),
    Key("input.augment.brightness", 0.0, NUMBER, "factor in 1 - x .. 1 + x"),
    Key("input.augment.contrast", 0.0, NUMBER, "factor in 1 - x .. 1 + x"),
    Key("input.augment.saturation", 0.0, NUMBER, "factor in 1 - x .. 1 + x"),
    Key(
        "input.augment.jpeg_quality",
        None,
        (int, *OPTIONAL),
        "compress with a quality from this to 100; None: do not",
    ),
    Key(
        "input.augment.shuffle_objects",
        False,
        (bool,),
        "name an answer's objects in random order",
    ),
)
