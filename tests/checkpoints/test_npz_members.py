"""Members that lie about themselves: refused by file and name, before memory is taken."""

import json
import os
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from paligemma_jax.checkpoints import npz, npz_members


def npy(header: str, data: bytes = b"", *, version: bytes = b"\x01\x00") -> bytes:
    """Returns a .npy file with this header, whatever it says."""
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header.encode("latin1") + data


def say(shape, descr="<f4") -> str:
    return repr({"descr": descr, "fortran_order": False, "shape": shape}) + "\n"


def write_zip(path, members, *, comment=b"", method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.comment = comment
    return path


def patch_entry(path, offset: int, value: bytes) -> None:
    """Overwrites a field of the only entry in the zip's table of contents."""
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02") + offset
    raw[at : at + len(value)] = value
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (8, struct.pack("<H", 1), "is encrypted; expected an .npz"),
        (10, struct.pack("<H", 14), "compressed with method 14, expected 0"),
        (10, struct.pack("<H", 99), "compressed with method 99, expected 0"),
        (24, struct.pack("<I", 2**31), r"says that it takes \d+ bytes.*Download or copy"),
        (20, struct.pack("<I", 7), "it says that it takes 7 bytes"),
        (42, struct.pack("<I", 60), r"is damaged or no array: no \.npy header"),
    ],
)
def test_an_entry_that_does_not_fit_its_data_is_named(tmp_path, offset, value, message):
    path = write_zip(tmp_path / "a.npz", {"w.npy": npy(say((4,)), bytes(16))})
    patch_entry(path, offset, value)
    for read in (npz.read_header, npz.read):
        with pytest.raises(ValueError, match=rf"a\.npz: member 'w\.npy' (is )?.*{message}"):
            read(path)


@pytest.mark.parametrize("version", [200, 63])
def test_a_version_of_zip_that_nobody_has_is_an_error_of_the_file(tmp_path, version):
    path = write_zip(tmp_path / "a.npz", {"w.npy": npy(say((4,)), bytes(16))})
    patch_entry(path, 6, struct.pack("<H", version))
    if version > 63:
        with pytest.raises(ValueError, match=r"a\.npz: a zip that is cut off or damaged"):
            npz.read(path)
    else:
        assert npz.read(path)["w"].shape == (4,)


def test_a_comment_length_that_does_not_fit_is_an_error_of_the_file(tmp_path):
    path = write_zip(tmp_path / "a.npz", {"w.npy": npy(say((4,)), bytes(16))}, comment=b"x" * 40)
    raw = path.read_bytes()
    for cut in (raw[-62:], raw[-50:], raw[:-60], raw[:20] + raw[-62:]):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match=r"a\.npz: (a zip that is cut|not an \.npz)"):
            npz.read_header(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (say((-4,)), "no array has the shape"),
        (say((-2, -2)), "no array has the shape"),
        (say((True, 4)), "no array has the shape"),
        (say((2**62, 4)), "no array has the shape"),
        (say((0, 2**62)), "no array has the shape"),
        (say((10**300,)), "no array has the shape"),
        (say((1,) * 200), "no array has the shape"),
        (say((5,)), "takes 20 bytes, found 16"),
        (say(("a",)), r"no \.npy header"),
        (say((4,), "|O"), "holds pickled Python objects"),
        (say((4,), "<c8"), "has the dtype <c8; expected float32"),
        (say((1,), "<U4"), "has the dtype <U4"),
        (say((4,), "f4,f4"), "is damaged|has the dtype"),
        ("", r"no \.npy header"),
        ("(" * 9000, r"no \.npy header"),
        ("-" * 9000 + "1", r"no \.npy header"),
        ("{" * 300, r"no \.npy header"),
        ("'''", r"no \.npy header"),
        ("\\\n  x\n y", r"no \.npy header"),
        ("{'a': {[]: 1}}", r"no \.npy header"),
        ("__import__('os').abort()", r"no \.npy header"),
    ],
)
def test_a_header_that_is_none_is_named(tmp_path, header, message):
    path = write_zip(tmp_path / "a.npz", {"llm/w.npy": npy(header, bytes(16))})
    with pytest.raises(ValueError, match=rf"a\.npz: member 'llm/w\.npy' .*({message})"):
        npz.read(path)


def test_a_long_header_is_not_read(tmp_path):
    content = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + bytes(2**24)
    path = write_zip(tmp_path / "a.npz", {"w.npy": content}, method=zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"no \.npy header \(2147483648 bytes long\)"):
        npz.read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_few_bytes_that_say_they_are_many_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(npz_members, "UNPACKED_BYTES", 2**20)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, w=np.zeros(2**19, "float32"))
    with pytest.raises(ValueError, match=r"a\.npz: 2\.\d KiB that say they unpack to 2\.0 MiB"):
        npz.read_header(path)
    np.savez(path, w=np.zeros(2**19, "float32"))
    assert npz.read(path)["w"].size == 2**19
    rng = np.random.default_rng(0)
    np.savez_compressed(path, w=rng.normal(size=2**19))
    assert npz.read(path)["w"].size == 2**19


@pytest.mark.parametrize(
    "name", ["../w", "/etc/w", "a/../../w", "a//w", "", "a/", "c:\\w", "a\x1b[2Jw", "a\u202ew"]
)
def test_names_that_are_no_parameters_are_refused(tmp_path, name):
    path = write_zip(tmp_path / "a.npz", {f"{name}.npy": npy(say((4,)), bytes(16))})
    with pytest.raises(ValueError, match=r"a\.npz: member .* has no name of a parameter") as error:
        npz.read_header(path)
    assert str(error.value).isprintable()


def test_the_same_name_twice_is_refused(tmp_path):
    content = npy(say((4,)), bytes(16))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("w.npy", content)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("w.npy", content)
    with pytest.raises(ValueError, match=r"member 'w\.npy' is there twice"):
        npz.read_header(tmp_path / "a.npz")


@pytest.mark.parametrize("comment", [b'{"a": ', b'{"a": NaN}', b'{"a": ' + b"[" * 30_000])
def test_metadata_that_begins_like_ours_and_is_damaged_is_an_error(tmp_path, comment):
    path = write_zip(tmp_path / "a.npz", {"w.npy": npy(say((4,)), bytes(16))}, comment=comment)
    with pytest.raises(ValueError, match=r"a\.npz: its metadata .* is damaged .*copy the file"):
        npz.read(path)


@pytest.mark.parametrize("recorded", ["object", "O", "x", 5, ["bfloat16"], {"a": 1}, "float32"])
def test_a_recorded_type_that_cannot_be_is_an_error(tmp_path, recorded):
    comment = json.dumps({"dtypes": {"w": recorded}}).encode()
    path = write_zip(
        tmp_path / "a.npz", {"w.npy": npy(say((4,), "|V2"), bytes(8))}, comment=comment
    )
    with pytest.raises(ValueError, match=r"member 'w\.npy' has the dtype \|V2 recorded as"):
        npz.read(path)


def test_a_folder_a_device_and_a_pipe_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "folder.npz").mkdir()
    for path in (tmp_path / "pipe.npz", tmp_path / "folder.npz", "/dev/zero"):
        with pytest.raises(ValueError, match=f"{path}: a folder or a device, expected an .npz"):
            npz.read_header(path)


def test_deflated_data_that_is_none_is_damage_of_its_member(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, w=np.random.default_rng(0).normal(size=9000))
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 400] = zlib.compress(b"x" * 9000) * 16
    path.write_bytes(raw[: path.stat().st_size])
    with pytest.raises(ValueError, match=r"a\.npz.*(is damaged|cut off)"):
        npz.read(path)
