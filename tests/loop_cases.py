"""Batches, and what is computed from them, for the tests of the fused loops."""

import keras

from backends import tf
from models import FEATURES, UNITS, normal
from oracles import gradients, to_numpy

TIMESTEPS = 10  # The fused loop does not run for fewer than 8.


def batch(rows=4, timesteps=TIMESTEPS):
    return normal(rows, timesteps, FEATURES)


def gradients_by_weights_and_inputs(layer, x, states=None, order=1, **kwargs):
    x = keras.ops.cast(x, layer.compute_dtype)
    watched = [x, *(w.value for w in layer.cell.weights)]
    kwargs |= {} if states is None else {"initial_state": states}
    return gradients(lambda: layer(x, **kwargs), watched, order)


def repeatedly(call, x):
    """A loop of TensorFlow that adds up the results of three calls."""
    start = tf.zeros((len(x), UNITS))
    return tf.while_loop(
        lambda i, _: i < 3, lambda i, y: (i + 1, y + call(x)), (0, start)
    )


def outcome(call):
    """The result of a call, or the class of its error."""
    try:
        return to_numpy(call())
    except Exception as error:
        return type(error)
