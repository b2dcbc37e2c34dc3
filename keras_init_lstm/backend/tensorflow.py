"""The TensorFlow backend: graphs have unknown shapes, and run in any order."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_init_lstm.backend.base import Backend, called_by


class _TensorFlow(Backend):
    def is_symbolic(self, value: Any) -> bool:
        return tf.is_symbolic_tensor(value) or super().is_symbolic(value)

    def as_tensor(self, value: Any) -> tf.Tensor:
        # `keras.ops.convert_to_tensor()` returns a TensorFlow variable unchanged.
        return tf.convert_to_tensor(value)

    def with_shape(
        self, tensor: tf.Tensor, shape: Sequence[Any], expectation: str
    ) -> tf.Tensor:
        # Operations on the result of `ensure_shape` wait for it, even under XLA, which
        # drops assertions. Its error shows only the name of the node.
        name = re.sub(r"\W+", "_", expectation).strip("_")
        known = [size if isinstance(size, int) else None for size in shape]
        tensor = tf.ensure_shape(tensor, known, name)
        if not any(tf.is_tensor(size) for size in shape):
            return tensor
        sizes = tf.shape(tensor)
        fits = [sizes[i] == size for i, size in enumerate(shape) if tf.is_tensor(size)]
        message = f"{expectation} Received: a tensor of shape"
        assertion = tf.debugging.Assert(tf.reduce_all(fits), [message, sizes])
        with tf.control_dependencies([assertion]):
            return tf.identity(tensor)

    def replica_id(self) -> Any:
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return 0
        return context.replica_id_in_sync_group

    def after(self, value: Any, function: Callable[[], None]) -> None:
        with tf.control_dependencies([value]):
            function()

    def trackable(self, variables: dict[str, Sequence[keras.Variable]]) -> tf.Module:
        # `tf.train.Checkpoint` and SavedModel find variables by the attributes of a
        # module, such as `h0`.
        module = tf.Module()
        for name, keras_variables in variables.items():
            # Keras may defer the creation of the variables of TensorFlow.
            values = [v.value for v in keras_variables]
            values = [v for v in values if isinstance(v, tf.Variable)]
            setattr(module, name, values)
        return module

    def recomputes(self) -> bool:
        # `tf.recompute_grad` returns the function `inner`.
        return called_by("tensorflow.python.ops.custom_gradient.inner")

    def traces_for_onnx(self) -> bool:
        return tf.inside_function() and super().traces_for_onnx()


backend = _TensorFlow()
