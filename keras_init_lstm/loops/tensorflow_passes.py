"""The passes over a block of rows: forward, backward, and the gradient of backward.

XLA compiles the forward pass and the loop of the backward pass, once for each size of a
layer.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_init_lstm.loops.cells import FusedCell
from keras_init_lstm.loops.products import (
    dropped,
    inputs_gradient,
    kernel_gradient,
    product,
    split_columns,
)


class Masks(NamedTuple):
    """The masks of a `Call`, for all rows or for a block, with batch or time first."""

    mask: Any = None
    reset_mask: Any = None
    recurrent_masks: Sequence[tf.Tensor] = ()


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that is compiled for layers of one size and any batch.

    Attributes:
        inputs: The number of inputs of the kernel, which are concatenated: one for
            each gate if dropout draws a mask for each gate, else one.
        training: Whether the residuals are returned too.
        sequences: Whether all outputs are returned, and not only the last states.
        time_first: Whether the shapes of sequences and outputs begin with `timesteps`.
        ranks: The ranks of the states after a reset. Once TensorFlow has seen two
            ranks, it would trace for an unknown one.
    """

    cell: FusedCell
    features: int
    inputs: int
    units: int
    training: bool
    sequences: bool
    time_first: bool
    ranks: tuple[int, ...]

    @property
    def caller_keeps_input_and_outputs(self) -> bool:
        """Whether the program returns neither its input nor its outputs as residuals.

        XLA would copy an input that is returned, and an output that is returned twice.
        """
        return self.time_first and self.sequences


def forward(
    program: Program, masks: Masks, inputs: Sequence[tf.Tensor]
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Runs all timesteps, compiled.

    Args:
        program: The program.
        masks: The masks.
        inputs: The sequences, the states, the states after a reset, if there are any,
            the kernel, the recurrent kernel and the bias.

    Returns:
        The list of all outputs, if they are wanted, and the last states. And what
        `backward()` reads, if `program.training`.
    """
    outputs, residuals = _compiled(_forward, program)(masks, *inputs)
    if program.training and program.caller_keeps_input_and_outputs:
        residuals = [inputs[0], outputs[0], *residuals]
    return outputs, residuals


@functools.cache
def _compiled(function: Callable, program: Program) -> Any:
    """Returns one function for each size of a layer, so that batches share a trace."""
    compiled = tf.function(
        functools.partial(function, program),
        jit_compile=True,
        autograph=False,
        reduce_retracing=True,
    )
    # It is traced some six times: with and without a mask, and until TensorFlow sees
    # that batch and timesteps vary. TensorFlow would warn the user.
    compiled._omit_frequent_tracing_warning = True
    return compiled


def _forward(
    program: Program,
    masks: Masks,
    *inputs: Any,
    loop: Callable | None = None,
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """Runs all timesteps, with the inputs and outputs of `forward()`.

    What `backward()` reads has time first: the sequences and all outputs, unless the
    caller keeps them, and the residuals of the cell.
    """
    cell, loop = program.cell, loop or _loop
    if not program.time_first:
        masks, inputs = with_time_first(masks, inputs)
    x, *states, kernel, recurrent_kernel, bias = inputs
    states, states_after_reset = states[: cell.states], states[cell.states :]
    reset_states_at = [
        s if s.shape.rank == 2 else _tensor_array(s) for s in states_after_reset
    ]
    timesteps, rows, features = (x.shape[k] or tf.shape(x)[k] for k in range(3))
    units = recurrent_kernel.shape[0]
    scales = tf.constant(np.repeat(cell.scales, units), x.dtype)
    recurrent_kernels = cell.recurrent_kernels(
        recurrent_kernel * scales, masks.recurrent_masks
    )
    bias *= scales
    x_of_gates = split_columns(tf.reshape(x, [-1, features]), program.inputs)
    z = product(x_of_gates, split_columns(kernel * scales, program.inputs))
    z = _tensor_array(tf.reshape(z, [timesteps, rows, len(cell.scales) * units]))
    mask_at, reset_at = _columns(masks.mask), _columns(masks.reset_mask)
    # An array for each, because an eager write changes the array.
    arrays = [
        tf.TensorArray(x.dtype, timesteps, element_shape=[x.shape[1], units])
        for _ in range(cell.num_residuals if program.training else program.sequences)
    ]

    # Carry these residuals, so that XLA writes them to memory at each timestep.
    # Otherwise it recomputes some gates wherever they are used, which is slower.
    materialized = (
        [] if program.training else [tf.zeros_like(states[0])] * cell.num_materialized
    )
    first_array = cell.states + len(materialized)

    def step(t: Any, *carried: Any) -> tuple:
        states, (z, *arrays) = [*carried[: cell.states]], carried[first_array:]
        if reset_at is not None:
            states = _with_resets(reset_at.read(t), reset_states_at, states, t)
        # Add the bias in the loop: before the loop, XLA would keep the products and the
        # sums in memory.
        new_states, residuals = cell.step(
            z.read(t), states, recurrent_kernels, bias, masks.recurrent_masks
        )
        if mask_at is not None:
            keep = mask_at.read(t)
            pairs = zip(new_states, states, strict=True)
            new_states = [tf.where(keep, new, old) for new, old in pairs]
        if program.training:
            # Overwrite the product that was just read, which saves an array.
            z = z.write(t, residuals[0])
        pairs = zip(arrays, (new_states[0], *residuals[1:]), strict=False)
        arrays = [array.write(t, tensor) for array, tensor in pairs]
        return *new_states, *residuals[1 : 1 + len(materialized)], z, *arrays

    results = loop(timesteps, step, (*states, *materialized, z, *arrays))
    outputs = [*results[: cell.states]]
    z, *arrays = results[first_array:]
    stacked = [array.stack() for array in arrays]
    if program.sequences:
        hs = stacked[0] if program.time_first else transpose_batch_time(stacked[0])
        outputs = [hs, *outputs]
    if not program.training:
        return outputs, [*results[cell.states : first_array]]
    residuals = [] if program.caller_keeps_input_and_outputs else [x, stacked[0]]
    return outputs, [*residuals, z.stack(), *stacked[1:]]


def backward(
    program: Program,
    masks: Masks,
    inputs: list[tf.Tensor],
    residuals: list[tf.Tensor],
    upstream: list[tf.Tensor],
) -> list[tf.Tensor]:
    """Returns the gradients of x, the states, the states after a reset, the weights."""
    _, *states, kernel, recurrent_kernel, _ = inputs
    states, states_after_reset = (
        states[: program.cell.states],
        states[program.cell.states :],
    )
    x, hs, *residuals = residuals
    loop = _compiled(_backward_loop, dataclasses.replace(program, training=True))
    dz, *dstates = loop(
        masks, recurrent_kernel, residuals, states_after_reset, *upstream
    )
    # Not compiled: XLA's products are slower where the left factor is transposed.
    dx = tf.reshape(inputs_gradient(dz, kernel, program.inputs), tf.shape(x))
    if not program.time_first:
        dx = transpose_batch_time(dx)
    before = tf.concat([states[0][None], hs[:-1]], 0)
    if states_after_reset:
        # At a reset, the recurrent kernel is multiplied with the state after it.
        if not program.time_first:
            masks, states_after_reset = with_time_first(masks, states_after_reset)
        before = tf.where(masks.reset_mask[:, :, None], states_after_reset[0], before)
    x, before, residuals = tf.nest.map_structure(
        lambda tensor: tf.reshape(tensor, [-1, tensor.shape[-1]]),
        (x, dropped(before, masks.recurrent_masks), residuals),
    )
    dkernel = kernel_gradient(split_columns(x, program.inputs), dz)
    recurrent_gradients = program.cell.recurrent_weight_gradients(before, dz, residuals)
    return [dx, *dstates, dkernel, *recurrent_gradients]


def _backward_loop(
    program: Program,
    masks: Masks,
    recurrent_kernel: tf.Tensor,
    residuals: list[tf.Tensor],
    states_after_reset: list[tf.Tensor],
    *upstream: tf.Tensor,
) -> list[tf.Tensor]:
    """Returns the gradients `(timesteps * rows, gates * units)` and of the states."""
    dhs, gradients = None, list(upstream)
    if program.sequences:
        dhs = gradients.pop(0)
    if not program.time_first:
        masks, dhs = with_time_first(masks)[0], transpose_batch_time(dhs)
    dhs = None if dhs is None else _tensor_array(dhs)
    mask_at, reset_at = _columns(masks.mask), _columns(masks.reset_mask)
    timesteps, width = (
        residuals[0].shape[0] or tf.shape(residuals[0])[0],
        residuals[0].shape[2],
    )
    dz = tf.TensorArray(
        residuals[0].dtype, timesteps, element_shape=residuals[0].shape[1:]
    )
    arrays = list(map(_tensor_array, residuals))
    recurrent_kernels = program.cell.recurrent_kernels(
        recurrent_kernel, masks.recurrent_masks
    )
    transposed = list(map(tf.transpose, recurrent_kernels))
    count = program.cell.states
    reset_gradients = [
        tf.zeros_like(state)
        if state.shape.rank == 2
        else tf.TensorArray(state.dtype, timesteps, element_shape=upstream[-1].shape)
        for state in states_after_reset
    ]

    def step(k: Any, *carried: Any) -> tuple:
        t = timesteps - 1 - k
        gradients, (*reset_gradients, dz) = [*carried[:count]], carried[count:]
        if dhs is not None:
            gradients[0] += dhs.read(t)
        residuals = [array.read(t) for array in arrays]
        dgates, before = program.cell.backward(
            gradients, residuals, transposed, masks.recurrent_masks
        )
        if mask_at is not None:
            keep = mask_at.read(t)
            dgates = tf.where(keep, dgates, tf.zeros_like(dgates))
            pairs = zip(before, gradients, strict=True)
            before = [tf.where(keep, new, old) for new, old in pairs]
        if reset_at is not None:
            reset, none = reset_at.read(t), tf.zeros_like(before[0])
            at_reset = [tf.where(reset, gradient, none) for gradient in before]
            before = [tf.where(reset, none, gradient) for gradient in before]
            reset_gradients = [
                total.write(t, gradient)
                if isinstance(total, tf.TensorArray)
                else total + gradient
                for total, gradient in zip(reset_gradients, at_reset, strict=True)
            ]
        return *before, *reset_gradients, dz.write(t, dgates)

    results = _loop(timesteps, step, (*gradients, *reset_gradients, dz))
    *gradients, dz = [
        tensor.stack() if isinstance(tensor, tf.TensorArray) else tensor
        for tensor in results
    ]
    if not program.time_first:
        _, gradients = with_time_first(Masks(), gradients)
    return [tf.reshape(dz, [-1, width]), *gradients]


def double_backward(
    program: Program,
    masks: Masks,
    tensors: tuple[tf.Tensor, ...],
    *upstream: tf.Tensor,
) -> list[tf.Tensor]:
    """Returns the gradient of the gradient, from a loop that is not compiled."""
    program = dataclasses.replace(program, training=False)
    # `tape.jacobian()` of an eager gradient can't differentiate a loop of TensorFlow.
    loop = _loop if tf.is_symbolic_tensor(tensors[0]) else _unrolled
    # The same tensor may be the initial state and the state after a reset. A tape would
    # then give both of them the sum of their gradients.
    tensors = tuple(map(tf.identity, tensors))
    # The others are the gradients of what `_forward()` returns.
    inputs = tensors[: -program.cell.states - program.sequences]
    with tf.GradientTape() as outer:
        outer.watch(tensors)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            outputs, _ = _forward(program, masks, *inputs, loop=loop)
        gradients = inner.gradient(outputs, inputs, tensors[len(inputs) :])
    return outer.gradient(
        gradients, tensors, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )


def transpose_batch_time(tensor: tf.Tensor | None) -> Any:
    """Swaps the axes of batch and time."""
    if tensor is None:
        return None
    return tf.transpose(tensor, [1, 0, *range(2, tensor.shape.rank)])


def with_time_first(
    masks: Masks, tensors: Sequence[tf.Tensor] = ()
) -> tuple[Masks, Any]:
    """Swaps batch and time of masks and sequences, and leaves states and weights."""
    swapped = [transpose_batch_time(t) if t.shape.rank == 3 else t for t in tensors]
    mask, reset_mask = map(transpose_batch_time, masks[:2])
    return Masks(mask, reset_mask, masks.recurrent_masks), swapped


def _columns(mask: tf.Tensor | None) -> tf.TensorArray | None:
    """Returns the columns `(rows, 1)` of a mask `(timesteps, rows)`."""
    return None if mask is None else _tensor_array(mask[:, :, None])


def _with_resets(
    reset: tf.Tensor,
    states_after_reset: Sequence[Any],
    states: Sequence[tf.Tensor],
    t: Any,
) -> list[tf.Tensor]:
    """Returns the states before timestep `t`, after the resets there."""
    return [
        tf.where(reset, s.read(t) if isinstance(s, tf.TensorArray) else s, state)
        for s, state in zip(states_after_reset, states, strict=True)
    ]


def _tensor_array(tensor: tf.Tensor) -> tf.TensorArray:
    array = tf.TensorArray(
        tensor.dtype,
        tensor.shape[0] or tf.shape(tensor)[0],
        element_shape=tensor.shape[1:],
        clear_after_read=False,
    )
    return array.unstack(tensor)


def _loop(timesteps: Any, step: Callable, carried: tuple) -> Sequence:
    def body(t: tf.Tensor, *carried: Any) -> tuple:
        return t + 1, *map(_with_known_shape, step(t, *carried), carried)

    return tf.while_loop(
        lambda t, *_: t < timesteps,
        body,
        (tf.constant(0), *carried),
        maximum_iterations=timesteps,
    )[1:]


def _with_known_shape(new: Any, old: Any) -> Any:
    # The batch size may be known of a gradient, but not of the residuals. TensorFlow
    # does not know the batch size of the sum of one row and an unknown number of rows.
    if isinstance(old, tf.TensorArray):
        return new
    return tf.ensure_shape(new, old.shape)


def _unrolled(timesteps: int, step: Callable, carried: tuple) -> Sequence:
    for t in range(timesteps):
        carried = step(t, *carried)
    return carried
