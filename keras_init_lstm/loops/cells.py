"""What one timestep of each cell computes, and how it is differentiated.

A cell here is a description without weights. `rows` below is the number of sequences
that are run together, `gates` how many blocks of `units` the kernel has side by side.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import tensorflow as tf

Tensors: TypeAlias = Sequence[tf.Tensor]


@dataclasses.dataclass(frozen=True)
class FusedCell:
    """A cell whose gates are one fully-connected layer of x and h.

    Attributes:
        scales: By what the columns of each gate are multiplied beforehand. A sigmoid
            is computed as `s(z) = tanh(z / 2) / 2 + 1 / 2`, so that it is vectorised
            as the tanh is, and to halve the weights of its gate is exact.
        states: How many states there are; the first is the output.
        num_residuals: How many tensors `step()` returns for `backward()`.
        num_materialized: How many of these, after the first, are written to memory at
            inference too.
    """

    scales: ClassVar[tuple[float, ...]]
    states: ClassVar[int] = 1
    num_residuals: ClassVar[int] = 3
    num_materialized: ClassVar[int] = 0

    def bias_shape(self, units: int) -> list[int]:
        return [len(self.scales) * units]

    def step(
        self,
        z: tf.Tensor,
        states: Tensors,
        recurrent_kernel: tf.Tensor,
        bias: tf.Tensor,
    ) -> tuple[Tensors, Tensors]:
        """Computes a timestep.

        Args:
            z: The product of the inputs and the kernel, `(rows, gates * units)`.
            states: Each `(rows, units)`.
            recurrent_kernel: `(units, gates * units)`, its columns scaled like the
                columns of the kernel and of the bias.
            bias: As Keras has it.

        Returns:
            The new states, and what `backward()` multiplies with, so that it has no
            activations to compute. The first of these is as wide as `z`.
        """
        raise NotImplementedError

    def backward(
        self, gradients: Tensors, residuals: Tensors, transposed: tf.Tensor
    ) -> tuple[tf.Tensor, Tensors]:
        """Computes the gradients of a timestep.

        Args:
            gradients: Those of the new states.
            residuals: What `step()` returned.
            transposed: The recurrent kernel, transposed and without the scales.

        Returns:
            The gradients of `z`, as without the scales, and of the states before.
        """
        raise NotImplementedError

    def recurrent_weight_gradients(
        self, before: tf.Tensor, dz: tf.Tensor, residuals: Tensors
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the gradients of the recurrent kernel and of the bias.

        Args:
            before: The output before each timestep, of all rows one after another.
            dz: The gradients of `z`, likewise.
            residuals: What `step()` returned, likewise.
        """
        return tf.matmul(before, dz, transpose_a=True), _sum_of_rows(dz)


@dataclasses.dataclass(frozen=True)
class FusedSimpleRNN(FusedCell):
    """`keras.layers.SimpleRNNCell` with tanh."""

    scales = (1.0,)
    num_residuals = 1

    def step(
        self,
        z: tf.Tensor,
        states: Tensors,
        recurrent_kernel: tf.Tensor,
        bias: tf.Tensor,
    ) -> tuple[Tensors, Tensors]:
        h = tf.tanh(z + tf.matmul(states[0], recurrent_kernel) + bias)
        return (h,), (1 - h * h,)

    def backward(
        self, gradients: Tensors, residuals: Tensors, transposed: tf.Tensor
    ) -> tuple[tf.Tensor, Tensors]:
        dz = gradients[0] * residuals[0]
        return dz, (tf.matmul(dz, transposed),)


@dataclasses.dataclass(frozen=True)
class FusedLSTM(FusedCell):
    """`keras.layers.LSTMCell` with tanh and sigmoid; its gates are i, f, c, o."""

    scales = (0.5, 0.5, 1.0, 0.5)
    states = 2

    def step(
        self,
        z: tf.Tensor,
        states: Tensors,
        recurrent_kernel: tf.Tensor,
        bias: tf.Tensor,
    ) -> tuple[Tensors, Tensors]:
        h, c = states
        gates = tf.tanh(z + tf.matmul(h, recurrent_kernel) + bias)
        i, f, g, o = tf.split(gates, 4, axis=1)
        i, f, o = _sigmoid(i), _sigmoid(f), _sigmoid(o)
        new_c = f * c + i * g
        squashed = tf.tanh(new_c)
        new_h = o * squashed
        slopes = tf.repeat(tf.constant([0.25, 0.25, 1, 0.25], z.dtype), h.shape[1])
        factors = tf.concat([g, c, i, squashed], axis=1) * (
            slopes - slopes * gates * gates
        )
        return (new_h, new_c), (factors, o * (1 - squashed * squashed), f)

    def backward(
        self, gradients: Tensors, residuals: Tensors, transposed: tf.Tensor
    ) -> tuple[tf.Tensor, Tensors]:
        (dh, dc), (factors, decay, f) = gradients, residuals
        dc = dc + dh * decay
        dz = factors * tf.concat([dc, dc, dc, dh], axis=1)
        return dz, (tf.matmul(dz, transposed), dc * f)


@dataclasses.dataclass(frozen=True)
class FusedGRU(FusedCell):
    """`keras.layers.GRUCell` with tanh and sigmoid; its gates are z, r, h.

    Attributes:
        reset_after: Whether the gate r is applied after the product with the
            recurrent kernel, as cuDNN does; the bias is then `(2, 3 * units)`.
    """

    reset_after: bool = True

    scales = (0.5, 0.5, 1.0)
    num_materialized = 2

    def bias_shape(self, units: int) -> list[int]:
        return [2, 3 * units] if self.reset_after else [3 * units]

    def step(
        self,
        z: tf.Tensor,
        states: Tensors,
        recurrent_kernel: tf.Tensor,
        bias: tf.Tensor,
    ) -> tuple[Tensors, Tensors]:
        (h,), units = states, states[0].shape[1]
        sigmoids = 2 * units  # The columns of the update and the reset gate.
        if self.reset_after:
            inner = tf.matmul(h, recurrent_kernel) + bias[1]
            z = z + bias[0]
            gates = z[:, :sigmoids] + inner[:, :sigmoids]
        else:
            gates = (
                z[:, :sigmoids]
                + tf.matmul(h, recurrent_kernel[:, :sigmoids])
                + bias[:sigmoids]
            )
        update, reset = tf.split(_sigmoid(tf.tanh(gates)), 2, axis=1)
        if self.reset_after:
            gated_by_reset = inner[:, sigmoids:]
            candidate = tf.tanh(z[:, sigmoids:] + reset * gated_by_reset)
        else:
            gated_by_reset = h
            product = tf.matmul(reset * h, recurrent_kernel[:, sigmoids:])
            candidate = tf.tanh(z[:, sigmoids:] + product + bias[sigmoids:])
        new_h = update * h + (1 - update) * candidate
        candidate_slope = (1 - update) * (1 - candidate * candidate)
        update_slope = (h - candidate) * update * (1 - update)
        reset_slope = gated_by_reset * reset * (1 - reset)
        factors = tf.concat([update_slope, reset_slope, candidate_slope], axis=1)
        return (new_h,), (factors, update, reset)

    def backward(
        self, gradients: Tensors, residuals: Tensors, transposed: tf.Tensor
    ) -> tuple[tf.Tensor, Tensors]:
        (dh,), (factors, update, reset) = gradients, residuals
        sigmoids = 2 * dh.shape[1]
        update_slope, reset_slope, candidate_slope = tf.split(factors, 3, axis=1)
        dcandidate = dh * candidate_slope
        if self.reset_after:
            dz = tf.concat(
                [dh * update_slope, dcandidate * reset_slope, dcandidate], axis=1
            )
            dinner = tf.concat([dz[:, :sigmoids], dcandidate * reset], axis=1)
            product = tf.matmul(dinner, transposed)
            return dz, (dh * update + product,)
        dreset_h = tf.matmul(dcandidate, transposed[sigmoids:])
        dgates = tf.concat([dh * update_slope, dreset_h * reset_slope], axis=1)
        product = tf.matmul(dgates, transposed[:sigmoids])
        dz = tf.concat([dgates, dcandidate], axis=1)
        return dz, (dh * update + dreset_h * reset + product,)

    def recurrent_weight_gradients(
        self, before: tf.Tensor, dz: tf.Tensor, residuals: Tensors
    ) -> tuple[tf.Tensor, tf.Tensor]:
        sigmoids, reset = 2 * before.shape[1], residuals[2]
        dgates, dcandidate = dz[:, :sigmoids], dz[:, sigmoids:]
        if self.reset_after:
            dinner = tf.concat([dgates, dcandidate * reset], axis=1)
            dbias = tf.stack([_sum_of_rows(dz), _sum_of_rows(dinner)])
            return tf.matmul(before, dinner, transpose_a=True), dbias
        products = [
            tf.matmul(before, dgates, transpose_a=True),
            tf.matmul(before * reset, dcandidate, transpose_a=True),
        ]
        return tf.concat(products, axis=1), _sum_of_rows(dz)


def _sigmoid(tanh_of_half: tf.Tensor) -> tf.Tensor:
    return 0.5 * tanh_of_half + 0.5


def _sum_of_rows(tensor: tf.Tensor) -> Any:
    # As a product, this sum is twice as fast as `reduce_sum`.
    return tf.matmul(tf.ones([1, tf.shape(tensor)[0]], tensor.dtype), tensor)[0]
