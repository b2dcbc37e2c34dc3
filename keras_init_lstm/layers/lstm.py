"""`LSTM` that owns its initial state."""

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
class InitStateLSTM(InitStateRNN, keras.layers.LSTM):
    """Long short-term memory layer that owns its initial state.

    It is `keras.layers.LSTM` except for the initial state: the layer owns a hidden
    state h and a cell state c, and broadcasts them to any batch size,

        InitStateLSTM(...)(x) == LSTM(...)(x, initial_state=[h0, c0])

    with h0 and c0 the owned states as tensors `(batch, units)`. Without
    `initial_state` it has the weights, the outputs and the summary of an `LSTM`.

    Args:
        units: Positive integer, dimensionality of the output space.
        activation: This and all arguments up to `use_cudnn` as in
            `keras.layers.LSTM`.
        initial_state: The initial states. One entry, used for both states (each then
            owns its own variables), or a list of two, for h and c. An entry is one of:

            - `None` or `"zeros"`: zeros, as in `LSTM`.
            - A number or an array of shape `(units,)`: `Fixed` at that value.
            - `"fixed"`, `"sampled"` or `"trainable"`: the object with its defaults.
            - A `Fixed`, `Sampled`, `Trainable` or `Conditional` object. The layer
              makes a copy with the same arguments; only `from_keras()` also copies
              learned values. The copies are in `layer.initial_state`.

            Defaults to `None`.
        use_fused: Whether to run the fused loop of the backend, which computes the
            same results and gradients faster on the CPU with TensorFlow or PyTorch.
            With `"auto"` it runs where it supports the call and is known to be faster;
            with `False` never; with `True` always, and a call that it does not support
            raises a `ValueError`. See "Fused loop" below. Defaults to `"auto"`.
        **kwargs: Base layer arguments, such as `name` and `dtype`, and
            `implementation` and `zero_output_for_mask`.

    Call arguments:
        sequences: This and all arguments except the next as in `InitStateRNN`.
        initial_state: A list of two tensors `(batch, units)`, used instead of the owned
            states, for this call; `None`, or `None` as an entry, keeps the owned state.

    Input shape:
        `(batch, timesteps, features)`. Batch and timesteps may be unknown until the
        call; a stateful layer needs to know its batch size.

    Output shape:
        `(batch, timesteps, units)` with `return_sequences=True`, else
        `(batch, units)`; with `return_state=True` followed by the last h and c,
        each `(batch, units)`. The dtype is the layer's `compute_dtype`.

    Raises:
        ValueError: If `initial_state` is not as above, does not fit `units`, or is
            not finite; if `use_fused` is not as above, or is `True` and the fused loop
            does not support a call; and at a call as in `InitStateRNN`.

    Stateful streams:
        With `stateful=True` the states are carried from call to call. After
        construction and after a reset, every row starts from the owned initial
        state, which gets its gradient from that call (`LSTM` in Keras 3 always
        returns to zeros). `reset_states(states=[h, c])` sets the states, as it did
        in Keras 2. A state passed at a call replaces the carried state, and the stream
        continues from the result. The carried states are not saved with the model.

    Fused loop:
        It runs on the CPU with TensorFlow or PyTorch, for masks `(batch, timesteps)`.
        Keras's own loop runs with a GPU, with `unroll=True` or `use_cudnn=True`; with
        a cell that you replace or change; in forward-mode differentiation; and while
        `tf.debugging` checks every operation. With `"auto"`, Keras's own loop also
        runs for 16-bit floating point.

        With PyTorch the loop is PyTorch's own LSTM, GRU or RNN kernel, for all masks
        and for `reset_mask`, with tanh and sigmoid, or relu in a SimpleRNN. With
        `use_fused=True` it runs on a GPU too. A GRU needs `reset_after=True`. With
        `"auto"`, an LSTM or a GRU without a mask runs Keras's own loop for fewer than 8
        timesteps. It also runs in training with `recurrent_dropout`, or with `dropout`
        and `implementation=1`; under `torch.compile`, `torch.func.vmap`, autocast, and
        for a mask under `torch.jit.trace`.

        With TensorFlow, XLA compiles the loop. It computes `dropout` and
        `recurrent_dropout`, with the masks that Keras draws, and Keras's activations
        tanh, sigmoid, relu, linear, hard_sigmoid, hard_tanh, softsign and silu. With
        `"auto"` Keras's own loop also runs for fewer than 8 timesteps, for a number of
        timesteps that is unknown in a graph, and for layers of a new size once 64
        sizes are compiled in a process: XLA never frees a compiled loop, about 5 MiB
        for each. Each number of timesteps is compiled once in a graph. Batch sizes,
        and in eager calls the timesteps, are rounded up to a few sizes, so that little
        is compiled.

        A SavedModel, LiteRT or ONNX file holds a plain LSTM. A `tf.function` for
        inference holds one too, since it may be exported. When TensorFlow runs that
        function in this process, it replaces the plain LSTM with the fused loop, except
        where a gradient is taken, with `jit_compile=True`, in `tf.data`, or with
        TensorFlow's graph optimizer switched off.

        Results equal the results of Keras's loop to float rounding. The absolute error
        of a gate is about 1e-7, also of a gate that is nearly closed. `InitStateGRU`
        and `InitStateSimpleRNN` have the fused loop too. A SimpleRNN with dropout draws
        random numbers at inference too, so Keras's own loop runs in a graph that may be
        exported.

    References:
        [Hochreiter and Schmidhuber, 1997](https://doi.org/10.1162/neco.1997.9.8.1735)
        for the LSTM.

    Example:
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state="trainable")
    >>> tuple(layer(np.zeros((32, 10, 8))).shape)
    (32, 4)
    >>> [v.path.split("/", 1)[1] for v in layer.trainable_variables[-2:]]
    ['h0/value', 'c0/value']
    """

    keras_layer = keras.layers.LSTM
    # `None` for zeros. The type leaves that out, so that a type checker accepts
    # `layer.h0.value`.
    h0: InitialState
    c0: InitialState

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
        unroll: bool = False,
        use_cudnn: UseCudnn = "auto",
        *,
        initial_state: InitialStateArgument = None,
        use_fused: bool | Literal["auto"] = "auto",
        **kwargs: Unpack[LSTMArguments],
    ) -> None:
        refuse_initial_state(activation, "activation")
        keras.layers.LSTM.__init__(
            self,
            units,
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
            unroll=unroll,
            use_cudnn=use_cudnn,
            **kwargs,
        )
        self._make_owned_states(initial_state)
        self.use_fused = use_fused
