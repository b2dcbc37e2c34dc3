"""Files of arrays that are written whole, and arrays as such a file can hold them."""

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np


def partial_path(path: Path) -> Path:
    """The file that `write_whole()` leaves if the process is killed."""
    # In the same folder, since no file replaces one of another file system at once.
    return path.with_name(f"{path.name}.partial")


def write_whole(path: Path, **arrays: Any) -> None:
    """Writes an `.npz` file that replaces an older one once it is whole and on disk."""
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":  # Windows opens no folders.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def writable_dtype(tensor: Any) -> str:
    """The dtype in which a file holds a tensor.

    NumPy's files don't hold bfloat16. float32 has all of its values.
    """
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return "float32" if dtype == "bfloat16" else dtype


def as_written(tensor: Any) -> np.ndarray:
    """A new array of a tensor or variable, in its `writable_dtype()`."""
    array = keras.ops.convert_to_numpy(tensor)
    return np.array(array, writable_dtype(tensor))
