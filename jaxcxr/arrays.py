"""Arrays that a user gives: .npy, or safetensors of one tensor; what is wrong with one is a UserError of one line."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcxr.errors import UserError, one_line
from jaxcxr.interop.tensors import open_safetensors

Shape = tuple[int, ...]


def read(file: Path, shapes: Sequence[Shape], axes: str, name: str) -> np.ndarray:
    """The float32 array in a file, of one of `shapes`; it is mapped, so that no more is read than is used.

    Args:
      file: .npy, or by its name safetensors of one tensor.
      shapes: at least one.
      axes: what they are, for the error, as in "N×C×H×W".
      name: stands for the file in errors.

    Raises:
      UserError: the file cannot be read, is safetensors of another number of tensors, or the array is another.
    """
    if file.suffix == ".safetensors":
        if not file.is_file():
            raise UserError(f"{name}: cannot be read (no such file)")
        try:
            tensors = open_safetensors(file)
        except UserError as error:
            raise UserError(f"{name}: cannot be read ({str(error).removeprefix(f'{file}: ')})") from error
        if len(tensors) != 1:
            raise UserError(f"{name}: has {len(tensors)} tensors; give a file of one")
        (tensor,) = tensors.values()
        _require(tensor.dtype, tensor.shape, shapes, axes, name)
        return tensor.read()
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with file.open("rb") as opened:
            shape, fortran, dtype = readers[np.lib.format.read_magic(opened)](opened)
            # Before there is an array: a header may claim any size, and numpy divides by that of an element.
            _require(dtype, shape, shapes, axes, name)
            return np.memmap(file, dtype, "r", opened.tell(), shape, "F" if fortran else "C")
    except UserError:
        raise
    except Exception as error:  # numpy's reader of headers raises almost anything on damaged ones
        raise UserError(f"{name}: cannot be read as .npy ({one_line(error)}); write it with numpy.save") from error


def require(array: np.ndarray, shapes: Sequence[Shape], axes: str, name: str) -> np.ndarray:
    """The array, if it is float32, of one of `shapes`, and finite; raises UserError otherwise."""
    _require(array.dtype, array.shape, shapes, axes, name)
    if not np.isfinite(array).all():
        raise UserError(f"{name}: has NaN or infinity; make it again")
    return array


def _require(dtype: np.dtype, shape: Shape, shapes: Sequence[Shape], axes: str, name: str) -> None:
    if dtype != np.float32 or shape not in shapes:
        raise UserError(f"{name}: is {f'{dtype} {shape}'[:200]}; float32 {shapes[0]} ({axes}) is wanted here")
