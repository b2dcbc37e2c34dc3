"""TensorFlow: graphs, with unknown shapes, whose operations run in any order."""

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
        # Keras's own takes a variable for a tensor, and leaves it as it is.
        return tf.convert_to_tensor(value)

    def with_shape(
        self, tensor: tf.Tensor, shape: Sequence[Any], expectation: str
    ) -> tf.Tensor:
        # Whatever is made from the result of `ensure_shape` waits for it, also under
        # XLA, which leaves out assertions. What is wrong stands in its node's name.
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

    def after(self, value: Any, then: Callable[[], None]) -> None:
        with tf.control_dependencies([value]):
            then()

    def trackable(self, variables: dict[str, Sequence[keras.Variable]]) -> tf.Module:
        # `tf.train.Checkpoint` and SavedModel must know of every variable, and find
        # them by the names of attributes, here `h0` and so on.
        module = tf.Module()
        for name, of_state in variables.items():
            # None while Keras defers the creation of variables.
            values = [v.value for v in of_state if isinstance(v.value, tf.Variable)]
            setattr(module, name, values)
        return module

    def recomputes(self) -> bool:
        # `inner` is what `tf.recompute_grad` returns. A second call would also carry
        # a stream on by one more batch.
        return called_by("tensorflow.python.ops.custom_gradient.inner")

    def traces_for_onnx(self) -> bool:
        return tf.inside_function() and super().traces_for_onnx()


backend = _TensorFlow()
