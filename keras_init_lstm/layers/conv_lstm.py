"""`ConvLSTM1D`, `ConvLSTM2D` and `ConvLSTM3D` that own their initial state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import keras

from keras_init_lstm._types import (
    Activation,
    Constraint,
    ConvLSTMArguments,
    Initializer,
    Regularizer,
)
from keras_init_lstm.initial_states.base import InitialState
from keras_init_lstm.initial_states.owned import refuse_initial_state
from keras_init_lstm.layers._owns_states import InitialStateArgument
from keras_init_lstm.layers.rnn import InitStateRNN

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _InitStateConvLSTM(InitStateRNN):
    """The constructor that the layers for each number of dimensions share."""

    h0: InitialState  # Or `None`, as in `InitStateLSTM`.
    c0: InitialState

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: Literal["valid", "same"] = "valid",
        data_format: Literal["channels_last", "channels_first"] | None = None,
        dilation_rate: int | Sequence[int] = 1,
        activation: Activation = "tanh",
        recurrent_activation: Activation = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        recurrent_initializer: Initializer = "orthogonal",
        bias_initializer: Initializer = "zeros",
        unit_forget_bias: bool = True,
        kernel_regularizer: Regularizer = None,
        recurrent_regularizer: Regularizer = None,
        bias_regularizer: Regularizer = None,
        activity_regularizer: Regularizer = None,
        kernel_constraint: Constraint = None,
        recurrent_constraint: Constraint = None,
        bias_constraint: Constraint = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        *,
        initial_state: InitialStateArgument = None,
        **kwargs: Unpack[ConvLSTMArguments],
    ) -> None:
        refuse_initial_state(strides, "strides")
        self.keras_layer.__init__(
            self,
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            activation=activation,
            recurrent_activation=recurrent_activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
            unit_forget_bias=unit_forget_bias,
            kernel_regularizer=kernel_regularizer,
            recurrent_regularizer=recurrent_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            recurrent_constraint=recurrent_constraint,
            bias_constraint=bias_constraint,
            dropout=dropout,
            recurrent_dropout=recurrent_dropout,
            seed=seed,
            return_sequences=return_sequences,
            return_state=return_state,
            go_backwards=go_backwards,
            stateful=stateful,
            **kwargs,
        )
        self._make_owned_states(initial_state)


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitStateConvLSTM1D(_InitStateConvLSTM, keras.layers.ConvLSTM1D):
    """1D convolutional LSTM that owns its initial state.

    It is `keras.layers.ConvLSTM1D`, with all its arguments, except that the layer owns
    the initial states h and c, each `(batch, rows, filters)`. Everything else is as in
    `InitStateConvLSTM2D`.

    Args:
        filters: This and all arguments up to `stateful` as in
            `keras.layers.ConvLSTM1D`.
        initial_state: The initial states, as in `InitStateConvLSTM2D`. Defaults to
            `None`.
        **kwargs: Base layer arguments, such as `name` and `dtype`, and `unroll` and
            `zero_output_for_mask`.

    Input shape:
        `(batch, timesteps, rows, channels)`, or `(batch, timesteps, channels, rows)`
        with `data_format="channels_first"`.

    Example:
    >>> layer = keras_init_lstm.InitStateConvLSTM1D(4, 3, initial_state="trainable")
    >>> tuple(layer(np.zeros((2, 5, 10, 3))).shape)
    (2, 8, 4)
    """

    keras_layer = keras.layers.ConvLSTM1D


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitStateConvLSTM2D(_InitStateConvLSTM, keras.layers.ConvLSTM2D):
    """2D convolutional LSTM that owns its initial state.

    It is `keras.layers.ConvLSTM2D` except for the initial state: the layer owns a
    hidden state h and a cell state c, and broadcasts them to any batch size,

        InitStateConvLSTM2D(...)(x) == ConvLSTM2D(...)(x, initial_state=[h0, c0])

    with h0 and c0 the owned states as tensors `(batch, rows, cols, filters)`. The rows
    and columns are the rows and columns of the outputs. Without `initial_state` it has
    the weights, the outputs and the summary of a `ConvLSTM2D`.

    Args:
        filters: This and all arguments up to `stateful` as in
            `keras.layers.ConvLSTM2D`.
        initial_state: The initial states, as in `InitStateLSTM`: one entry, used for
            both states, or a list of two, for h and c. An entry has

            - one value for each filter, `(filters,)`, which is broadcast over all
              positions. That is the default of `Fixed`, `Sampled` and `Trainable`; or
            - one value for each filter at each position, with `per_position=True`, as
              in `Trainable(per_position=True)`, or with an array of the shape
              `(rows, cols, filters)`.

            The encoder of a `Conditional` state returns `(batch, filters)` or
            `(batch, rows, cols, filters)`. Defaults to `None`.
        **kwargs: Base layer arguments, such as `name` and `dtype`, and `unroll` and
            `zero_output_for_mask`.

    Call arguments:
        sequences: This and all arguments except the next as in `InitStateRNN`.
        initial_state: As in `InitStateLSTM`, with tensors
            `(batch, rows, cols, filters)`.

    Input shape:
        `(batch, timesteps, rows, cols, channels)`, or
        `(batch, timesteps, channels, rows, cols)` with `data_format="channels_first"`.
        Rows and columns must be known when the layer is built. Batch and timesteps may
        be unknown until the call; a stateful layer needs to know its batch size.

    Output shape:
        `(batch, timesteps, rows, cols, filters)` with `return_sequences=True`, else
        `(batch, rows, cols, filters)`; with `return_state=True` followed by the last h
        and c. With `data_format="channels_first"` the filters come before rows and
        columns, here and in the states. The dtype is the layer's `compute_dtype`.

    Raises:
        ValueError: If `initial_state` is not as above, does not fit the state, or is
            not finite. If `get_initial_state()` or `reset_states(states=...)` is called
            before the layer is built, because the rows and columns are not known. At a
            call as in `InitStateRNN`.

    Stateful streams:
        As in `InitStateLSTM`. Keras's own loop always runs: there is no fused loop.

    References:
        [Shi et al., 2015](https://arxiv.org/abs/1506.04214) for the ConvLSTM.

    Example:
    >>> trainable = keras_init_lstm.Trainable(per_position=True)
    >>> layer = keras_init_lstm.InitStateConvLSTM2D(
    ...     4, 3, padding="same", initial_state=[trainable, "trainable"]
    ... )
    >>> tuple(layer(np.zeros((2, 5, 10, 12, 3))).shape)
    (2, 10, 12, 4)
    >>> tuple(layer.h0.value.shape), tuple(layer.c0.value.shape)
    ((10, 12, 4), (4,))
    """

    keras_layer = keras.layers.ConvLSTM2D


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitStateConvLSTM3D(_InitStateConvLSTM, keras.layers.ConvLSTM3D):
    """3D convolutional LSTM that owns its initial state.

    It is `keras.layers.ConvLSTM3D`, with all its arguments, except that the layer owns
    the initial states h and c, each `(batch, rows, cols, depth, filters)`. Everything
    else is as in `InitStateConvLSTM2D`.

    Args:
        filters: This and all arguments up to `stateful` as in
            `keras.layers.ConvLSTM3D`.
        initial_state: The initial states, as in `InitStateConvLSTM2D`. Defaults to
            `None`.
        **kwargs: Base layer arguments, such as `name` and `dtype`, and `unroll` and
            `zero_output_for_mask`.

    Input shape:
        `(batch, timesteps, rows, cols, depth, channels)`, or
        `(batch, timesteps, channels, rows, cols, depth)` with
        `data_format="channels_first"`.

    Example:
    >>> layer = keras_init_lstm.InitStateConvLSTM3D(2, 2, initial_state=0.5)
    >>> tuple(layer(np.zeros((1, 2, 4, 4, 4, 1))).shape)
    (1, 3, 3, 3, 2)
    """

    keras_layer = keras.layers.ConvLSTM3D
