"""`GRU` that owns its initial state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import keras

from keras_init_lstm._types import (
    Activation,
    Constraint,
    Initializer,
    LSTMArguments,
    Regularizer,
    UseCudnn,
)
from keras_init_lstm.initial_states.base import InitialState
from keras_init_lstm.initial_states.owned import refuse_initial_state
from keras_init_lstm.layers._loop import UseCudnnAttribute, UseFusedAttribute
from keras_init_lstm.layers._owns_states import InitialStateArgument
from keras_init_lstm.layers.rnn import InitStateRNN

if TYPE_CHECKING:
    from typing_extensions import Unpack


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitStateGRU(InitStateRNN, keras.layers.GRU):
    """Gated recurrent unit layer that owns its initial state.

    It is `keras.layers.GRU`, with all its arguments, except that the layer owns the
    initial hidden state h.

    Args:
        units: Positive integer, dimensionality of the output space.
        activation: This and all arguments up to `use_cudnn` as in
            `keras.layers.GRU`.
        initial_state: The initial state, as in `InitStateRNN`: one entry, or a list
            of one. Defaults to `None`.
        use_fused: Whether to run the fused loop, as in `InitStateLSTM`. Defaults to
            `"auto"`.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Call arguments, shapes, errors and stateful streams are as in `InitStateRNN`.

    References:
        [Cho et al., 2014](https://arxiv.org/abs/1406.1078) for the GRU.

    Example:
    >>> layer = keras_init_lstm.InitStateGRU(4, initial_state="trainable")
    >>> tuple(layer(np.zeros((32, 10, 8))).shape)
    (32, 4)
    """

    keras_layer = keras.layers.GRU
    h0: InitialState  # Or `None`, as in `InitStateLSTM`.

    use_fused = UseFusedAttribute()
    use_cudnn = UseCudnnAttribute()

    def __init__(
        self,
        units: int,
        activation: Activation = "tanh",
        recurrent_activation: Activation = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: Initializer = "glorot_uniform",
        recurrent_initializer: Initializer = "orthogonal",
        bias_initializer: Initializer = "zeros",
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
        unroll: bool = False,
        reset_after: bool = True,
        use_cudnn: UseCudnn = "auto",
        *,
        initial_state: InitialStateArgument = None,
        use_fused: bool | Literal["auto"] = "auto",
        **kwargs: Unpack[LSTMArguments],
    ) -> None:
        refuse_initial_state(activation, "activation")
        keras.layers.GRU.__init__(
            self,
            units,
            activation=activation,
            recurrent_activation=recurrent_activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            recurrent_initializer=recurrent_initializer,
            bias_initializer=bias_initializer,
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
            unroll=unroll,
            reset_after=reset_after,
            use_cudnn=use_cudnn,
            **kwargs,
        )
        self._make_owned_states(initial_state)
        self.use_fused = use_fused
