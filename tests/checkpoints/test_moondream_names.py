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


@pytest.fixture(scope="module")
def pieces():
    img, llm = variants.RELEASED["moondream2-2024-04-02"]
    dims = variants.Moondream(variants.VITS[img], variants.PHIS[llm], variants.RELEASED_RES)
    return moondream_names.pieces(moondream.shapes(dims))


def test_names_and_shapes_are_those_of_the_release(pieces):
    layers, shapes = collections.Counter(), {}
    for piece in pieces:
        name = re.sub(r"[.](blocks|h)[.]\d+[.]", r".\1.{}.", piece.theirs)
        layers[name] += 1
        shapes[name] = list(piece.shape)
    found = {name: [shape, layers[name]] for name, shape in shapes.items()}
    assert found == PUBLISHED["2024-04-02"]
    assert len({piece.theirs for piece in pieces}) == len(pieces)


@pytest.mark.parametrize("revision", ["2024-05-20", "2024-08-26"])
def test_later_releases_differ_by_what_reads_crops_of_the_image(revision):
    first, later = PUBLISHED["2024-04-02"], PUBLISHED[revision]
    differing = {name for name in first if later.get(name) != first[name]}
    assert differing == {"vision_encoder.projection.mlp.fc1.weight"}
    assert all(name.startswith("region_model.") for name in later.keys() - first.keys())


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
