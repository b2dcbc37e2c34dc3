"""Calls of layers on TensorFlow, and of its op `BlockLSTMV2`."""

import keras
import tensorflow as tf

# Both are private. No public API tells what the optimizer has made of a graph.
from tensorflow.python.eager import context
from tensorflow.python.ops import rnn_grad  # noqa: F401  Registers the gradient.

from benchmarks.speed.contenders import TRAINING
from benchmarks.speed.runs import call_run, on_gpu

NATIVE = "BlockLSTM"
COMPILED = "XLA"


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
    """Returns the ops that ran the sequences, or `COMPILED` for what XLA compiled.

    They are read from the graph that TensorFlow runs: its optimizer may have replaced
    the loop of the traced graph.
    """
    function, arguments = run.graph.func.__self__.python_function, run.graph.keywords
    eager = context.context()
    eager.enable_graph_collection()
    tf.function(function)(*run.graph.args, **arguments)  # It records a new function.
    graphs = eager.export_run_metadata().function_graphs
    eager.disable_graph_collection()
    found = set()
    for node in (n for g in graphs for n in g.post_optimization_graph.node):
        if "PartitionedCall" in node.op:
            found |= {COMPILED} if _is_compiled(node) else set()
        elif any(name in node.op for name in ("BlockLSTM", "Cudnn", "While")):
            found.add(node.op)
        elif node.op == "Enter":  # TensorFlow has lowered a `While`.
            found.add("While")
    return sorted(found)


def _is_compiled(node):
    """Whether XLA compiles the function that a node calls, or one that this calls."""
    name = node.attr["f"].func.name.partition("_specialized_for_")[0]
    called = context.context().get_function_def(name)
    return called.attr["_XlaMustCompile"].b or any(
        _is_compiled(inner) for inner in called.node_def if "Partitioned" in inner.op
    )


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
