"""Do two files hold the same weights? Told in a moment, from their tables of contents.

A zip keeps the CRC of every member's bytes in its table of contents. Names, sizes and CRCs together
therefore cover shape, type and every byte of every array, and no array is read again. The CRCs are
compared with the data whenever an array is read (`npz.read`), so weights that were loaded are those
that their file's fingerprint stands for.
"""

import hashlib
import json
import os

from paligemma_jax.checkpoints import zipped_arrays


def of(path: str | os.PathLike[str]) -> str:
    """Returns the fingerprint of an .npz file's arrays: 64 hexadecimal digits.

    A bit of an array, a name, a shape or a type changes it; compression, the order of the arrays,
    the file's name and its metadata do not. It guards against mistakes, not against malice: other
    bytes with the same CRC can be made on purpose.

    Raises:
      ValueError: not a zip, or one that is cut off or damaged at its end.
    """
    with zipped_arrays.open_zip(path) as archive:
        members = sorted((info.filename, info.file_size, info.CRC) for info in archive.infolist())
    return hashlib.sha256(json.dumps(members).encode()).hexdigest()
