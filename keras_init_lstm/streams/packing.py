"""Packs sequences of different lengths one after another into the rows of an array."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_init_lstm._checks import (
    check_positive_integer,
    check_shape,
    described,
    shape_of,
)


def pack(*sequences: Sequence[Any], timesteps: int) -> tuple[np.ndarray, ...]:
    """Packs sequences one after another, for a layer called with a `reset_mask`.

    Each row takes the next sequences, in order, while they fit. Lists of values for the
    same timesteps, such as inputs, targets and sample weights, get the same positions.
    `unpack()` returns the outputs of each sequence.

    Args:
        *sequences: One or several lists of arrays `(length, ...)` of numbers, with
            lengths from 1 to `timesteps`. In a list, the arrays are otherwise of the
            same shape. Between lists, the lengths are the same.
        timesteps: Positive integer, the number of timesteps of a row.

    Returns:
        A tuple of arrays: for each list the packed sequences `(batch, timesteps, ...)`,
        padded with zeros; then the mask, booleans `(batch, timesteps)`, `False` at the
        padding; and the reset mask, booleans `(batch, timesteps)`, `True` where a
        sequence begins.

    Raises:
        ValueError: If there is no sequence, or if one is empty, longer than
            `timesteps`, not of numbers, or of another shape than the first; if a list
            has other lengths than the first; or if `timesteps` is not a positive
            integer.

    Example:
    >>> from keras_init_lstm.streams import pack, unpack
    >>> x, y, mask, reset_mask = pack(
    ...     [[1, 2], [3], [4, 5]], [[0.1, 0.2], [0.3], [0.4, 0.5]], timesteps=4
    ... )
    >>> x.tolist()
    [[1, 2, 3, 0], [4, 5, 0, 0]]
    >>> y.tolist()
    [[0.1, 0.2, 0.3, 0.0], [0.4, 0.5, 0.0, 0.0]]
    >>> reset_mask.tolist()
    [[True, False, True, False], [True, False, False, False]]
    >>> [sequence.tolist() for sequence in unpack(10 * x, mask, reset_mask)]
    [[10, 20], [30], [40, 50]]
    """
    check_positive_integer(timesteps, "timesteps")
    lists = [
        _arrays(given, f"sequences[{number}]", timesteps)
        for number, given in enumerate(sequences)
    ]
    if not lists:
        raise ValueError("Argument `sequences` must be at least one list of arrays")
    lengths = list(map(len, lists[0]))
    for number, arrays in enumerate(lists):
        if list(map(len, arrays)) != lengths:
            raise ValueError(
                f"Argument `sequences[{number}]` must have arrays of the lengths of "
                f"`sequences[0]`, {described(lengths)}. "
                f"Received: {described(list(map(len, arrays)))}"
            )
    row, used, positions = 0, 0, []
    for length in lengths:
        if used + length > timesteps:
            row, used = row + 1, 0
        positions.append((row, slice(used, used + length)))
        used += length
    mask, reset_mask = np.zeros((2, row + 1, timesteps), bool)
    for row, columns in positions:
        mask[row, columns] = True
        reset_mask[row, columns.start] = True
    packed = []
    for arrays in lists:
        shape = (*mask.shape, *arrays[0].shape[1:])
        rows = np.zeros(shape, np.result_type(*arrays))
        # NumPy reads the mask row by row, which is the order of the sequences.
        rows[mask] = np.concatenate(arrays)
        packed.append(rows)
    return *packed, mask, reset_mask


def unpack(outputs: Any, mask: Any, reset_mask: Any) -> list[np.ndarray]:
    """Returns the outputs of each sequence that `pack()` packed, in their order.

    Args:
        outputs: Array `(batch, timesteps, ...)`, such as the outputs of a model.
        mask: Booleans `(batch, timesteps)`, the mask that `pack()` returned.
        reset_mask: Booleans `(batch, timesteps)`, the reset mask that `pack()`
            returned.

    Returns:
        A list with an array `(length, ...)` for each sequence.

    Raises:
        ValueError: If the arguments have other shapes, or if the masks are not as from
            `pack()`: in each row, the first timestep of the mask begins a sequence, and
            no sequence begins at the padding.

    Example:
    >>> from keras_init_lstm.streams import pack, unpack
    >>> x, mask, reset_mask = pack([np.ones((2, 3)), np.ones((4, 3))], timesteps=8)
    >>> layer = keras_init_lstm.InitStateLSTM(5, return_sequences=True)
    >>> outputs = layer(x, mask=mask, reset_mask=reset_mask)
    >>> [sequence.shape for sequence in unpack(outputs, mask, reset_mask)]
    [(2, 5), (4, 5)]
    """
    mask, reset_mask = np.asarray(mask), np.asarray(reset_mask)
    for argument, value in (("mask", mask), ("reset_mask", reset_mask)):
        if value.dtype != bool or value.ndim != 2 or value.shape != mask.shape:
            raise ValueError(
                f"Argument `{argument}` must be booleans of shape (batch, timesteps), "
                f"as `pack()` returns them. Received: {described(value)}"
            )
    shape = shape_of(outputs) or ()
    axes = (*mask.shape, *shape[2:])
    check_shape(
        outputs,
        axes,
        f"Argument `outputs` must have the batch and the timesteps of `mask`, {axes}.",
    )
    first_of_rows = mask & (np.cumsum(mask, axis=1) == 1)
    if (first_of_rows & ~reset_mask).any() or (reset_mask & ~mask).any():
        raise ValueError(
            "Argument `reset_mask` must be True at the first timestep of each row of "
            "`mask`, and nowhere at the padding, as `pack()` returns it. "
            f"Received: {described(reset_mask)}"
        )
    begins = np.flatnonzero(reset_mask[mask])
    if not len(begins):
        return []
    return np.split(keras.ops.convert_to_numpy(outputs)[mask], begins[1:])


def _arrays(sequences: Any, argument: str, timesteps: int) -> list[np.ndarray]:
    arrays = []
    is_list = hasattr(sequences, "__len__") and shape_of(sequences) != ()
    if isinstance(sequences, Mapping):  # Iteration would return its keys.
        is_list = False
    given = list(sequences) if is_list else []
    for sequence in given:
        try:
            arrays.append(np.asarray(sequence))
        except ValueError:  # Lists of different lengths.
            arrays.append(np.asarray(None))
    if not arrays:
        raise ValueError(
            f"Argument `{argument}` must be a list of at least one array. "
            f"Received: {argument}={described(sequences)}"
        )
    timestep_shape = arrays[0].shape[1:]
    for index, array in enumerate(arrays):
        length = len(array) if array.ndim else 0
        if (
            array.dtype.kind not in "biuf"
            or not 1 <= length <= timesteps
            or array.shape[1:] != timestep_shape
        ):
            raise ValueError(
                f"Argument `{argument}[{index}]` must be an array of numbers of shape "
                f"(length, {', '.join(map(str, timestep_shape))}), with a length from "
                f"1 to timesteps={timesteps}. Received: {described(given[index])}"
            )
    return arrays
