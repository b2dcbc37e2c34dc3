"""The layers: `LSTM`, `GRU` and `SimpleRNN` that own their initial state."""

from typing import Any

import keras
import tensorflow as tf

from keras_init_lstm import fused
from keras_init_lstm.recurrent import InitStateRNN

# With fewer, the loop is too small a part of a step for its compilation to pay.
_FEWEST_TIMESTEPS = 8
# Each is compiled anew, in some tenths of a second.
_MOST_SHAPES = 8


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitStateLSTM(InitStateRNN, keras.layers.LSTM):
    """Long short-term memory layer that owns its initial state.

    It is `keras.layers.LSTM` but for what a sequence starts from: a hidden state h
    and a cell state c that the layer owns and repeats for each row of the batch,

        InitStateLSTM(...)(x) == LSTM(...)(x, initial_state=[h0, c0])

    with h0 and c0 the owned states tiled to `(batch, units)`. Without
    `initial_state` it has the weights, the outputs and the summary of an `LSTM`.

    Args:
        units: Positive integer, dimensionality of the output space.
        *args: The other arguments of `keras.layers.LSTM`, in its order.
        initial_state: What each sequence starts from. One entry, used for both
            states (each then owns its own variables), or a list of two, for h and
            c. An entry is one of:

            - `None` or `"zeros"`: zeros, as in `LSTM`.
            - A number or an array of shape `(units,)`: `Fixed` at that value.
            - `"fixed"`, `"sampled"` or `"trainable"`: the object with its defaults.
            - A `Fixed`, `Sampled`, `Trainable` or `Conditional` object, which is
              copied; the layer's own are in `layer.initial_state`.

            Defaults to `None`.
        use_fused: Whether to run the fused loop of `keras_init_lstm.fused`, which
            gives the same results and gradients, on the CPU, faster. `"auto"` takes
            it where it can and is known to win; `False` never; `True` always, with
            an error where it cannot. See "Fused loop" below. Defaults to `"auto"`.
        **kwargs: The keyword arguments of `keras.layers.LSTM`.

    Call arguments:
        sequences: A tensor `(batch, timesteps, features)`.
        initial_state: List of two tensors `(batch, units)` that are used instead of
            the owned states, for this call; `None`, or `None` as an entry, keeps
            the owned. As with `LSTM`, pass `mask` too if there is one: Keras hands
            an implicit mask only to a layer called with a single tensor.
        mask: Boolean tensor `(batch, timesteps)`, `False` where a timestep is to be
            skipped. Defaults to `None`.
        training: Python boolean, whether the layer behaves in training mode. This
            matters to dropout and to `Sampled`. Defaults to `False`.
        context: What a `Conditional` state is computed from: a tensor `(batch, ...)`
            or a structure of them. Defaults to `None`.

    Input shape:
        `(batch, timesteps, features)`. Batch and timesteps may be unknown until the
        call; a stateful layer needs to know its batch size.

    Output shape:
        `(batch, timesteps, units)` with `return_sequences=True`, else
        `(batch, units)`; with `return_state=True` followed by the last h and c,
        each `(batch, units)`. The dtype is the layer's `compute_dtype`.

    Raises:
        ValueError: If `initial_state` is not as above, does not fit `units`, or is
            not finite; if a state given at a call is not `(batch, units)`; if a
            batch does not have the size of the stream that the layer carries.

    Stateful streams:
        With `stateful=True` the states are carried from call to call. After
        construction and after a reset, every row starts from the owned initial
        state, which gets its gradient from that call (`LSTM` in Keras 3 only ever
        returns to zeros). `reset_states(states=[h, c])` starts from given states,
        as it did in Keras 2. A state given at a call replaces the carried one, and
        the stream goes on from the result. The carried states are not saved with
        the model.

    Fused loop:
        It is for tanh and sigmoid as activations, without `unroll`, and in training
        without `recurrent_dropout` (nor `dropout` with `implementation=1`), on the
        CPU. Otherwise, and where a GPU is present, Keras's own loop runs. `"auto"`
        also leaves to Keras: 16-bit floating point; fewer than 8 timesteps; a number
        of timesteps that is unknown in a graph; what comes after the first eight
        different numbers of timesteps, or shapes of eager batches, since each is
        compiled anew (batch sizes are rounded up to few);
        and inference in a `tf.function` of one's own, which may be an export. So
        `fit`, `evaluate`, `predict` and eager calls take the fused loop, while a
        SavedModel, TFLite or ONNX file holds a plain LSTM.

    References:
        [Hochreiter and Schmidhuber, 1997](https://doi.org/10.1162/neco.1997.9.8.1735)
        for the LSTM.

    Example:
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state="trainable")
    >>> layer(np.zeros((32, 10, 8))).shape
    TensorShape([32, 4])
    >>> [v.path.split("/", 1)[1] for v in layer.trainable_variables[-2:]]
    ['h0/value', 'c0/value']
    """

    def __init__(
        self, units: int, *args: Any, use_fused: bool | str = "auto", **kwargs: Any
    ) -> None:
        super().__init__(units, *args, **kwargs)
        if not (use_fused == "auto" or isinstance(use_fused, bool)):
            raise ValueError(
                "Argument `use_fused` must be 'auto', True or False. "
                f"Received: use_fused={use_fused}"
            )
        self.use_fused = use_fused
        self._fused_shapes: set[tuple[int | None, int]] = set()

    @classmethod
    def from_lstm(
        cls, lstm: keras.layers.LSTM, initial_state: Any = None, **kwargs: Any
    ) -> "InitStateLSTM":
        """Takes over a `keras.layers.LSTM`, with its weights, as `from_rnn()` does.

        The outputs stay equal to the last bit while the states are zero, and so the
        fused loop, which rounds in another order, is off: pass `use_fused="auto"`,
        or set the attribute of that name later.

        Args:
            lstm: A layer `LSTM` of Keras 3, built or not.
            initial_state: As in the constructor. `None` means zeros, as in `lstm`,
                and of a layer of this package the owned states. Defaults to `None`.
            **kwargs: Arguments of the constructor, in place of those of `lstm`.

        Returns:
            A layer of the same name, built if `lstm` is.

        Raises:
            ValueError: If `lstm` is not a layer `LSTM` of Keras 3.

        Example:
        >>> lstm = keras.layers.LSTM(4)
        >>> lstm.build((None, 10, 8))
        >>> layer = keras_init_lstm.InitStateLSTM.from_lstm(lstm, "trainable")
        >>> bool((layer.cell.kernel.numpy() == lstm.cell.kernel.numpy()).all())
        True
        """
        owned = {"use_fused": getattr(lstm, "use_fused", False)}
        kwargs = {**owned, **kwargs}
        return cls._taken_over("lstm", lstm, keras.layers.LSTM, initial_state, kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "use_fused": self.use_fused}

    def inner_loop(
        self,
        sequences: tf.Tensor,
        initial_state: Any,
        mask: Any,
        training: bool = False,
    ) -> Any:
        if not self._takes_fused(sequences, training):
            return super().inner_loop(sequences, initial_state, mask, training=training)
        if training and self.dropout:
            sequences *= self.cell.get_dropout_mask(sequences[:, 0])[:, None]
        if mask is not None:
            mask = tf.cast(keras.tree.flatten(mask)[0], "bool")
        if self.go_backwards:
            sequences = tf.reverse(sequences, [1])
            mask = None if mask is None else tf.reverse(mask, [1])
        outputs, h, c = fused.lstm(
            sequences,
            mask,
            initial_state[0],
            initial_state[1],
            tf.convert_to_tensor(self.cell.kernel),
            tf.convert_to_tensor(self.cell.recurrent_kernel),
            tf.convert_to_tensor(self.cell.bias) if self.use_bias else None,
            training=bool(training),
        )
        if not self.return_sequences:
            # Not the end of `outputs`, which need then not be put together.
            outputs = h[:, None]
        if mask is not None:
            # What Keras puts out where nothing was read: the output before, if any.
            read = mask
            if not self.zero_output_for_mask:
                read = tf.cumsum(tf.cast(mask, "int32"), axis=1) > 0
            if not self.return_sequences:
                read = read[:, -1:]
            outputs = tf.where(read[:, :, None], outputs, tf.zeros_like(outputs))
        return outputs[:, -1], outputs, [h, c]

    def _takes_fused(self, sequences: tf.Tensor, training: bool) -> bool:
        if self.use_fused is False:
            return False
        refusals = {
            "a GPU, or a TensorFlow without XLA": not fused.available(),
            "activations other than tanh and sigmoid": (
                self.activation is not keras.activations.tanh
                or self.recurrent_activation is not keras.activations.sigmoid
            ),
            "unroll=True": self.unroll,
            "recurrent_dropout": training and self.recurrent_dropout,
            "dropout with implementation=1": (
                training and self.dropout and self.cell.implementation == 1
            ),
            f"inputs of dtype {sequences.dtype.name}": (
                sequences.dtype != self.compute_dtype
            ),
        }
        refused = [reason for reason, applies in refusals.items() if applies]
        if self.use_fused is True and refused:
            raise ValueError(
                f"The fused loop does not support {refused[0]}. Pass "
                "`use_fused='auto'` to run Keras's own loop. Received: use_fused=True"
            )
        if self.use_fused is True or refused:
            return not refused
        timesteps = sequences.shape[1]
        if (timesteps or 0) < _FEWEST_TIMESTEPS or self.compute_dtype not in (
            "float32",
            "float64",
        ):
            return False
        # An exporter traces like the user of a `tf.function`, and finds no LSTM in a
        # compiled loop. Keras's `evaluate` and `predict` trace within a replica, whose
        # context outside of one is of a subclass.
        context = tf.distribute.get_replica_context()
        in_keras = type(context) is tf.distribute.ReplicaContext
        if tf.inside_function() and not (training or in_keras):
            return False
        compiled = (fused.rounded_up(sequences.shape[0]), timesteps)
        if len(self._fused_shapes) < _MOST_SHAPES:
            self._fused_shapes.add(compiled)
        return compiled in self._fused_shapes


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitStateGRU(InitStateRNN, keras.layers.GRU):
    """Gated recurrent unit layer that owns its initial state.

    It is `keras.layers.GRU`, with all its arguments, but for the hidden state h that
    a sequence starts from.

    Args:
        units: Positive integer, dimensionality of the output space.
        *args: The other arguments of `keras.layers.GRU`, in its order.
        initial_state: What each sequence starts from, as with `InitStateRNN`: one
            entry, or a list of one. Defaults to `None`.
        **kwargs: The keyword arguments of `keras.layers.GRU`.

    The call arguments, shapes, errors and stateful streams are those of
    `InitStateRNN`.

    References:
        [Cho et al., 2014](https://arxiv.org/abs/1406.1078) for the GRU.

    Example:
    >>> layer = keras_init_lstm.InitStateGRU(4, initial_state="trainable")
    >>> layer(np.zeros((32, 10, 8))).shape
    TensorShape([32, 4])
    """

    @classmethod
    def from_gru(
        cls, gru: keras.layers.GRU, initial_state: Any = None, **kwargs: Any
    ) -> "InitStateGRU":
        """Takes over a `keras.layers.GRU`, with its weights, as `from_rnn()` does.

        Args:
            gru: A layer `GRU` of Keras 3, built or not.
            initial_state: As in the constructor. `None` means zeros, as in `gru`,
                and of a layer of this package the owned states. Defaults to `None`.
            **kwargs: Arguments of the constructor, in place of those of `gru`.

        Returns:
            A layer of the same name, built if `gru` is.

        Raises:
            ValueError: If `gru` is not a layer `GRU` of Keras 3.

        Example:
        >>> gru = keras.layers.GRU(4)
        >>> gru.build((None, 10, 8))
        >>> layer = keras_init_lstm.InitStateGRU.from_gru(gru, "trainable")
        >>> bool((layer.cell.kernel.numpy() == gru.cell.kernel.numpy()).all())
        True
        """
        return cls._taken_over("gru", gru, keras.layers.GRU, initial_state, kwargs)


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitStateSimpleRNN(InitStateRNN, keras.layers.SimpleRNN):
    """Fully-connected recurrent layer that owns its initial state.

    It is `keras.layers.SimpleRNN`, with all its arguments, but for the hidden state h
    that a sequence starts from.

    Args:
        units: Positive integer, dimensionality of the output space.
        *args: The other arguments of `keras.layers.SimpleRNN`, in its order.
        initial_state: What each sequence starts from, as with `InitStateRNN`: one
            entry, or a list of one. Defaults to `None`.
        **kwargs: The keyword arguments of `keras.layers.SimpleRNN`.

    The call arguments, shapes, errors and stateful streams are those of
    `InitStateRNN`.

    Example:
    >>> layer = keras_init_lstm.InitStateSimpleRNN(4, initial_state=0.5)
    >>> layer.get_initial_state(batch_size=2)[0].numpy().tolist()
    [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]
    """

    @classmethod
    def from_simple_rnn(
        cls,
        simple_rnn: keras.layers.SimpleRNN,
        initial_state: Any = None,
        **kwargs: Any,
    ) -> "InitStateSimpleRNN":
        """Takes over a `keras.layers.SimpleRNN` as `from_rnn()` does.

        Args:
            simple_rnn: A layer `SimpleRNN` of Keras 3, built or not.
            initial_state: As in the constructor. `None` means zeros, as in
                `simple_rnn`, and of a layer of this package the owned states.
                Defaults to `None`.
            **kwargs: Arguments of the constructor, in place of those of `simple_rnn`.

        Returns:
            A layer of the same name, built if `simple_rnn` is.

        Raises:
            ValueError: If `simple_rnn` is not a layer `SimpleRNN` of Keras 3.

        Example:
        >>> rnn = keras.layers.SimpleRNN(4)
        >>> rnn.build((None, 10, 8))
        >>> layer = keras_init_lstm.InitStateSimpleRNN.from_simple_rnn(rnn, "trainable")
        >>> bool((layer.cell.kernel.numpy() == rnn.cell.kernel.numpy()).all())
        True
        """
        return cls._taken_over(
            "simple_rnn", simple_rnn, keras.layers.SimpleRNN, initial_state, kwargs
        )
