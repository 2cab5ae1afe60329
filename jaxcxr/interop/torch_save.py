"""What `torch.save` writes, written without PyTorch: a dictionary of texts, numbers, dictionaries and float32 tensors.

The file is a zip of a pickle and the tensors' bytes. The pickle is put together here, of the few opcodes that it takes.
"""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Writes `content`, whose arrays become tensors on the CPU."""
    arrays: list[np.ndarray] = []
    program = b"\x80\x02" + _pickled(content, arrays) + b"."
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("data.pkl", program), ("byteorder", b"little"), ("version", b"3\n")):
            _add(archive, f"archive/{name}", data)
        for number, array in enumerate(arrays):
            _add(archive, f"archive/data/{number}", array.tobytes())


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name), data)  # of no date, so that equal contents are equal files


def _pickled(value: Any, arrays: list[np.ndarray]) -> bytes:
    """The opcodes that put `value` on the stack; its arrays are added to `arrays`."""
    if value is None:
        return b"N"
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, tuple):
        return b"(" + b"".join(_pickled(each, arrays) for each in value) + b"t"
    if isinstance(value, np.ndarray):
        return _tensor(value, arrays)
    pairs = b"".join(_pickled(each, arrays) for pair in value.items() for each in pair)
    return b"}(" + pairs + b"u"


def _tensor(array: np.ndarray, arrays: list[np.ndarray]) -> bytes:
    array, key = np.ascontiguousarray(array, "<f4"), str(len(arrays))
    strides = tuple(stride // array.itemsize for stride in array.strides)
    arrays.append(array)
    storage = b"(" + _pickled("storage", []) + b"ctorch\nFloatStorage\n"
    storage += b"".join(_pickled(each, []) for each in (key, "cpu", array.size)) + b"tQ"
    rest = b"".join(_pickled(each, []) for each in (0, array.shape, strides))
    # Then requires_grad, which is false, and no hooks.
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"\x89ccollections\nOrderedDict\n)RtR"
