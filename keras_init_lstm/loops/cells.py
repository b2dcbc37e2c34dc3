"""One timestep of each cell, and its gradients.

A cell here is a description without weights. In the shapes below, `rows` is the number
of sequences that run together, and `gates` is the number of gates in a kernel.
"""

import dataclasses
from typing import Any, ClassVar

import tensorflow as tf

from keras_init_lstm.loops.activations import ACTIVATIONS, of_gates
from keras_init_lstm.loops.products import (
    Tensors,
    dropped,
    kernel_gradient,
    product,
    recurrent_gradient,
    split_columns,
)


@dataclasses.dataclass(frozen=True)
class FusedCell:
    """A cell whose gates are one fully-connected layer of x and h.

    Attributes:
        activation: The name of the activation, in `ACTIVATIONS`.
        recurrent_activation: The name of the activation of the gates.
        states: The number of states. The first one is the output.
        num_residuals: The number of tensors that `step()` returns for `backward()`.
        num_materialized: The number of these tensors, after the first one, that are
            written to memory at inference too.
    """

    activation: str = "tanh"
    recurrent_activation: str = "sigmoid"

    states: ClassVar[int] = 1
    num_residuals: ClassVar[int] = 3
    num_materialized: ClassVar[int] = 0

    @property
    def gates(self) -> tuple[str, ...]:
        """The name of the activation of each gate."""
        raise NotImplementedError

    @property
    def scales(self) -> tuple[float, ...]:
        """The factor of the columns of each gate, applied before the loop."""
        return tuple(ACTIVATIONS[name].scale for name in self.gates)

    @property
    def is_bounded(self) -> bool:
        """Whether the states stay finite for any number of timesteps."""
        return all(ACTIVATIONS[name].is_bounded for name in self.gates)

    def bias_shape(self, units: int) -> list[int]:
        return [len(self.gates) * units]

    def recurrent_kernels(self, kernel: tf.Tensor, masks: Tensors) -> Tensors:
        """Splits the recurrent kernel before the loop.

        Args:
            kernel: `(units, gates * units)`.
            masks: The recurrent dropout masks, as in `step()`.

        Returns:
            A part for each product of h, `(units, width)`.
        """
        return split_columns(kernel, max(len(masks), 1))

    def step(
        self,
        z: tf.Tensor,
        states: Tensors,
        recurrent_kernels: Tensors,
        bias: tf.Tensor,
        recurrent_masks: Tensors,
    ) -> tuple[Tensors, Tensors]:
        """Computes a timestep.

        Args:
            z: The product of the inputs and the kernel, `(rows, gates * units)`.
            states: Each `(rows, units)`.
            recurrent_kernels: What `recurrent_kernels()` returns, its columns scaled
                like the columns of the kernel and of the bias.
            bias: As Keras has it.
            recurrent_masks: The dropout mask of h for each gate, `(rows, units)`. Empty
                without recurrent dropout.

        Returns:
            The new states, and the residuals: factors for `backward()`, which then
            computes no activations. The first residual has the shape of `z`.
        """
        raise NotImplementedError

    def backward(
        self,
        gradients: Tensors,
        residuals: Tensors,
        transposed: Tensors,
        recurrent_masks: Tensors,
    ) -> tuple[tf.Tensor, Tensors]:
        """Computes the gradients of a timestep.

        Args:
            gradients: The gradients of the new states.
            residuals: The residuals of `step()`.
            transposed: The parts of the recurrent kernel, each transposed, not scaled.
            recurrent_masks: As in `step()`.

        Returns:
            The gradients of `z`, as if it were not scaled, and of the last states.
        """
        raise NotImplementedError

    def recurrent_weight_gradients(
        self, before: Tensors, dz: tf.Tensor, residuals: Tensors
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the gradients of the recurrent kernel and of the bias.

        Args:
            before: The list that `dropped()` returns for the output before each
                timestep, `(timesteps * rows, units)`.
            dz: The gradients of `z`, `(timesteps * rows, gates * units)`.
            residuals: The residuals of `step()`, flattened in the same way.
        """
        return kernel_gradient(before, dz), _sum_of_rows(dz)


@dataclasses.dataclass(frozen=True)
class FusedSimpleRNN(FusedCell):
    """`keras.layers.SimpleRNNCell`, which has no recurrent activation."""

    num_residuals = 1

    @property
    def gates(self) -> tuple[str, ...]:
        return (self.activation,)

    def step(
        self,
        z: tf.Tensor,
        states: Tensors,
        recurrent_kernels: Tensors,
        bias: tf.Tensor,
        recurrent_masks: Tensors,
    ) -> tuple[Tensors, Tensors]:
        h = dropped(states[0], recurrent_masks)
        z = z + product(h, recurrent_kernels) + bias
        new_h, slope = ACTIVATIONS[self.activation].function(z)
        return (new_h,), (slope,)

    def backward(
        self,
        gradients: Tensors,
        residuals: Tensors,
        transposed: Tensors,
        recurrent_masks: Tensors,
    ) -> tuple[tf.Tensor, Tensors]:
        dz = gradients[0] * residuals[0]
        return dz, (recurrent_gradient(dz, transposed, recurrent_masks),)


@dataclasses.dataclass(frozen=True)
class FusedLSTM(FusedCell):
    """`keras.layers.LSTMCell`; its gates are i, f, c, o."""

    states = 2

    @property
    def gates(self) -> tuple[str, ...]:
        gate = self.recurrent_activation
        return (gate, gate, self.activation, gate)

    def step(
        self,
        z: tf.Tensor,
        states: Tensors,
        recurrent_kernels: Tensors,
        bias: tf.Tensor,
        recurrent_masks: Tensors,
    ) -> tuple[Tensors, Tensors]:
        h, c = states
        z = z + product(dropped(h, recurrent_masks), recurrent_kernels) + bias
        (i, f, g, o), slopes = of_gates(self.gates, z)
        new_c = f * c + i * g
        squashed, slope = ACTIVATIONS[self.activation].of(new_c)
        new_h = o * squashed
        factors = tf.concat([g, c, i, squashed], axis=1) * slopes
        return (new_h, new_c), (factors, o * slope, f)

    def backward(
        self,
        gradients: Tensors,
        residuals: Tensors,
        transposed: Tensors,
        recurrent_masks: Tensors,
    ) -> tuple[tf.Tensor, Tensors]:
        (dh, dc), (factors, decay, f) = gradients, residuals
        dc = dc + dh * decay
        dz = factors * tf.concat([dc, dc, dc, dh], axis=1)
        return dz, (recurrent_gradient(dz, transposed, recurrent_masks), dc * f)


@dataclasses.dataclass(frozen=True)
class FusedGRU(FusedCell):
    """`keras.layers.GRUCell`; its gates are z, r, h.

    Attributes:
        reset_after: Whether the gate r is applied after the product with the
            recurrent kernel, as cuDNN does; the bias is then `(2, 3 * units)`.
    """

    reset_after: bool = True

    num_materialized = 2

    @property
    def gates(self) -> tuple[str, ...]:
        return (self.recurrent_activation, self.recurrent_activation, self.activation)

    def bias_shape(self, units: int) -> list[int]:
        return [2, 3 * units] if self.reset_after else [3 * units]

    def recurrent_kernels(self, kernel: tf.Tensor, masks: Tensors) -> Tensors:
        if self.reset_after or masks:
            return super().recurrent_kernels(kernel, masks)
        units = kernel.shape[0]
        return tf.split(kernel, [2 * units, units], axis=1)

    def step(
        self,
        z: tf.Tensor,
        states: Tensors,
        recurrent_kernels: Tensors,
        bias: tf.Tensor,
        recurrent_masks: Tensors,
    ) -> tuple[Tensors, Tensors]:
        (h,), units = states, states[0].shape[1]
        split = 2 * units  # The columns of the update and the reset gate.
        inputs = dropped(h, recurrent_masks)
        if self.reset_after:
            inner = product(inputs, recurrent_kernels) + bias[1]
            z = z + bias[0]
            gates = z[:, :split] + inner[:, :split]
        else:
            gates = (
                z[:, :split]
                + product(inputs[:2], recurrent_kernels[:-1])
                + bias[:split]
            )
        (update, reset), slopes = of_gates(self.gates[:2], gates)
        activation = ACTIVATIONS[self.activation]
        if self.reset_after:
            scaled = inner[:, split:]
            candidate, slope = activation.function(z[:, split:] + reset * scaled)
            gated_by_reset = scaled / activation.scale
        else:
            gated_by_reset = inputs[-1]
            scaled = tf.matmul(reset * gated_by_reset, recurrent_kernels[-1])
            candidate, slope = activation.function(z[:, split:] + scaled + bias[split:])
        new_h = update * h + (1 - update) * candidate
        update_slope, reset_slope = tf.split(slopes, 2, axis=1)
        factors = tf.concat(
            [
                (h - candidate) * update_slope,
                gated_by_reset * reset_slope,
                (1 - update) * slope,
            ],
            axis=1,
        )
        return (new_h,), (factors, update, reset)

    def backward(
        self,
        gradients: Tensors,
        residuals: Tensors,
        transposed: Tensors,
        recurrent_masks: Tensors,
    ) -> tuple[tf.Tensor, Tensors]:
        (dh,), (factors, update, reset) = gradients, residuals
        split = 2 * dh.shape[1]
        update_slope, reset_slope, candidate_slope = tf.split(factors, 3, axis=1)
        dcandidate = dh * candidate_slope
        if self.reset_after:
            dz = tf.concat(
                [dh * update_slope, dcandidate * reset_slope, dcandidate], axis=1
            )
            dinner = tf.concat([dz[:, :split], dcandidate * reset], axis=1)
            through_product = recurrent_gradient(dinner, transposed, recurrent_masks)
            return dz, (dh * update + through_product,)
        dreset_h = tf.matmul(dcandidate, transposed[-1])
        dgates = tf.concat([dh * update_slope, dreset_h * reset_slope], axis=1)
        through_product = recurrent_gradient(
            dgates, transposed[:-1], recurrent_masks[:2]
        )
        dz = tf.concat([dgates, dcandidate], axis=1)
        (through_reset,) = dropped(dreset_h * reset, recurrent_masks[2:])
        return dz, (dh * update + through_reset + through_product,)

    def recurrent_weight_gradients(
        self, before: Tensors, dz: tf.Tensor, residuals: Tensors
    ) -> tuple[tf.Tensor, tf.Tensor]:
        split, reset = 2 * before[0].shape[1], residuals[2]
        dgates, dcandidate = dz[:, :split], dz[:, split:]
        if self.reset_after:
            dinner = tf.concat([dgates, dcandidate * reset], axis=1)
            dbias = tf.stack([_sum_of_rows(dz), _sum_of_rows(dinner)])
            return kernel_gradient(before, dinner), dbias
        products = [
            kernel_gradient(before[:2], dgates),
            kernel_gradient([before[-1] * reset], dcandidate),
        ]
        return tf.concat(products, axis=1), _sum_of_rows(dz)


def _sum_of_rows(tensor: tf.Tensor) -> Any:
    # As a product, this sum is twice as fast as `reduce_sum`.
    return tf.matmul(tf.ones([1, tf.shape(tensor)[0]], tensor.dtype), tensor)[0]
