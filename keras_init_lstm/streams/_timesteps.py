"""Whether an operation computes each timestep from that timestep alone."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

# The sizes with which an operation is tried, in place of unknown ones.
_BATCH, _TIMESTEPS, _OTHER = 2, 3, 4
# Float16 rounds to some 0.001. Earlier timesteps change an output by more than 0.01.
_TOLERANCE = 0.01


def time_axes(
    operation: Any, args: Any, kwargs: Any, axis_of: Callable[[Any], int | None]
) -> list[int]:
    """Returns the time axis of each output of an operation, if they have one.

    The operation is called with random inputs of a few timesteps, and with each of
    these timesteps alone.

    Args:
        operation: A layer or an operation of Keras, without states.
        args: Its arguments, with `KerasTensor`s.
        kwargs: Its keyword arguments, with `KerasTensor`s.
        axis_of: Function that takes a `KerasTensor` and returns its time axis, or
            `None` if it has none.

    Returns:
        A time axis for each output, or an empty list if no argument has one.

    Raises:
        ValueError: If an output depends on other timesteps, or if the operation can't
            be called with one timestep.
    """
    rng = np.random.default_rng(0)
    tensors = _tensors_of((args, kwargs))
    axes = [axis_of(tensor) for tensor in tensors]
    if all(axis is None for axis in axes):
        return []
    if any(tensor.dtype == "string" for tensor in tensors):
        return [1]  # There are no random texts. Layers read each text alone.
    pairs = zip(tensors, axes, strict=True)
    examples = {id(tensor): _example(tensor, axis, rng) for tensor, axis in pairs}

    def call(timesteps: slice) -> list[np.ndarray]:
        def example(argument: Any) -> Any:
            if not isinstance(argument, keras.KerasTensor):
                return argument
            axis = axis_of(argument)
            before = (slice(None),) * (axis or 0)
            array = examples[id(argument)]
            return array if axis is None else array[(*before, timesteps)]

        new_args, new_kwargs = keras.tree.map_structure(example, (args, kwargs))
        outputs = operation(*new_args, **new_kwargs)
        return [ops.convert_to_numpy(x) for x in keras.tree.flatten(outputs)]

    reason = "it computes a timestep from other timesteps too"
    found: list[int] = []
    try:
        whole = call(slice(None))
        single = [call(slice(t, t + 1)) for t in range(_TIMESTEPS)]
        for output, *parts in zip(whole, *single, strict=True):
            found += _common_axis(output, parts)
        mixes = len(found) < len(whole)
    except Exception as error:  # Each backend raises its own class of errors.
        mixes, reason = True, f"a call with single timesteps raises: {error}"
    if mixes:
        raise ValueError(
            f"The layer {operation.name} (of class {type(operation).__name__}) can't "
            f"read the targets timestep by timestep, because {reason}. Leave it out, "
            "or call it with tensors that are computed from sources alone"
        )
    return found


def _tensors_of(structure: Any) -> list[Any]:
    leaves = keras.tree.flatten(structure)
    return [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]


def _example(tensor: Any, axis: int | None, rng: np.random.Generator) -> Any:
    """Returns a random tensor with the shape and the dtype of a `KerasTensor`."""
    sizes = [_BATCH if i == 0 else _OTHER for i in range(len(tensor.shape))]
    if axis is not None:
        sizes[axis] = _TIMESTEPS
    shape = [
        size if known is None or i == axis else known
        for i, (known, size) in enumerate(zip(tensor.shape, sizes, strict=True))
    ]
    is_float = keras.backend.is_float_dtype(tensor.dtype)
    array = rng.normal(size=shape) if is_float else rng.integers(0, 2, shape)
    return ops.cast(ops.convert_to_tensor(array), tensor.dtype)


def _common_axis(whole: np.ndarray, parts: list[np.ndarray]) -> list[int]:
    """Returns the axis along which `parts` are the slices of `whole`, if there is one.

    Returns:
        A list of the axis, or an empty list.
    """
    for axis in range(whole.ndim):
        is_slice = whole.shape[:axis] + (1,) + whole.shape[axis + 1 :]
        if whole.shape[axis] == 1 or any(part.shape != is_slice for part in parts):
            continue
        joined = np.concatenate(parts, axis)
        if joined.shape == whole.shape and _is_close(joined, whole):
            return [axis]
    return []


def _is_close(got: np.ndarray, expected: np.ndarray) -> bool:
    got, expected = got.astype("float64"), expected.astype("float64")
    tolerance = _TOLERANCE * np.nanmax(np.abs(expected), initial=0.0)
    return np.allclose(got, expected, rtol=0, atol=tolerance, equal_nan=True)
