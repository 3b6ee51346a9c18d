"""Reads an .npz by hand, because whoever made it may be hostile: what an array claims of itself is compared with its
bytes before anything is allocated, nothing is unpacked to more than was read, and no object is ever unpickled."""

import io
import zipfile
from collections.abc import Mapping, Set

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.generic]]


def read(content: bytes, dtypes: Mapping[str, str], required: Set[str], most_bytes: int) -> Arrays:
    """The arrays of an .npz by name, of `dtypes` alone and at least `required`, at most `most_bytes` together.

    It must be as numpy.savez writes it, not compressed. Raises ValueError naming what is wrong.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = archive.infolist()
            members = {part.filename.removesuffix(".npy"): part for part in parts}
            if len(members) < len(parts) or not required <= set(members) <= set(dtypes):
                raise ValueError(f"it holds {sorted(part.filename for part in parts)[:8]}")
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                raise ValueError("it is compressed, and is read as numpy.savez writes it")
            if (size := sum(part.file_size for part in parts)) > most_bytes:
                raise ValueError(f"its arrays have {size} bytes, at most {most_bytes} are read")
            return {name: _array(name, archive.read(part), dtypes[name]) for name, part in members.items()}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"it is no .npz file ({error})") from error


def _array(name: str, content: bytes, wanted: str) -> NDArray[np.generic]:
    """One .npy file. numpy would allocate whatever the header says; here the header must fit the bytes."""
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{name} is in another version of .npy than 1.0")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.str != wanted or fortran:
        raise ValueError(f"{name} is {dtype.str}, wanted {wanted} in the order of C")
    values = np.frombuffer(content, dtype, offset=file.tell())
    if any(side < 0 for side in shape) or values.size != int(np.prod(shape, dtype=object)):
        raise ValueError(f"{name} says that it is {list(shape)} and holds {values.size} values")
    return values.reshape(shape)
