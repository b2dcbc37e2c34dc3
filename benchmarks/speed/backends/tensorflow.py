"""Calls of layers on TensorFlow, and of its op `BlockLSTMV2`."""

import keras
import tensorflow as tf
from tensorflow.python.ops import rnn_grad  # noqa: F401  Registers the gradient.

from benchmarks.speed.contenders import TRAINING
from benchmarks.speed.graphs import sequence_ops
from benchmarks.speed.runs import call_run, on_gpu

NATIVE = "BlockLSTM"


def device():
    """Returns "GPU" or "CPU"."""
    return "GPU" if on_gpu() else "CPU"


def make_run(layer, action, x, **masks):
    """Returns the run of a call of a built layer in a `tf.function`."""
    return call_run(layer, layer, TRAINING._replace(action=action), x, **masks)


def native_run(shape, mode, x, y):  # noqa: ARG001
    """Returns the run of `BlockLSTMV2`, or `None` where TensorFlow has no such op."""
    if mode.cell != "LSTM" or mode.action == "fit" or on_gpu():
        return None
    layer = BlockLSTM(shape.units)
    layer.build(x.shape)
    return make_run(layer, mode.action, x)


def kernels(run):
    """Returns the ops that ran the sequences, as the graph of the run names them."""
    return sequence_ops(run.graph())


class BlockLSTM(keras.layers.Layer):
    """An LSTM with learned initial states that runs TensorFlow's op for a CPU.

    Args:
        units: The units of the LSTM.
    """

    def __init__(self, units):
        super().__init__()
        self.units = units

    def build(self, shape):
        features = shape[-1]
        self.kernel = self.add_weight(shape=(features + self.units, 4 * self.units))
        self.bias = self.add_weight(shape=(4 * self.units,), initializer="zeros")
        self.h0, self.c0 = (
            self.add_weight(shape=(self.units,), initializer="zeros") for _ in "hc"
        )
        self.peephole = tf.zeros(self.units)  # The op reads it, and multiplies by it.

    def call(self, x, training=False):
        batch_size, timesteps = tf.shape(x)[0], tf.shape(x)[1]
        h, c = (
            tf.broadcast_to(state.value, (batch_size, self.units))
            for state in (self.h0, self.c0)
        )
        outputs = tf.raw_ops.BlockLSTMV2(
            seq_len_max=tf.cast(timesteps, tf.int64),
            x=tf.transpose(x, (1, 0, 2)),
            cs_prev=c,
            h_prev=h,
            w=self.kernel.value,
            wci=self.peephole,
            wcf=self.peephole,
            wco=self.peephole,
            b=self.bias.value,
        ).h
        return tf.transpose(outputs, (1, 0, 2))
