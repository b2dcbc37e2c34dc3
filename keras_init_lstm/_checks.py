"""Checks values and shapes, and describes values for error messages."""

import reprlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_init_lstm._types import Shape
from keras_init_lstm.backend import backend

# NumPy does not know bfloat16, which has 8 bits of exponent and 7 of mantissa.
_LARGEST_BFLOAT16 = (2 - 2**-7) * 2.0**127


def finite_array(value: Any, argument: str, dtype: str = "float64") -> np.ndarray:
    """Returns `value` as a new float64 array that is finite in `dtype`.

    float64 holds every value of the narrower float dtypes exactly.

    Raises:
        ValueError: If `value` is not a real number or an array of real numbers, or is
            not finite in `dtype`.
    """
    try:
        if keras.ops.is_tensor(value) or isinstance(value, keras.Variable):
            value = keras.ops.convert_to_numpy(value)
        array = np.asarray(value)
        if array.dtype.kind in "bcmMSUO":
            raise TypeError("not real numbers")
        array = array.astype("float64")
    except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"Argument `{argument}` must be a number or an array of numbers. "
            f"Received: {argument}={described(value)}"
        ) from error
    largest = _LARGEST_BFLOAT16 if dtype == "bfloat16" else float(np.finfo(dtype).max)
    if not (np.abs(array) <= largest).all():
        raise ValueError(
            f"Argument `{argument}` must be finite in dtype {dtype}. "
            f"Received: {argument}={described(value)}"
        )
    return array


def array_of_shape(value: Any, argument: str, dtype: str, *shapes: Shape) -> np.ndarray:
    """Returns `value` as an array that is finite in `dtype` and has one of `shapes`.

    Raises:
        ValueError: If `value` is not such an array, or is empty.
    """
    array = finite_array(value, argument, dtype)
    if array.size == 0 or not any(fits(array.shape, shape) for shape in shapes):
        raise ValueError(
            f"Argument `{argument}` must be an array of shape "
            f"{' or '.join(map(shape_text, shapes))}. "
            f"Received: an array of shape {array.shape}"
        )
    return array


def check_batch_size(batch_size: Any) -> None:
    """Raises a `ValueError` unless it is an integer >= 0 or a scalar tensor."""
    is_integer = isinstance(batch_size, (int, np.integer))
    if is_integer and batch_size is not True and batch_size >= 0:
        return
    if keras.ops.is_tensor(batch_size) and shape_of(batch_size) == ():
        return
    if hasattr(batch_size, "__jax_array__"):
        return  # An unknown dimension, in a function that JAX traces.
    raise ValueError(
        "Argument `batch_size` must be a non-negative integer, or a scalar integer "
        f"tensor. Received: batch_size={described(batch_size)}"
    )


def check_positive_integer(value: Any, argument: str, or_none: bool = False) -> None:
    """Raises a `ValueError` unless `value` is one, or `None` with `or_none`."""
    if or_none and value is None:
        return
    if type(value) is bool or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(
            f"Argument `{argument}` must be a positive integer"
            f"{' or None' if or_none else ''}. Received: {argument}={described(value)}"
        )


def check_layer(value: Any, argument: str) -> None:
    """Raises a `ValueError` unless `value` is a layer or model of Keras 3."""
    if not isinstance(value, keras.layers.Layer):
        raise ValueError(
            f"Argument `{argument}` must be a model or layer of Keras 3. "
            f"Received: {described(value)}"
        )


def one_of(value: Any, argument: str, choices: Iterable[Any]) -> None:
    """Raises a `ValueError` unless `value` is one of `choices`."""
    # Compare the types too: 1 == True, and a comparison with an array is an array.
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(
            f"Argument `{argument}` must be one of {list(choices)}. "
            f"Received: {argument}={described(value)}"
        )


def fits(shape: Shape, expected: Shape) -> bool:
    """Whether two shapes, with `None` for unknown sizes, can be equal."""
    return len(shape) == len(expected) and all(
        a == b or None in (a, b) for a, b in zip(shape, expected, strict=True)
    )


def check_shape(tensor: Any, shape: Sequence[Any], expectation: str) -> None:
    """Raises a `ValueError` unless `tensor` is a tensor that can have this shape.

    Args:
        tensor: Anything.
        shape: For each dimension an integer, a scalar integer tensor, or `None` for
            any size.
        expectation: The text of the error before "Received".
    """
    given, expected = shape_of(tensor), tuple(map(_known, shape))
    if not hasattr(tensor, "shape") or not (given is None or fits(given, expected)):
        raise ValueError(f"{expectation} Received: {described(tensor)}")


def with_shape(tensor: Any, shape: Sequence[Any], expectation: str) -> Any:
    """Returns `tensor` with a check of the sizes that are only known at run time.

    Operations on the returned tensor wait for this check. The backend raises its own
    error there.

    Args:
        tensor: As in `check_shape()`.
        shape: As in `check_shape()`.
        expectation: As in `check_shape()`.

    Raises:
        ValueError: As `check_shape()`.
    """
    check_shape(tensor, shape, expectation)
    given = shape_of(tensor) or [None] * len(shape)
    pairs = zip(given, shape, strict=True)
    if any(b is not None and None in (a, _known(b)) for a, b in pairs):
        return backend.with_shape(tensor, shape, expectation)
    return tensor


def _known(size: Any) -> int | None:
    return size if isinstance(size, int) else None


def shape_of(value: Any) -> Shape | None:
    """Returns the shape of a tensor or array as a tuple; `None` if it is unknown."""
    try:
        return tuple(value.shape)
    except (AttributeError, TypeError, ValueError):  # A tensor of unknown rank.
        return None


def shape_text(shape: Sequence[Any]) -> str:
    """Returns a shape as text for messages, with names for unknown sizes."""
    sizes = [
        str(size) if isinstance(size, int) else ("batch", "timesteps")[min(index, 1)]
        for index, size in enumerate(shape)
    ]
    return f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"


def is_legacy(value: Any) -> bool:
    """Whether `value` is an object of `tf_keras`, the legacy Keras 2 package."""
    return "tf_keras" in sys.modules and any(
        c.__module__.split(".")[0] == "tf_keras" for c in type(value).__mro__
    )


def refuse_legacy(value: Any, argument: str) -> None:
    """Raises a `ValueError` if `value` is or has a tensor of `tf_keras`."""
    for leaf in keras.tree.flatten(value):
        if is_legacy(leaf):
            raise ValueError(
                f"Argument `{argument}` must be a tensor of Keras 3. "
                f"Received: {described(leaf)}"
            )


def described(value: Any) -> str:
    """Describes a value for an error message: of an array only shape and dtype."""
    kind = type(value).__name__
    if is_legacy(value):
        return (
            f"{value} (of type {kind} of the legacy package tf_keras; this package "
            "works with Keras 3)"
        )
    if backend.is_symbolic(value):
        return f"{value} (a symbolic tensor; only values known now can be checked)"
    shape = shape_of(value)
    if shape is not None and not isinstance(value, type):
        dtype = getattr(value, "dtype", None)
        return f"an array of shape {shape} and dtype {dtype} (of type {kind})"
    if isinstance(value, (list, tuple, dict)):
        shapes = [shape_of(leaf) for leaf in keras.tree.flatten(value)]
        if any(shape is not None for shape in shapes):
            # Show no values of arrays. `reprlib` shortens a list of many numbers.
            return f"a {kind} of {len(shapes)} with the shapes {reprlib.repr(shapes)}"
    return f"{reprlib.repr(value)} (of type {kind})"
