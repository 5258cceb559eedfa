"""safetensors files: read by the library that defines them, sharded, damaged."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from paligemma_jax.checkpoints import tensor_files


def some_tensors():
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=(5, 3)).astype("float16"),
        "b": rng.normal(size=(4, 4)).astype("float32"),
        "c": rng.normal(size=(7,)).astype(ml_dtypes.bfloat16),
        "d": rng.normal(size=(2, 2)).astype("float32"),
    }


def write(folder, tensors, **settings):
    shapes = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in tensors.items()}
    layout = tensor_files.lay_out(shapes, metadata={"format": "pt"}, **settings)
    tensor_files.create(folder, layout)
    for name in reversed(tensors):  # any order will do
        tensor_files.put(folder, layout.places[name], tensors[name])
    tensor_files.sync(folder, layout)
    return layout


def test_the_library_reads_what_is_written(tmp_path):
    layout = write(tmp_path, some_tensors())
    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    assert set(found) == set(some_tensors())
    for name, tensor in some_tensors().items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor)
    assert (tmp_path / "model.safetensors").stat().st_size == layout.num_bytes


def test_every_number_lies_at_a_multiple_of_its_size(tmp_path):
    layout = write(tmp_path, some_tensors())
    assert all(p.start % p.dtype.itemsize == 0 for p in layout.places.values())


def test_many_tensors_go_to_several_files_and_an_index(tmp_path):
    layout = write(tmp_path, some_tensors(), shard_bytes=50)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert list(layout.headers) == names
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 64 + 16 + 30 + 14}
    assert index["weight_map"] == {"a": names[1], "b": names[0], "c": names[2], "d": names[1]}
    found, metadata = tensor_files.read_headers(tmp_path)
    assert {k: (p.name, x.shape) for k, (p, x) in found.items()} == {
        k: (index["weight_map"][k], x.shape) for k, x in some_tensors().items()
    }
    assert metadata == {"format": "pt"}


def test_rows_are_read_alone(tmp_path):
    write(tmp_path, some_tensors())
    found = tensor_files.read_rows(tmp_path / "model.safetensors", "a", slice(1, 3))
    np.testing.assert_array_equal(found, some_tensors()["a"][1:3])


def test_a_missing_file_is_named(tmp_path):
    write(tmp_path, some_tensors(), shard_bytes=50)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names .*00002-of-00003.* which are not there"):
        tensor_files.read_headers(tmp_path)


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"holds \['pytorch_model.bin'\]"):
        tensor_files.read_headers(tmp_path)


def test_a_file_that_is_cut_off_is_named(tmp_path):
    write(tmp_path, some_tensors())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors: cut off"):
        tensor_files.read_headers(tmp_path)


def test_quantized_weights_are_refused(tmp_path):
    safetensors.numpy.save_file({"q": np.zeros(3, "int8")}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"'q' is I8, expected one of.*give the dense ones"):
        tensor_files.read_headers(tmp_path)


def write_index(folder, index) -> None:
    write(folder, some_tensors())
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / tensor_files.INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([1], r"\[1\], expected a JSON object"),
        ({}, "no weight_map"),
        ({"weight_map": ["model-1.safetensors"]}, "no weight_map"),
        ({"weight_map": {"a": 5}}, "weight_map says 5; expected names of"),
        ({"weight_map": {"a": "../other/model.safetensors"}}, r'says "\.\./other/model'),
        ({"weight_map": {"a": "/etc/x.safetensors"}}, 'says "/etc/x'),
        ({"weight_map": {"a": "c:\\x.safetensors"}}, "weight_map says"),
        ({"weight_map": {"a": "x.json"}}, "weight_map says"),
        ({"weight_map": {"a": "model-2.safetensors"}}, "which are not there: copy them too"),
    ],
)
def test_an_index_names_files_of_its_own_folder(tmp_path, index, message):
    write_index(tmp_path, index)
    with pytest.raises(ValueError, match=rf"{tensor_files.INDEX}.*{message}"):
        tensor_files.read_headers(tmp_path)


def test_links_lead_out_of_the_folder_into_hugging_faces_cache_only(tmp_path):
    folder, blobs = tmp_path / "model" / "snapshots" / "abc", tmp_path / "model" / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    write_index(folder, {"weight_map": dict.fromkeys(some_tensors(), "model-1.safetensors")})
    for place, is_fine in ((blobs, True), (tmp_path, False)):
        real = (folder / "model-1.safetensors").resolve().rename(place / "0123")
        (folder / "model-1.safetensors").unlink(missing_ok=True)
        (folder / "model-1.safetensors").symlink_to(real)
        if is_fine:
            assert tensor_files.read_headers(folder)[0].keys() == some_tensors().keys()
        else:
            with pytest.raises(ValueError, match=r"is a link to .*0123, outside of the folder"):
                tensor_files.read_headers(folder)
