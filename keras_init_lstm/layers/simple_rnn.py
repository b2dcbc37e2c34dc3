"""`SimpleRNN` that owns its initial state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import keras

from keras_init_lstm._types import (
    Activation,
    Constraint,
    Initializer,
    Regularizer,
    SimpleRNNArguments,
)
from keras_init_lstm.initial_states.base import InitialState
from keras_init_lstm.initial_states.owned import refuse_initial_state
from keras_init_lstm.layers._loop import UseFusedAttribute
from keras_init_lstm.layers._owns_states import InitialStateArgument
from keras_init_lstm.layers.rnn import InitStateRNN

if TYPE_CHECKING:
    from typing_extensions import Unpack


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitStateSimpleRNN(InitStateRNN, keras.layers.SimpleRNN):
    """Fully connected recurrent layer that owns its initial state.

    It is `keras.layers.SimpleRNN`, with all its arguments, except that the layer owns
    the initial hidden state h.

    Args:
        units: Positive integer, dimensionality of the output space.
        activation: This and all arguments up to `seed` as in
            `keras.layers.SimpleRNN`.
        initial_state: The initial state, as in `InitStateRNN`: one entry, or a list
            of one. Defaults to `None`.
        use_fused: Whether to run the fused loop, as in `InitStateLSTM`. Defaults to
            `"auto"`.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Call arguments, shapes, errors and stateful streams are as in `InitStateRNN`.

    Example:
    >>> layer = keras_init_lstm.InitStateSimpleRNN(4, initial_state=0.5)
    >>> keras.ops.convert_to_numpy(layer.get_initial_state(batch_size=2)[0]).tolist()
    [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]
    """

    keras_layer = keras.layers.SimpleRNN
    h0: InitialState  # Or `None`, as in `InitStateLSTM`.

    use_fused = UseFusedAttribute()

    def __init__(
        self,
        units: int,
        activation: Activation = "tanh",
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
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        seed: int | None = None,
        *,
        initial_state: InitialStateArgument = None,
        use_fused: bool | Literal["auto"] = "auto",
        **kwargs: Unpack[SimpleRNNArguments],
    ) -> None:
        refuse_initial_state(activation, "activation")
        keras.layers.SimpleRNN.__init__(
            self,
            units,
            activation=activation,
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
            return_sequences=return_sequences,
            return_state=return_state,
            go_backwards=go_backwards,
            stateful=stateful,
            unroll=unroll,
            seed=seed,
            **kwargs,
        )
        self._make_owned_states(initial_state)
        self.use_fused = use_fused
