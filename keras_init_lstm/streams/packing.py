"""Packs sequences of different lengths one after another into the rows of an array."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_init_lstm._checks import check_positive_integer, described, shape_of


def pack(
    sequences: Sequence[Any], timesteps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packs sequences one after another, for a layer called with a `reset_mask`.

    Each row takes the next sequences, in order, while they fit. Pack values for each
    timestep, such as targets or sample weights, with this function too: they get the
    same positions. `outputs[mask]` are the outputs at all timesteps of all sequences,
    in order.

    Args:
        sequences: List of arrays `(length, ...)` of numbers, with lengths from 1 to
            `timesteps`, and otherwise of the same shape.
        timesteps: Positive integer, the number of timesteps of a row.

    Returns:
        A tuple of three arrays: the packed sequences `(batch, timesteps, ...)`, padded
        with zeros; the mask, booleans `(batch, timesteps)`, `False` at the padding; and
        the reset mask, booleans `(batch, timesteps)`, `True` where a sequence begins.

    Raises:
        ValueError: If there is no sequence, or if one is empty, longer than
            `timesteps`, not of numbers, or of another shape than the first; or if
            `timesteps` is not a positive integer.

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
    timestep_shape = arrays[0].shape[1:]
    for index, array in enumerate(arrays):
        length = len(array) if array.ndim else 0
        if (
            array.dtype.kind not in "biuf"
            or not 1 <= length <= timesteps
            or array.shape[1:] != timestep_shape
        ):
            given = list(sequences)[index]
            raise ValueError(
                f"Argument `sequences[{index}]` must be an array of numbers of shape "
                f"(length, {', '.join(map(str, timestep_shape))}), with a length from "
                f"1 to timesteps={timesteps}. Received: {described(given)}"
            )
    row, used, positions = 0, 0, []
    for array in arrays:
        if used + len(array) > timesteps:
            row, used = row + 1, 0
        positions.append((row, slice(used, used + len(array))))
        used += len(array)
    shape = (row + 1, timesteps, *timestep_shape)
    packed = np.zeros(shape, np.result_type(*arrays))
    mask, reset_mask = np.zeros((2, row + 1, timesteps), bool)
    for array, (row, columns) in zip(arrays, positions, strict=True):
        packed[row, columns] = array
        mask[row, columns] = True
        reset_mask[row, columns.start] = True
    return packed, mask, reset_mask


def _arrays(sequences: Any) -> list[np.ndarray]:
    arrays = []
    is_list = hasattr(sequences, "__len__") and shape_of(sequences) != ()
    if isinstance(sequences, Mapping):  # Iteration would return its keys.
        is_list = False
    for sequence in sequences if is_list else ():
        try:
            arrays.append(np.asarray(sequence))
        except ValueError:  # Lists of different lengths.
            arrays.append(np.asarray(None))
    if not arrays:
        raise ValueError(
            "Argument `sequences` must be a list of at least one array. "
            f"Received: sequences={described(sequences)}"
        )
    return arrays
