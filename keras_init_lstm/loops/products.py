"""Products with the kernel of several gates, which may have different inputs.

A kernel is `(width, gates * units)`. Its inputs are a list of tensors `(rows, width)`:
one tensor for all gates, or one for each gate if dropout draws a mask for each gate.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import tensorflow as tf

Tensors: TypeAlias = Sequence[tf.Tensor]


def product(inputs: Tensors, kernels: Tensors) -> tf.Tensor:
    """Returns the products of all gates, `(rows, gates * units)`.

    Args:
        inputs: The inputs.
        kernels: The parts of the kernel, one for each input. In a loop, split the
            kernel before it: XLA would copy the parts at each timestep.
    """
    return _joined([tf.matmul(*pair) for pair in zip(inputs, kernels, strict=True)])


def inputs_gradient(dz: tf.Tensor, kernel: tf.Tensor, count: int) -> Any:
    """Returns the concatenated gradients of the inputs.

    Args:
        dz: The gradients of the products, `(rows, gates * units)`.
        kernel: The kernel.
        count: The number of inputs.
    """
    pairs = zip(split_columns(dz, count), split_columns(kernel, count), strict=True)
    return _joined([tf.matmul(*pair, transpose_b=True) for pair in pairs])


def kernel_gradient(inputs: Tensors, dz: tf.Tensor) -> tf.Tensor:
    """Returns the gradient of the kernel from the gradients `dz` of the products."""
    pairs = zip(inputs, split_columns(dz, len(inputs)), strict=True)
    return _joined([tf.matmul(*pair, transpose_a=True) for pair in pairs])


def dropped(h: tf.Tensor, masks: Tensors) -> Tensors:
    """Returns the inputs of a recurrent kernel: h, or h times the mask of each gate."""
    return [h * mask for mask in masks] if masks else [h]


def recurrent_gradient(dz: tf.Tensor, transposed: Tensors, masks: Tensors) -> Any:
    """Returns the gradient of h from its products with the recurrent kernel.

    Args:
        dz: The gradients of the products, `(rows, gates * units)`.
        transposed: The parts of the recurrent kernel, each transposed.
        masks: As in `dropped()`.
    """
    if not masks:
        return tf.matmul(dz, *transposed)
    parts = zip(split_columns(dz, len(masks)), transposed, masks, strict=True)
    return tf.add_n([tf.matmul(part, kernel) * mask for part, kernel, mask in parts])


def split_columns(tensor: tf.Tensor, count: int) -> Tensors:
    """Splits a tensor `(rows, count * width)` into parts `(rows, width)`."""
    return [tensor] if count == 1 else tf.split(tensor, count, axis=1)


def _joined(parts: Tensors) -> Any:
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)
