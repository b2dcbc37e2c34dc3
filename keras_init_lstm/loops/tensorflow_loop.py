"""A fused loop for the CPU: few large products around a small compiled loop.

The layers of Keras run a loop of TensorFlow operations, with several small products
and their gradients at each timestep. Here the products that do not depend on the state
are computed for all timesteps at once: the products with the kernel before the loop,
the gradients of the weights and of the input after it. XLA compiles the rest.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_init_lstm.loops.call import Call
from keras_init_lstm.loops.cells import FusedCell
from keras_init_lstm.loops.tensorflow_passes import (
    Masks,
    Program,
    backward,
    double_backward,
    forward,
    transpose_batch_time,
    with_time_first,
)

# XLA computes the gates on one core. If a state has a number of elements between these,
# the rows of a batch are split into blocks that run at the same time. With more
# elements, the products alone keep all cores busy at inference.
_FEWEST_FOR_BLOCKS, _MOST_FOR_BLOCKS = 1 << 11, 1 << 15
_MOST_BLOCKS = 4
# If the outputs have this number of elements or more, TensorFlow transposes batch and
# time outside of the compiled loop, because it uses all cores.
_MOST_FOR_XLA = 1 << 19
_USUAL_BATCH_SIZE = 32  # Used in a graph that does not know the batch size.
# XLA never frees a compiled program, which takes some 5 MiB for each size of a layer.
_MOST_SIZES = 64

_sizes: set[tuple[FusedCell, int, int]] = set()

_ROWS = np.array([1, 2, 3, *(n << k for k in range(28) for n in (4, 5, 6, 7))], "int32")


def has_room_for(cell: FusedCell, features: int, units: int) -> bool:
    """Whether a layer of this size is compiled, or few enough sizes are."""
    return (cell, features, units) in _sizes or len(_sizes) < _MOST_SIZES


def run_loop(cell: FusedCell, call: Call) -> list[tf.Tensor]:
    """Runs a cell over a batch of sequences, on the CPU.

    Without `training`, gradients are right too, but run the loop twice. With
    `differentiable`, TensorFlow never frees the graph of a trace.

    Args:
        cell: The cell of the call.
        call: The call.

    Returns:
        The outputs `(batch, timesteps, units)`, if they are wanted, and the last
        states, each `(batch, units)`.

    Example:
    >>> from keras_init_lstm.loops import call, cells, tensorflow_loop
    >>> cell = keras.layers.SimpleRNNCell(4)
    >>> cell.build((None, 3))
    >>> weights = [weight.value for weight in cell.weights]
    >>> x, zeros = tf.ones((2, 5, 3)), tf.zeros((2, 4))
    >>> simple = call.Call("simple_rnn", x, [zeros], *weights)
    >>> hs, h = tensorflow_loop.run_loop(cells.FusedSimpleRNN(), simple)
    >>> tuple(hs.shape), tuple(h.shape)
    ((2, 5, 4), (2, 4))
    """
    sequences, states, bias, states_after_reset = (
        call.sequences,
        call.states,
        call.bias,
        call.states_after_reset,
    )
    training = call.training
    units = call.recurrent_kernel.shape[0]
    batch_size, timesteps, _ = sequences.shape
    features = call.kernel.shape[0]
    _sizes.add((cell, features, units))
    if bias is None:
        bias = tf.zeros(cell.bias_shape(units), sequences.dtype)
    size = (batch_size or _USUAL_BATCH_SIZE) * units
    in_graph, blocks = tf.inside_function(), 1
    most = float("inf") if training else _MOST_FOR_BLOCKS
    if in_graph and _FEWEST_FOR_BLOCKS <= size < most:
        threads = tf.config.threading.get_intra_op_parallelism_threads()
        blocks = min(threads or os.cpu_count() or 1, _MOST_BLOCKS)
    time_first = in_graph and size * (timesteps or 1) >= _MOST_FOR_XLA
    if batch_size is None:
        batch_size = tf.shape(sequences)[0]
    else:
        blocks = max(1, min(blocks, batch_size // 8))
    rows = rounded_up(-(-batch_size // blocks))
    missing = rows * blocks - batch_size
    may_be_padded = not (isinstance(missing, int) and missing == 0)

    def split(tensor: tf.Tensor) -> list[tf.Tensor]:
        if may_be_padded:
            tensor = tf.pad(tensor, [[0, missing]] + [[0, 0]] * (tensor.shape.rank - 1))
        if blocks == 1:
            return [tensor]
        return [tensor[rows * k : rows * (k + 1)] for k in range(blocks)]

    mask = call.mask
    if may_be_padded and mask is None and not cell.is_bounded:
        # An infinite state in the padding would make the gradients of weights NaN.
        mask = tf.ones(tf.shape(sequences)[:2], "bool")
    # Keras makes them from h, so a tape would differentiate the compiled function.
    recurrent_masks = map(tf.stop_gradient, call.recurrent_masks)
    program = Program(
        cell,
        features,
        (sequences.shape[2] or features) // features,
        units,
        training,
        call.wants_outputs,
        time_first,
        ranks=tuple(state.shape.rank for state in states_after_reset),
    )
    masks = map(
        Masks,
        *(
            [None] * blocks if each is None else split(each)
            for each in (mask, call.reset_mask)
        ),
        [*zip(*map(split, recurrent_masks), strict=True)] or [()] * blocks,
    )
    of_blocks = zip(
        masks, *map(split, [sequences, *states, *states_after_reset]), strict=True
    )
    weights = (call.kernel, call.recurrent_kernel, bias)
    results = [
        _block(program, call.differentiable, of_rows, [*inputs, *weights])
        for of_rows, *inputs in of_blocks
    ]
    outputs = [
        parts[0] if blocks == 1 else tf.concat(parts, 0)
        for parts in zip(*results, strict=True)
    ]
    if may_be_padded:
        outputs = [tensor[:batch_size] for tensor in outputs]
    # The compiled function forgets static shapes.
    shapes = [[sequences.shape[0], units]] * cell.states
    if call.wants_outputs:
        shapes.insert(0, [*sequences.shape[:2], units])
    return list(map(tf.ensure_shape, outputs, shapes))


def rounded_up(rows: Any) -> Any:
    """Returns the next of 1..8, 10, 12, 14, 16, 20, ...: XLA compiles for each size.

    With four sizes between a power of two and the next, batches of any size need few
    compilations, and are padded by less than a quarter.

    Args:
        rows: An integer, a scalar tensor, or `None` for an unknown number.
    """
    if rows is None:
        return None
    if isinstance(rows, int):
        return int(_ROWS[np.searchsorted(_ROWS, rows)])
    return tf.gather(_ROWS, tf.searchsorted(_ROWS, [rows])[0])


def _block(
    program: Program,
    differentiable: bool,
    masks: Masks,
    inputs: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    """Runs a block of rows, with the inputs of `forward()`, and defines gradients."""
    # A gradient can read tensors of its own graph and of the graph of the loop. The
    # inputs of a branch of `tf.cond` may belong to a third graph.
    masks, inputs = _read(masks), _read(inputs)
    if program.time_first:
        masks, inputs = with_time_first(masks, inputs)

    # TensorFlow has no other way to define the gradient of a function. The gradient can
    # be differentiated too, so it is a second such function inside the first.
    @tf.custom_gradient
    def run(*inputs: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        # Otherwise, a tape of the caller would differentiate the compiled function.
        stopped = [tf.stop_gradient(tensor) for tensor in inputs]
        outputs, saved = forward(program, masks, stopped)
        # A tape around a `tf.function` would do so too. For second derivatives, it asks
        # for the gradients of all tensors that the first gradient reads.
        saved = [tf.stop_gradient(tensor) for tensor in saved]

        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
            # A `tf.function` has a graph for each order of the gradient. Each can read
            # tensors only of the previous graph, and not of the graph of the loop. A
            # branch of `tf.cond` passes its gradient the inputs of operations, but not
            # the inputs of a compiled function.
            masks_read, inputs_read = _read(masks), _read(stopped)
            saved_read = _read(saved) if program.training else []

            @tf.custom_gradient
            def first(*tensors: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
                upstream = [
                    tf.stop_gradient(tensor) for tensor in tensors[len(inputs) :]
                ]
                residuals = saved_read
                if not program.training:
                    again = dataclasses.replace(program, training=True)
                    _, residuals = forward(again, masks_read, inputs_read)
                gradients = backward(
                    program, masks_read, inputs_read, residuals, upstream
                )
                return gradients, functools.partial(
                    double_backward, program, masks_read, tensors
                )

            return first(*map(tf.identity, inputs), *upstream)

        return outputs, gradient

    if differentiable:
        outputs = run(*inputs)
    else:
        outputs, _ = forward(program, masks, inputs)
    if program.sequences and program.time_first:
        outputs = [transpose_batch_time(outputs[0]), *outputs[1:]]
    return outputs


def _read(tensors: Any) -> Any:
    """Returns the same tensors; in a graph, as outputs of operations of this graph."""
    if not tf.inside_function():
        return tensors
    return tf.nest.map_structure(
        lambda tensor: None if tensor is None else tf.identity(tensor), tensors
    )
