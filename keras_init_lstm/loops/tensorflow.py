"""The fused loop of TensorFlow: when XLA runs it on the CPU, and its inputs."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_init_lstm.backend import NotFusedError, backend
from keras_init_lstm.loops.activations import ACTIVATIONS
from keras_init_lstm.loops.call import Call
from keras_init_lstm.loops.cells import FusedCell, FusedGRU, FusedLSTM, FusedSimpleRNN
from keras_init_lstm.loops.tensorflow_export import substitute
from keras_init_lstm.loops.tensorflow_loop import has_room_for, rounded_up, run_loop

__all__ = ["check", "may_be_exported", "run", "substitute", "why_slower"]

# With fewer, the loop is too small a part of a step for its compilation to pay.
_FEWEST_TIMESTEPS = 8
# In a graph for any number of timesteps, XLA takes 0.8 s for each length that it meets.
# From this number of units on, training steps are fast enough to make up for it after
# some 300 steps.
_FEWEST_UNITS_FOR_ANY_LENGTH = 256


@functools.cache
def available() -> bool:
    """Whether XLA compiles for the CPU here, and there is no GPU to prefer."""
    if tf.config.list_logical_devices("GPU"):
        return False
    try:
        with tf.init_scope():
            tf.function(lambda: tf.zeros(()) + 1, jit_compile=True)()
    except (tf.errors.OpError, ValueError):
        return False
    return True


def check(call: Call) -> None:
    """Raises a `NotFusedError`, with the reason, where `run()` cannot run a call."""
    names = ("activation", "recurrent_activation")
    for name, activation in ((name, getattr(call, name)) for name in names):
        if activation not in ACTIVATIONS:
            raise NotFusedError(f"{name}={activation}")
    if backend.traces_for_onnx():
        raise NotFusedError("an export to ONNX")
    watchers = _watchers()
    if watchers is None:
        raise NotFusedError("a TensorFlow that does not tell who watches operations")
    is_debugged, tangents_of = watchers
    if is_debugged():
        raise NotFusedError("the debugging of every operation, which XLA would bypass")
    if not available():
        raise NotFusedError("a GPU, or a TensorFlow without XLA")
    tensors = [call.sequences, *call.states, *call.states_after_reset, *call.weights]
    if tangents_of(tensors).tangents:
        raise NotFusedError("forward-mode differentiation")


def why_slower(call: Call) -> str | None:
    """Why Keras's loop is to be preferred, or `None`."""
    _, timesteps, features = call.sequences.shape
    units = call.recurrent_kernel.shape[0]
    if timesteps is None:
        if not call.training or units < _FEWEST_UNITS_FOR_ANY_LENGTH:
            return "an unknown number of timesteps"
    elif timesteps < _FEWEST_TIMESTEPS:
        return "few timesteps"
    if call.sequences.dtype not in (tf.float32, tf.float64):
        return "16-bit floating point"
    if not has_room_for(_cell_of(call), features, units):
        return "ever more sizes of layers"
    return None


def may_be_exported(call: Call) -> bool:
    """Whether the traced graph may be written to a file, which needs Keras's loop.

    An exporter traces in the same way as a user's `tf.function`. It finds no LSTM in a
    compiled loop.
    """
    if call.training or not tf.inside_function():
        return False
    # Keras's `evaluate` and `predict` trace within a replica context, also without a
    # distribution strategy.
    context = tf.distribute.get_replica_context()
    in_keras = type(context) is tf.distribute.ReplicaContext or (
        context is not None and tf.distribute.has_strategy()
    )
    return not in_keras


def run(call: Call) -> tuple[Any, tf.Tensor, list[tf.Tensor]]:
    """Runs a call that `check()` does not refuse.

    Returns:
        All outputs `(batch, timesteps, units)`, or `None` if they are not wanted; the
        last output `(batch, units)`; and the list of the last states.
    """
    timesteps = _timesteps(call)
    results = run_loop(_cell_of(call), _with_few_lengths(call))
    states = results[-len(call.states) :]
    outputs = results[0][:, :timesteps] if call.wants_outputs else None
    return outputs, states[0], states


def _cell_of(call: Call) -> FusedCell:
    activations = (call.activation, call.recurrent_activation)
    if call.cell == "lstm":
        return FusedLSTM(*activations)
    if call.cell == "gru":
        return FusedGRU(*activations, call.reset_after)
    return FusedSimpleRNN(*activations)


@functools.cache
def _watchers() -> tuple[Callable[..., Any], ...] | None:
    """Returns private functions of TensorFlow, or `None` if it does not have them.

    The first tells whether operations are debugged, the second which tensors have
    tangents. No public function tells.
    """
    try:
        from tensorflow.python.eager.forwardprop_util import pack_tangents
        from tensorflow.python.framework.op_callbacks import should_invoke_op_callbacks
    except ImportError:
        return None
    return should_invoke_op_callbacks, pack_tangents


def _timesteps(call: Call) -> Any:
    """Returns the number of timesteps, a tensor if it is not known."""
    timesteps = call.sequences.shape[1]
    return tf.shape(call.sequences)[1] if timesteps is None else timesteps


def _with_few_lengths(call: Call) -> Call:
    """Pads a batch with masked timesteps, so that XLA compiles for few lengths.

    A graph for one length is not padded: each length is traced anyway, and only once.
    """
    timesteps = _timesteps(call)
    if isinstance(timesteps, int) and (
        tf.inside_function() or timesteps == rounded_up(timesteps)
    ):
        return call
    missing = rounded_up(timesteps) - timesteps
    if call.mask is None:
        call = call.replace(mask=tf.ones(tf.shape(call.sequences)[:2], "bool"))

    def pad(tensor: tf.Tensor) -> tf.Tensor:
        return tf.pad(tensor, [[0, 0], [0, missing], [0, 0]][: tensor.shape.rank])

    return call.with_each_sequence(pad)
