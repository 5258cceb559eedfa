"""Names and shapes of the authors' tensors at full size, as their own modules have them."""

import collections
import json
import pathlib
import re

import pytest

from paligemma_jax.checkpoints import moondream_names
from paligemma_jax.models.moondream import as_family, moondream, variants

REFERENCE = pathlib.Path(__file__).parents[1] / "reference" / "moondream"
PUBLISHED = json.loads((REFERENCE / "published_shapes.json").read_text())


@pytest.mark.parametrize("release", ["2024-04-02", "2024-05-20", "2024-08-26"])
def test_names_and_shapes_are_those_of_the_release(release):
    img, llm = variants.RELEASED[f"moondream2-{release}"]
    dims = variants.Moondream(variants.VITS[img], variants.PHIS[llm], variants.RELEASED_RES)
    pieces = moondream_names.pieces(moondream.shapes(dims))
    layers, shapes = collections.Counter(), {}
    for piece in pieces:
        name = re.sub(r"[.](blocks|h)[.]\d+[.]", r".\1.{}.", piece.theirs)
        layers[name] += 1
        shapes[name] = list(piece.shape)
    found = {name: [shape, layers[name]] for name, shape in shapes.items()}
    published = PUBLISHED[release]
    ours = {name: x for name, x in published.items() if not name.startswith("region_model.")}
    assert found == ours
    assert ("region_model." in str(list(published))) == (release == "2024-08-26")
    assert len({piece.theirs for piece in pieces}) == len(pieces)


def test_a_name_that_the_authors_have_not_is_an_error():
    shapes = dict(moondream.shapes(as_family.make(SPEC).dims))
    shapes["text/other"] = shapes["text/final_norm/scale"]
    with pytest.raises(ValueError, match=r"no place for \['text/other'\]"):
        moondream_names.pieces(shapes)


SPEC = as_family.family.Spec(
    img=as_family.family.TowerSpec("tiny/14"),
    llm=as_family.family.TowerSpec("tiny"),
    res=56,
    vocab_size=320,
)
