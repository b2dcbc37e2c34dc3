"""A faster LSTM for the CPU: few large products around a small compiled loop.

`keras.layers.LSTM` runs a loop of TensorFlow operations, with several small products
and their gradients at each timestep. Here one product does for all timesteps what
does not depend on the state: the kernel before the loop, the gradients of the weights
and of the input after it. What is left in the loop is compiled by XLA.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

# A wide batch is run in blocks of rows at the same time, since XLA uses one core
# for the gates. From this number of units on it pays for the second call.
_UNITS_FOR_BLOCKS = 128
_MOST_BLOCKS = 4
# XLA never lets go of what it has compiled, some 5 MiB for each size of a layer.
_MOST_SIZES = 64

_sizes: set[tuple[int, int]] = set()


def has_room_for(features: int, units: int) -> bool:
    """Whether a layer of this size is compiled, or may be without using much memory."""
    return (features, units) in _sizes or len(_sizes) < _MOST_SIZES


def lstm(
    sequences: tf.Tensor,
    mask: tf.Tensor | None,
    h: tf.Tensor,
    c: tf.Tensor,
    kernel: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    bias: tf.Tensor | None,
    training: bool,
    differentiable: bool = True,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Runs an LSTM with tanh and sigmoid over a batch, on the CPU.

    Args:
        sequences: A tensor `(batch, timesteps, features)`.
        mask: Boolean tensor `(batch, timesteps)`, `False` where the states are to
            stay as they are; or `None`.
        h: The initial hidden state, `(batch, units)`.
        c: The initial cell state, `(batch, units)`.
        kernel: `(features, 4 * units)`, its gates in the order i, f, c, o of Keras.
        recurrent_kernel: `(units, 4 * units)`.
        bias: `(4 * units,)`, or `None` for zeros.
        training: Python boolean, whether to keep what the gradient needs. Without,
            it is right too, but runs the loop twice.
        differentiable: Python boolean, whether there may be a gradient at all. With
            one, TensorFlow keeps the graph of each trace for good.

    Returns:
        The hidden states after each timestep `(batch, timesteps, units)`, and the
        last h and c, each `(batch, units)`.

    Example:
    >>> from keras_init_lstm import fused_loop
    >>> cell = keras.layers.LSTMCell(4)
    >>> cell.build((None, 3))
    >>> weights = [weight.value for weight in cell.weights]
    >>> x, zeros = tf.ones((2, 5, 3)), tf.zeros((2, 4))
    >>> hs, h, c = fused_loop.lstm(x, None, zeros, zeros, *weights, training=False)
    >>> tuple(hs.shape), tuple(h.shape)
    ((2, 5, 4), (2, 4))
    """
    units = recurrent_kernel.shape[0]
    _sizes.add((kernel.shape[0], units))
    if bias is None:
        bias = tf.zeros([4 * units], sequences.dtype)
    blocks = 1
    if units >= _UNITS_FOR_BLOCKS and tf.inside_function():
        threads = tf.config.threading.get_intra_op_parallelism_threads()
        blocks = min(threads or os.cpu_count() or 1, _MOST_BLOCKS)
    batch_size = sequences.shape[0]
    if batch_size is None:
        batch_size = tf.shape(sequences)[0]
    else:
        blocks = max(1, min(blocks, batch_size // 8))
    rows = rounded_up(-(-batch_size // blocks))
    missing = rows * blocks - batch_size

    def split(tensor: tf.Tensor) -> list[tf.Tensor]:
        if not (isinstance(missing, int) and missing == 0):
            tensor = tf.pad(tensor, [[0, missing]] + [[0, 0]] * (tensor.shape.rank - 1))
        return [tensor[rows * k : rows * (k + 1)] for k in range(blocks)]

    masks = [None] * blocks if mask is None else split(mask)
    weights = (kernel, recurrent_kernel, bias)
    options = {"training": training, "differentiable": differentiable}
    results = [
        _block(x, m, h, c, *weights, **options)
        for x, m, h, c in zip(split(sequences), masks, split(h), split(c), strict=True)
    ]
    hs, h, c = (
        (parts[0] if blocks == 1 else tf.concat(parts, 0))[:batch_size]
        for parts in zip(*results, strict=True)
    )
    # The compiled function forgets what is known of the shape.
    return tf.ensure_shape(hs, [*sequences.shape[:2], units]), h, c


def rounded_up(rows: Any) -> Any:
    """The next of 1..8, 10, 12, 14, 16, 20, ...: each size is compiled once.

    With four sizes in each octave, batches of any size need few compilations, and
    less than a quarter of the rows is added (none to a power of two). Takes an
    integer, a tensor, or `None` for an unknown number.
    """
    if rows is None:
        return None
    if isinstance(rows, int):
        rows = max(rows, 1)
        step = 1 << max((rows - 1).bit_length() - 3, 0)
    else:
        rows = tf.maximum(rows, 1)
        length = tf.reduce_sum(tf.cast(rows - 1 >= 1 << np.arange(31), tf.int32))
        step = tf.bitwise.left_shift(1, tf.maximum(length - 3, 0))
    return -(-rows // step) * step


def _block(
    x: tf.Tensor,
    mask: tf.Tensor | None,
    *inputs: tf.Tensor,
    training: bool,
    differentiable: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    size = x.shape[2], inputs[0].shape[1]
    x = tf.transpose(x, [1, 0, 2])
    mask = None if mask is None else tf.transpose(mask)[:, :, None]

    @tf.custom_gradient
    def run(*inputs: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        # A tape of the caller would otherwise differentiate the compiled function.
        stopped = [tf.stop_gradient(tensor) for tensor in inputs]
        forward = _compiled(_forward, *size, training=training)
        if training:
            *outputs, residuals = forward(mask, *stopped)
        else:
            outputs, residuals = forward(mask, *stopped), None

        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
            return first(*inputs, *upstream)

        @tf.custom_gradient
        def first(*tensors: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
            upstream = [tf.stop_gradient(tensor) for tensor in tensors[len(inputs) :]]
            saved = residuals
            hs = outputs[0]
            if saved is None:
                forward = _compiled(_forward, *size, training=True)
                hs, _, _, saved = forward(mask, *stopped)
            gradients = _backward(mask, stopped, hs, saved, upstream)
            return gradients, functools.partial(_second, mask, tensors)

        return outputs, gradient

    if not differentiable:
        run = functools.partial(_compiled(_forward, *size, training=training), mask)
    hs, h, c = run(x, *inputs)
    return tf.transpose(hs, [1, 0, 2]), h, c


def _forward(
    mask: tf.Tensor | None,
    x: tf.Tensor,
    h: tf.Tensor,
    c: tf.Tensor,
    kernel: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    bias: tf.Tensor,
    training: bool = False,
) -> list:
    """The equations, with time in front. Returns all h, the last h and c, residuals.

    A sigmoid is computed as `s(z) = tanh(z / 2) / 2 + 1 / 2`, so that all four gates
    are one tanh, which is vectorised. Halving the weights of i, f and o is exact.

    The residuals hold what the backward loop multiplies with, in place of the gates:
    it has then neither activations to compute nor a place to store them.
    """
    timesteps, rows, features = (x.shape[k] or tf.shape(x)[k] for k in range(3))
    units = recurrent_kernel.shape[0]
    half, slope = (
        tf.constant(np.repeat([s, s, 1, s], units), x.dtype) for s in (0.5, 0.25)
    )
    kernel, recurrent_kernel, bias = kernel * half, recurrent_kernel * half, bias * half
    z = tf.matmul(tf.reshape(x, [-1, features]), kernel)
    z = _tensor_array(tf.reshape(z, [timesteps, rows, 4 * units]))
    masks = None if mask is None else _tensor_array(mask)
    # An array for each: in eager mode to write into one changes it.
    empty = [
        tf.TensorArray(x.dtype, timesteps, element_shape=[x.shape[1], units])
        for _ in range(3 if training else 1)
    ]

    def step(
        t: Any, h: Any, c: Any, z: Any, hs: Any, decays: Any = None, forgets: Any = None
    ) -> tuple:
        # The bias is added here, since of sums made before the loop XLA would keep both
        # the products and the sums in memory.
        gates = tf.tanh(z.read(t) + tf.matmul(h, recurrent_kernel) + bias)
        i, f, g, o = tf.split(gates, 4, axis=1)
        i, f, o = 0.5 * i + 0.5, 0.5 * f + 0.5, 0.5 * o + 0.5
        new_c = f * c + i * g
        squashed = tf.tanh(new_c)
        new_h = o * squashed
        if training:
            factors = tf.concat([g, c, i, squashed], axis=1) * (
                slope - slope * gates * gates
            )
            decay = o * (1 - squashed * squashed)
        if masks is not None:
            keep = masks.read(t)
            new_h, new_c = tf.where(keep, new_h, h), tf.where(keep, new_c, c)
            if training:
                factors = tf.where(keep, factors, tf.zeros_like(factors))
                decay = tf.where(keep, decay, tf.zeros_like(decay))
                f = tf.where(keep, f, tf.ones_like(f))
        if training:
            # They overwrite the inputs that were just read, which saves such an array.
            z = z.write(t, factors)
            decays, forgets = decays.write(t, decay), forgets.write(t, f)
            return new_h, new_c, z, hs.write(t, new_h), decays, forgets
        return new_h, new_c, z, hs.write(t, new_h)

    h, c, z, hs, *residuals = _loop(timesteps, step, (h, c, z, *empty))
    outputs = [hs.stack(), h, c]
    if training:
        outputs.append([z.stack(), *(array.stack() for array in residuals)])
    return outputs


@functools.cache
def _compiled(function: Callable, *size: int, **options: bool) -> Any:  # noqa: ARG001
    """One function for each size of a layer, so that all its batches share a trace."""
    compiled = tf.function(
        functools.partial(function, **options),
        jit_compile=True,
        autograph=False,
        reduce_retracing=True,
    )
    # With and without a mask, and until TensorFlow sees that batch and timesteps vary,
    # it is traced some six times, of which the user would be warned.
    compiled._omit_frequent_tracing_warning = True
    return compiled


def _backward_loop(
    mask: tf.Tensor | None,
    recurrent_kernel: tf.Tensor,
    residuals: list[tf.Tensor],
    dhs: tf.Tensor,
    dh: tf.Tensor,
    dc: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The loop of the gradients: those of the gates at each step, and of h and c."""
    timesteps = dhs.shape[0] or tf.shape(dhs)[0]
    transposed = tf.transpose(recurrent_kernel)
    factors, decays, forgets = map(_tensor_array, residuals)
    gradients = _tensor_array(dhs)
    masks = None if mask is None else _tensor_array(mask)

    def step(k: Any, dh: Any, dc: Any, dz: Any) -> tuple:
        t = timesteps - 1 - k
        dh = dh + gradients.read(t)
        dc = dc + dh * decays.read(t)
        dgates = factors.read(t) * tf.concat([dc, dc, dc, dh], axis=1)
        new_dh = tf.matmul(dgates, transposed)
        if masks is not None:
            new_dh += tf.where(masks.read(t), tf.zeros_like(dh), dh)
        return new_dh, dc * forgets.read(t), dz.write(t, dgates)

    dz = tf.TensorArray(
        dhs.dtype, timesteps, element_shape=[dhs.shape[1], recurrent_kernel.shape[1]]
    )
    dh, dc, dz = _loop(timesteps, step, (dh, dc, dz))
    return dz.stack(), dh, dc


def _backward(
    mask: tf.Tensor | None,
    inputs: list[tf.Tensor],
    hs: tf.Tensor,
    residuals: list[tf.Tensor],
    upstream: list[tf.Tensor],
) -> list[tf.Tensor]:
    """The gradients of x, h, c, kernel, recurrent_kernel and bias."""
    x, h, _, kernel, recurrent_kernel, _ = inputs
    features, units = kernel.shape[0], recurrent_kernel.shape[0]
    loop = _compiled(_backward_loop, features, units)
    dz, dh, dc = loop(mask, recurrent_kernel, residuals, *upstream)
    dz = tf.reshape(dz, [-1, 4 * units])
    # Not compiled: XLA's products are slower where the left factor is transposed.
    before = tf.reshape(tf.concat([h[None], hs[:-1]], 0), [-1, units])
    dkernel = tf.matmul(tf.reshape(x, [-1, features]), dz, transpose_a=True)
    drecurrent_kernel = tf.matmul(before, dz, transpose_a=True)
    # As a product, this sum over the rows is twice as fast as `reduce_sum`.
    dbias = tf.matmul(tf.ones([1, tf.shape(dz)[0]], dz.dtype), dz)[0]
    dx = tf.reshape(tf.matmul(dz, kernel, transpose_b=True), tf.shape(x))
    return [dx, dh, dc, dkernel, drecurrent_kernel, dbias]


def _second(
    mask: tf.Tensor | None, tensors: tuple[tf.Tensor, ...], *upstream: tf.Tensor
) -> list[tf.Tensor]:
    """The gradient of the gradient: not compiled, by TensorFlow alone."""
    inputs, first_upstream = tensors[:6], tensors[6:]
    # `tape.jacobian()` of an eager gradient can't differentiate a loop of TensorFlow.
    in_graph = tf.is_symbolic_tensor(inputs[0])
    run = _forward if in_graph else _without_loop
    with tf.GradientTape() as outer:
        outer.watch(tensors)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            outputs = run(mask, *inputs)
        gradients = inner.gradient(outputs, inputs, first_upstream)
    return outer.gradient(
        gradients, tensors, upstream, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )


def _without_loop(
    mask: tf.Tensor | None,
    x: tf.Tensor,
    h: tf.Tensor,
    c: tf.Tensor,
    kernel: tf.Tensor,
    recurrent_kernel: tf.Tensor,
    bias: tf.Tensor,
) -> list:
    """The equations once more, one timestep after the other."""
    hs = []
    for t in range(x.shape[0]):
        gates = tf.matmul(x[t], kernel) + tf.matmul(h, recurrent_kernel) + bias
        i, f, g, o = tf.split(gates, 4, axis=1)
        new_c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        new_h = tf.sigmoid(o) * tf.tanh(new_c)
        keep = True if mask is None else mask[t]
        h, c = tf.where(keep, new_h, h), tf.where(keep, new_c, c)
        hs.append(h)
    return [tf.stack(hs), h, c]


def _tensor_array(tensor: tf.Tensor) -> tf.TensorArray:
    array = tf.TensorArray(
        tensor.dtype,
        tensor.shape[0] or tf.shape(tensor)[0],
        element_shape=tensor.shape[1:],
        clear_after_read=False,
    )
    return array.unstack(tensor)


def _loop(timesteps: Any, step: Callable, states: tuple) -> list:
    return tf.while_loop(
        lambda t, *_: t < timesteps,
        lambda t, *states: (t + 1, *step(t, *states)),
        (tf.constant(0), *states),
        maximum_iterations=timesteps,
    )[1:]
