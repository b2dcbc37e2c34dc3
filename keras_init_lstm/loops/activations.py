"""The activations that the fused cells of TensorFlow compute, and their derivatives."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import tensorflow as tf

# Returns the values and the derivatives. At the kinks the derivatives are the ones of
# TensorFlow. The operations are the ones of Keras, so second derivatives agree too.
Function: TypeAlias = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation of Keras.

    Attributes:
        function: Computes the values and the derivatives from a tensor times `scale`.
        scale: The factor that the weights are multiplied by before the loop. A sigmoid
            is computed as `s(z) = tanh(z / 2) / 2 + 1 / 2`, because XLA vectorises a
            tanh. Halving the weights of its gate is exact.
        is_bounded: Whether the states stay finite for any number of timesteps.
    """

    function: Function
    scale: float = 1.0
    is_bounded: bool = True

    def of(self, tensor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the values and the derivatives of a tensor that is not scaled."""
        return self.function(tensor if self.scale == 1 else self.scale * tensor)


def of_gates(
    names: Sequence[str], gates: tf.Tensor
) -> tuple[Sequence[tf.Tensor], tf.Tensor]:
    """Computes the activations of concatenated gates.

    Args:
        names: The name of the activation of each gate.
        gates: Tensor `(rows, gates * units)`. Each gate is multiplied by the scale of
            its activation.

    Returns:
        The list of the values of each gate, and the concatenated derivatives.
    """
    if len(set(names)) == 1:
        values, slopes = ACTIVATIONS[names[0]].function(gates)
        return tf.split(values, len(names), axis=1), slopes
    parts = len(names)
    if set(names) == {"tanh", "sigmoid"}:
        # Compute one tanh for all gates.
        tanh, is_sigmoid = tf.tanh(gates), [name == "sigmoid" for name in names]
        values = [
            _sigmoid_of(part) if sigmoid else part
            for part, sigmoid in zip(
                tf.split(tanh, parts, axis=1), is_sigmoid, strict=True
            )
        ]
        steepest = [0.25 if sigmoid else 1.0 for sigmoid in is_sigmoid]
        slopes = tf.repeat(tf.constant(steepest, gates.dtype), gates.shape[1] // parts)
        return values, slopes - slopes * tanh * tanh
    pairs = zip(names, tf.split(gates, parts, axis=1), strict=True)
    results = [ACTIVATIONS[name].function(part) for name, part in pairs]
    return [values for values, _ in results], tf.concat([s for _, s in results], axis=1)


def _sigmoid_of(tanh_of_half: tf.Tensor) -> tf.Tensor:
    return 0.5 * tanh_of_half + 0.5


def _computed_once(z: tf.Tensor) -> tf.Tensor:
    """Returns the same tensor in a way that makes XLA write it to memory.

    XLA recomputes a cheap operation, and its inputs, wherever its result is used. Here
    that takes twice as long. XLA does not regard a division by an unknown number as
    cheap. The number is 1.
    """
    return z / tf.maximum(tf.cast(z[:1, :1] > 0, z.dtype), 1)


def _tanh(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    y = tf.tanh(z)
    return y, 1 - y * y


def _sigmoid(half: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    y = _sigmoid_of(tf.tanh(half))
    return y, y * (1 - y)


def _relu(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    z = _computed_once(z)
    y = tf.nn.relu(z)
    return y, tf.cast(y > 0, z.dtype)


def _linear(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    z = _computed_once(z)
    return z, tf.ones_like(z)


def _hard_sigmoid(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    z = _computed_once(z)
    y = tf.nn.relu6(z + 3)
    return y / 6, tf.cast((y > 0) & (y < 6), z.dtype) / 6


def _hard_sigmoid_of_keras2(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    z = _computed_once(z)
    y = tf.clip_by_value(0.2 * z + 0.5, 0, 1)
    # Not from y: XLA rounds once where the function of Keras 2 rounds twice.
    return y, 0.2 * tf.cast((z >= -2.5) & (z <= 2.5), z.dtype)


def _hard_tanh(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    z = _computed_once(z)
    y = tf.clip_by_value(z, -1, 1)
    return y, tf.cast((z >= -1) & (z <= 1), z.dtype)


def _softsign(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    slope = 1 / (1 + tf.abs(z))
    return tf.nn.softsign(z), slope * slope


def _silu(z: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    sigmoid = tf.sigmoid(z)
    return z * sigmoid, sigmoid * (1 + z * (1 - sigmoid))


# By their names in Keras, or the names that Keras's files have for custom functions.
ACTIVATIONS = {
    "tanh": Activation(_tanh),
    "sigmoid": Activation(_sigmoid, scale=0.5),
    "relu": Activation(_relu, is_bounded=False),
    "linear": Activation(_linear, is_bounded=False),
    "hard_sigmoid": Activation(_hard_sigmoid),
    "keras_init_lstm>hard_sigmoid_of_keras2": Activation(_hard_sigmoid_of_keras2),
    "hard_tanh": Activation(_hard_tanh),
    "softsign": Activation(_softsign),
    "silu": Activation(_silu, is_bounded=False),
}
