"""Keras's loop in a user's graph, for which Grappler substitutes the fused loop."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_init_lstm.loops.call import InPlaceOfMask


def substitute(
    plain: Callable[..., Any],
    fused: Callable[..., Any],
    weights: Sequence[keras.Variable],
    sequences: Any,
    initial_state: Sequence[Any],
    in_place_of_mask: InPlaceOfMask,
) -> Any:
    """Puts a plain loop into the traced graph, and lets the fused loop run.

    A traced `tf.function` may run, or be written to a file, or both. At the trace it is
    unknown which loop it should hold. When TensorFlow prepares a graph to run, its
    graph optimizer (Grappler) replaces a function by another one that is marked as an
    implementation of the same interface; Keras 2 used this for cuDNN. Grappler finds
    the fused function among all functions of the process. A file holds only the
    functions that its graph calls, and the graph calls the plain one. If a gradient is
    taken, the plain loop runs forwards and backwards.

    Args:
        plain: A function of sequences, the list of states, and a mask, `None` or
            `InPlaceOfMask`. It may also read `weights`, and no other tensor.
        fused: A function with the same arguments. Its mask is always an
            `InPlaceOfMask`. It returns the same structure and dtypes.
        weights: The variables that both functions read.
        sequences: A tensor `(batch, timesteps, features)`.
        initial_state: The states, each `(batch, units)`.
        in_place_of_mask: The mask, and the resets, if any.

    Returns:
        The results of `plain`.
    """
    structure = ([*weights], sequences, [*initial_state], in_place_of_mask)
    inputs = tf.nest.flatten(structure)
    tensors = [tf.convert_to_tensor(each) for each in inputs if each is not None]

    def of_tensors(loop: Callable[..., Any], *tensors: tf.Tensor) -> Any:
        given = iter(tensors)
        values, *arguments = tf.nest.pack_sequence_as(
            structure, [None if each is None else next(given) for each in inputs]
        )
        mapping = zip(weights, values, strict=True)
        with keras.StatelessScope(mapping, initialize_variables=False):
            return loop(*arguments)

    # Files hold this name too. No function of another process may have the same name.
    name = f"keras_init_lstm_{uuid.uuid4().hex}"

    @tf.function(
        autograph=False,
        experimental_attributes={
            "api_implements": name,
            "api_preferred_device": "CPU",
        },
    )
    def in_the_process(*tensors: tf.Tensor) -> Any:
        return of_tensors(fused, *tensors)

    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tensors]
    with tf.init_scope():
        registered = in_the_process.get_concrete_function(*specs)

    @tf.function(autograph=False, experimental_attributes={"api_implements": name})
    def in_the_graph(*tensors: tf.Tensor) -> Any:
        # Keep the function alive: TensorFlow frees it together with its Python object.
        tf.compat.v1.get_default_graph().add_to_collection(name, registered)
        return of_tensors(plain, *tensors)

    return in_the_graph(*tensors)
