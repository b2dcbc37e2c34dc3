"""When the faster loop runs in the place of Keras's, and how it is fed."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_init_lstm._keras import infers_shapes
from keras_init_lstm.backend.base import NotFusedError, Restarts
from keras_init_lstm.loops import tensorflow_export as swapped
from keras_init_lstm.loops.cells import FusedCell, FusedGRU, FusedLSTM, FusedSimpleRNN
from keras_init_lstm.loops.tensorflow_loop import has_room_for, rounded_up, run

# With fewer, the loop is too small a part of a step for its compilation to pay.
_FEWEST_TIMESTEPS = 8


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


def inner_loop(
    layer: keras.layers.RNN,
    sequences: tf.Tensor,
    initial_state: Any,
    mask: Any,
    training: bool,
    plain: Callable[..., Any],
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """Does what the `inner_loop` of Keras does, for the layers it is made for.

    Args:
        layer: An `InitStateLSTM`, `InitStateGRU` or `InitStateSimpleRNN`. Where its
            `use_fused` is not True, the loop runs only where it is known to win.
        sequences: A tensor `(batch, timesteps, features)`.
        initial_state: The states, each `(batch, units)`, in a list or nested.
        mask: A tensor `(batch, timesteps)`, a list of it, or `None`; or `Restarts`.
        training: Python boolean.
        plain: Keras's own `inner_loop`, for a graph that may be an export.

    Returns:
        The last output, all outputs, and the list of the last states.

    Raises:
        NotFusedError: If Keras's loop has to run, or is to be preferred.
    """
    # Variables too are taken for tensors by Keras.
    states = list(map(tf.convert_to_tensor, keras.tree.flatten(initial_state)))
    restarts = Restarts.of(mask)
    check_runs(layer, sequences, restarts.mask, training, [*states, *restarts.starts])
    inputs = (
        tf.convert_to_tensor(sequences),
        states,
        restarts._replace(mask=_one_mask(restarts.mask)),
    )
    if not _may_be_an_export(layer, training):
        return _run(layer, *inputs, training)
    # Where a gradient is asked for, the plain loop runs.
    faster = functools.partial(_run, layer, training=False, differentiable=False)
    return swapped.run(plain, faster, layer.cell.weights, *inputs)


def _run(
    layer: keras.layers.RNN,
    sequences: tf.Tensor,
    states: Sequence[tf.Tensor],
    restarts: Restarts,
    training: bool,
    differentiable: bool = True,
) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    mask = restarts.mask
    cell = layer.cell
    if training and cell.dropout:
        sequences *= cell.get_dropout_mask(sequences[:, 0])[:, None]
    elif isinstance(layer, keras.layers.SimpleRNN):
        # That of Keras draws at inference too, and what is drawn later depends on it.
        cell.get_dropout_mask(sequences[:, 0])
        cell.get_recurrent_dropout_mask(states[0])
    if mask is not None:
        # One row may stand for all.
        mask = tf.broadcast_to(tf.cast(mask, "bool"), tf.shape(sequences)[:2])
        restarts = restarts._replace(mask=mask)
    if layer.go_backwards:
        sequences, restarts = _each(lambda t: tf.reverse(t, [1]), sequences, restarts)
    mask, reset_mask, _ = restarts
    outputs = run(
        _cell_of(layer),
        *_with_few_timesteps(sequences, restarts),
        states,
        tf.convert_to_tensor(cell.kernel),
        tf.convert_to_tensor(cell.recurrent_kernel),
        tf.convert_to_tensor(cell.bias) if cell.use_bias else None,
        training=bool(training),
        return_sequences=layer.return_sequences,
        differentiable=differentiable,
    )
    states = outputs[-len(states) :]
    # The last state is the last output.
    wanted = states[0][:, None]
    if layer.return_sequences:
        wanted = outputs[0][:, : sequences.shape[1]]
    if mask is not None:
        # What Keras puts out where nothing was read: the output before, if any.
        read = mask
        if not layer.zero_output_for_mask:
            read = _read_so_far(mask, reset_mask) > 0
        if not layer.return_sequences:
            read = read[:, -1:]
        wanted = tf.where(read[:, :, None], wanted, tf.zeros_like(wanted))
    return wanted[:, -1], wanted, states


def _cell_of(layer: keras.layers.RNN) -> FusedCell:
    if isinstance(layer, keras.layers.LSTM):
        return FusedLSTM()
    if isinstance(layer, keras.layers.GRU):
        return FusedGRU(layer.cell.reset_after)
    return FusedSimpleRNN()


def check_runs(
    layer: keras.layers.RNN,
    sequences: tf.Tensor,
    mask: Any,
    training: bool,
    states: Sequence[tf.Tensor] = (),
) -> None:
    """Raises a `NotFusedError` if `inner_loop()` would, with the reason.

    `states` are those that rows start and restart from.
    """
    sequences, mask = tf.convert_to_tensor(sequences), _one_mask(mask)
    watchers = _watchers()
    if watchers is None:
        raise NotFusedError("a TensorFlow that does not tell who watches operations")
    is_debugged, tangents_of = watchers
    debugged = is_debugged()
    cell, sigmoid = layer.cell, keras.activations.sigmoid
    drops = training and cell.dropout
    weights = list(map(tf.convert_to_tensor, cell.weights))
    refusals = {
        "the debugging of every operation, of which XLA knows nothing": debugged,
        # Not asked while debugging, since the answer is kept.
        "a GPU, or a TensorFlow without XLA": not (debugged or available()),
        "activations other than tanh and sigmoid": (
            cell.activation is not keras.activations.tanh
            or getattr(cell, "recurrent_activation", sigmoid) is not sigmoid
        ),
        "unroll=True": layer.unroll,
        "use_cudnn=True": getattr(layer, "use_cudnn", False) is True,
        "recurrent_dropout": training and cell.recurrent_dropout,
        "dropout with implementation=1": drops
        and (
            getattr(cell, "implementation", 2) == 1
            or hasattr(cell, "dropout_mask_count")
        ),
        "dropout=1.0": drops and cell.dropout >= 1,
        f"inputs of dtype {sequences.dtype.name}": (
            sequences.dtype != layer.compute_dtype
        ),
        "weights that are not cast to the dtype of the layer": any(
            weight.dtype != sequences.dtype for weight in weights
        ),
        "a mask that is not known to be (batch, timesteps)": (
            mask is not None
            and (mask.shape.rank != 2 or not _has_rows_for(mask, sequences))
        ),
        "forward-mode differentiation": bool(
            tangents_of([sequences, *states, *weights]).tangents
        ),
    }
    if layer.use_fused is not True:
        features, units = sequences.shape[2], cell.units
        refusals |= {
            "few or an unknown number of timesteps": (
                (sequences.shape[1] or 0) < _FEWEST_TIMESTEPS
            ),
            "16-bit floating point": layer.compute_dtype not in ("float32", "float64"),
            "a call for the shapes alone": infers_shapes(),
            "ever more sizes of layers": not has_room_for(
                _cell_of(layer), features, units
            ),
            "draws at inference, in what may be an export": (
                isinstance(layer, keras.layers.SimpleRNN)
                and (cell.dropout or cell.recurrent_dropout)
                and _may_be_an_export(layer, training)
            ),
        }
    for reason, applies in refusals.items():
        if applies:
            raise NotFusedError(reason)


def _may_be_an_export(layer: keras.layers.RNN, training: bool) -> bool:
    """Whether what is traced may be written to a file, where it has to be plain.

    An exporter traces like the user of a `tf.function`, and would find no LSTM in a
    compiled loop.
    """
    if layer.use_fused is True or training or not tf.inside_function():
        return False
    # Keras's `evaluate` and `predict` trace within a replica, for which Keras makes a
    # context also where no strategy is in use.
    context = tf.distribute.get_replica_context()
    in_keras = type(context) is tf.distribute.ReplicaContext or (
        context is not None and tf.distribute.has_strategy()
    )
    return not in_keras


def _one_mask(mask: Any) -> tf.Tensor | None:
    """A mask by itself, that Keras may hand on in a list."""
    mask = next(iter(keras.tree.flatten(mask)), None)
    return None if mask is None else tf.convert_to_tensor(mask)


def _has_rows_for(mask: tf.Tensor, sequences: tf.Tensor) -> bool:
    rows, timesteps = mask.shape
    batch_size = sequences.shape[0]
    # One row may stand for all.
    fits = rows in (1, batch_size) or None in (rows, batch_size)
    return fits and timesteps == sequences.shape[1]


@functools.cache
def _watchers() -> tuple[Callable[..., Any], ...] | None:
    """What tells whether operations are debugged, and which tensors have tangents.

    TensorFlow has no public way to ask. `None` if it has these no more.
    """
    try:
        from tensorflow.python.eager.forwardprop_util import pack_tangents
        from tensorflow.python.framework.op_callbacks import should_invoke_op_callbacks
    except ImportError:
        return None
    return should_invoke_op_callbacks, pack_tangents


def _read_so_far(mask: tf.Tensor, reset_mask: tf.Tensor | None) -> tf.Tensor:
    """How many timesteps of its piece are read, `(batch, timesteps)`."""
    mask = tf.cast(mask, "int32")
    read = tf.cumsum(mask, axis=1)
    if reset_mask is None:
        return read
    # Of all pieces of all rows: what was read of the row before each began.
    rows, timesteps = tf.unstack(tf.shape(mask))
    pieces = tf.cumsum(tf.cast(reset_mask, "int32"), axis=1)
    pieces += tf.range(rows)[:, None] * (timesteps + 1)
    before = tf.math.unsorted_segment_min(read - mask, pieces, rows * (timesteps + 1))
    return read - tf.gather(before, pieces)


def _each(
    change: Callable[[tf.Tensor], tf.Tensor], sequences: tf.Tensor, restarts: Restarts
) -> tuple[tf.Tensor, Restarts]:
    """Changes all that has a time axis."""
    mask, reset_mask, starts = restarts
    return change(sequences), Restarts(
        None if mask is None else change(mask),
        None if reset_mask is None else change(reset_mask),
        [change(start) if start.shape.rank == 3 else start for start in starts],
    )


def _with_few_timesteps(
    sequences: tf.Tensor, restarts: Restarts
) -> tuple[tf.Tensor, Restarts]:
    """Pads an eager batch, so that many different lengths need few compilations.

    What is added is masked. In a graph the length stays: there each one is traced
    anyway, and only once.
    """
    timesteps = sequences.shape[1]
    missing = 0 if tf.inside_function() else rounded_up(timesteps) - timesteps
    if missing:
        if restarts.mask is None:
            restarts = restarts._replace(mask=tf.ones(sequences.shape[:2], "bool"))

        def pad(tensor: tf.Tensor) -> tf.Tensor:
            return tf.pad(tensor, [[0, 0], [0, missing], [0, 0]][: tensor.shape.rank])

        return _each(pad, sequences, restarts)
    return sequences, restarts
