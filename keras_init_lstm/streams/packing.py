"""Sequences of different lengths, one after another in the rows of one array."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_init_lstm._checks import check_positive_integer, described, shape_of


def pack(
    sequences: Sequence[Any], timesteps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lays sequences out one after another, for a layer called with a `reset_mask`.

    A row takes sequences, in their order, as long as the next one fits. Values for each
    timestep, such as targets or sample weights, are packed by the same function to the
    same places. `outputs[mask]` are the outputs at all timesteps of all sequences, in
    order.

    Args:
        sequences: Arrays `(length, ...)`, with any lengths from 1 to `timesteps`, and
            otherwise of one shape.
        timesteps: Positive integer, the length of a row.

    Returns:
        The packed array `(rows, timesteps, ...)`, zero where nothing is; the mask
        `(rows, timesteps)`, a boolean array that is `False` there; and the reset mask
        `(rows, timesteps)`, `True` where a sequence begins.

    Raises:
        ValueError: If there is no sequence, or if one is empty, longer than
            `timesteps`, or of another shape than the first.

    Example:
    >>> from keras_init_lstm.streams import pack
    >>> x, mask, reset_mask = pack([[1, 2], [3], [4, 5]], timesteps=4)
    >>> x.tolist()
    [[1, 2, 3, 0], [4, 5, 0, 0]]
    >>> reset_mask.tolist()
    [[True, False, True, False], [True, False, False, False]]
    >>> x[mask].tolist()
    [1, 2, 3, 4, 5]
    """
    check_positive_integer(timesteps, "timesteps")
    arrays = _arrays(sequences)
    of_timestep = arrays[0].shape[1:]
    for index, array in enumerate(arrays):
        length = len(array) if array.ndim else 0
        if (
            array.dtype.kind not in "biuf"
            or not 1 <= length <= timesteps
            or array.shape[1:] != of_timestep
        ):
            given = list(sequences)[index]
            raise ValueError(
                f"Argument `sequences[{index}]` must be an array of numbers of shape "
                f"(length, {', '.join(map(str, of_timestep))}), with a length from 1 "
                f"to timesteps={timesteps}. Received: {described(given)}"
            )
    row, used, places = 0, 0, []
    for array in arrays:
        if used + len(array) > timesteps:
            row, used = row + 1, 0
        places.append((row, slice(used, used + len(array))))
        used += len(array)
    shape = (row + 1, timesteps, *of_timestep)
    packed = np.zeros(shape, np.result_type(*arrays))
    mask, reset_mask = np.zeros((2, row + 1, timesteps), bool)
    for array, (row, columns) in zip(arrays, places, strict=True):
        packed[row, columns] = array
        mask[row, columns] = True
        reset_mask[row, columns.start] = True
    return packed, mask, reset_mask


def _arrays(sequences: Any) -> list[np.ndarray]:
    arrays = []
    is_list = hasattr(sequences, "__len__") and shape_of(sequences) != ()
    if isinstance(sequences, Mapping):  # Perhaps its values are meant.
        is_list = False
    for sequence in sequences if is_list else ():
        try:
            arrays.append(np.asarray(sequence))
        except ValueError:  # Lists of different lengths.
            arrays.append(np.asarray(None))
    if not arrays:
        raise ValueError(
            "Argument `sequences` must have at least one, in a list. "
            f"Received: sequences={described(sequences)}"
        )
    return arrays
