"""Writes files of arrays atomically, and converts arrays to dtypes of such files."""

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np


def partial_path(path: Path) -> Path:
    """Returns the path of the file that `write_whole()` leaves if it is killed."""
    # Use the same folder: a rename to another file system is not atomic.
    return path.with_name(f"{path.name}.partial")


def write_whole(path: Path, **arrays: Any) -> None:
    """Writes an `.npz` file. It replaces an older file once it is complete on disk."""
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    if os.name == "posix":  # Windows can't open a folder.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def writable_dtype(tensor: Any) -> str:
    """Returns the dtype in which a file holds a tensor.

    It is float32 for bfloat16, which NumPy's files can't hold.
    """
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return "float32" if dtype == "bfloat16" else dtype


def as_written(tensor: Any) -> np.ndarray:
    """Returns a tensor or variable as a new array of its `writable_dtype()`."""
    array = keras.ops.convert_to_numpy(tensor)
    return np.array(array, writable_dtype(tensor))
