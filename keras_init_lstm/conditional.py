"""Initial states that are computed from what is known about each sequence."""

import inspect
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_init_lstm.copies import copy_layer, hand_over
from keras_init_lstm.initial_states import InitialState, received, shape_text
from keras_init_lstm.recurrent import InitStateRNN, hide_context


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class Conditional(InitialState):
    """An initial state computed from the `context` that the layer is called with.

    Each row starts from `encoder(context)`: of static features by a `Dense`, as in
    [Mohajerin and Waslander, 2017](https://doi.org/10.1109/IJCNN.2017.7966138), or of
    an identity by an `Embedding`, which learns a state for each customer, sensor or
    subject; the identities are a tensor `(batch,)`, in a model
    `keras.Input((), dtype="int32")`. For identities that may be unknown, reserve a row,
    as for words that are not in a vocabulary: `Embedding(1 + known, units)` with 0 for
    the unknown, given to some of the sequences in training too. (Not -1: Keras reads
    that as the last row.)

    In a stateful layer, the context is used where a stream starts afresh, and is
    passed at every call.

    Args:
        encoder: Keras layer or model that maps the context, `(batch, ...)` or a
            structure of such tensors, to `(batch, units)`. It is copied, with its
            weights: each state has an encoder of its own,
            `layer.initial_state[0].encoder`.
        **kwargs: Base layer arguments, such as `name` and `trainable`.

    Raises:
        ValueError: If `encoder` is not a layer of Keras, or does not map the context
            to `(batch, units)`.

    Example:
    >>> start = keras_init_lstm.Conditional(keras.layers.Embedding(100, 4))
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state=start)
    >>> customers = np.array([17, 4, 17])
    >>> layer(np.zeros((3, 10, 8)), context=customers).shape
    TensorShape([3, 4])
    >>> h, c = layer.get_initial_state(3, context=customers)
    >>> bool((h[0] == h[2]).numpy().all())
    True
    """

    takes_context = True

    def __init__(self, encoder: keras.layers.Layer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(encoder, keras.layers.Layer):
            raise ValueError(
                "Argument `encoder` must be a layer or model of Keras 3. "
                f"Received: encoder={received(encoder)}"
            )
        self.encoder = encoder

    def copy(self, **kwargs: Any) -> "Conditional":
        _, given = self._arguments
        arguments = {**given, **kwargs, "encoder": copy_layer(self.encoder)}
        copied = type(self)(**arguments)
        if not self.trainable:
            # Of itself, since Keras does not hand down what is no change.
            copied.trainable = copied.encoder.trainable = False
        return copied

    def build(self, state_shape: tuple[int], context_shape: Any = None) -> None:
        super().build(state_shape)
        if context_shape is None:
            return
        if not self.encoder.built:
            self.encoder.build(context_shape)
        try:
            output_shape = self.encoder.compute_output_shape(context_shape)
        except NotImplementedError:  # As in a layer of the user's own; seen at a call.
            return
        self._check_output(output_shape)

    def call(
        self, batch_size: Any, training: bool = False, context: Any = None
    ) -> tf.Tensor:
        kwargs = {}
        if "training" in inspect.signature(self.encoder.call).parameters:
            kwargs["training"] = training
        state = self.encoder(context, **kwargs)
        self._check_output(getattr(state, "shape", None), batch_size)
        return state

    def _check_output(self, shape: Any, batch_size: Any = None) -> None:
        expected = (batch_size if isinstance(batch_size, int) else None, self.units)
        try:
            fits = shape is not None and tf.TensorShape(shape).is_compatible_with(
                expected
            )
        except (TypeError, ValueError):  # The encoder returned a structure.
            fits = False
        if not fits:
            raise ValueError(
                "The `encoder` of Conditional must map the `context` to a tensor of "
                f"shape {shape_text(expected)}, one row for each sequence. "
                f"Received: an output of shape {shape} of {self.encoder.name}"
            )

    def get_config(self) -> dict[str, Any]:
        encoder = keras.saving.serialize_keras_object(self.encoder)
        return {**super().get_config(), "encoder": encoder}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Conditional":
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        return cls(**{**config, "encoder": encoder})


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitStateBidirectional(keras.layers.Bidirectional):
    """`keras.layers.Bidirectional` that hands a `context` to both of its layers.

    Around layers without a `Conditional` state it is not needed.

    Args:
        layer: A layer of this package, such as `InitStateLSTM`.
        *args: The other arguments of `keras.layers.Bidirectional`, in its order.
        **kwargs: The keyword arguments of `keras.layers.Bidirectional`.

    Call arguments:
        context: What the `Conditional` states are computed from: a tensor
            `(batch, ...)` or a structure of them. Each direction has an encoder of
            its own. The other arguments are those of `keras.layers.Bidirectional`.

    Raises:
        ValueError: If a layer is not of this package, or as by the layers.

    Example:
    >>> start = keras_init_lstm.Conditional(keras.layers.Dense(4))
    >>> layer = keras_init_lstm.InitStateBidirectional(
    ...     keras_init_lstm.InitStateLSTM(4, initial_state=start)
    ... )
    >>> layer(np.zeros((32, 10, 8)), context=np.ones((32, 3))).shape
    TensorShape([32, 8])
    """

    def __init__(self, layer: InitStateRNN, *args: Any, **kwargs: Any) -> None:
        super().__init__(layer, *args, **kwargs)
        for argument, direction in (
            ("layer", self.forward_layer),
            ("backward_layer", self.backward_layer),
        ):
            if not isinstance(direction, InitStateRNN):
                raise ValueError(
                    f"Argument `{argument}` must be a layer of this package, such as "
                    f"InitStateLSTM. Received: {direction}"
                )
        # Keras makes both anew from the configuration of one.
        made = [self.forward_layer]
        if kwargs.get("backward_layer") is None and len(args) < 3:
            made.append(self.backward_layer)
        entries: list[Any] = layer.initial_state
        for direction in made:
            copies: list[Any] = direction.initial_state
            for given, entry in zip(entries, copies, strict=True):
                if entry is not None and entry.takes_context and given.encoder.built:
                    hand_over(given.encoder, entry.encoder)

    @property
    def _directions(self) -> tuple[InitStateRNN, InitStateRNN]:
        return self.forward_layer, self.backward_layer

    def __call__(self, *args: Any, context: Any = None, **kwargs: Any) -> Any:
        given = args[1] if len(args) > 1 else kwargs.get("initial_state")
        if given is None:
            users = [d for d in self._directions if d.takes_context]
            for direction in users or self._directions:
                direction.check_context(context)
        if context is not None:
            sequences = args[0] if args else kwargs["sequences"]
            kwargs["context"] = hide_context(self, sequences, context)
        return super().__call__(*args, **kwargs)

    def compute_output_spec(self, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        return super().compute_output_spec(sequences)

    def build(
        self,
        sequences_shape: tuple[int | None, ...],
        initial_state_shape: Any = None,
        context_shape: Any = None,
    ) -> None:
        for direction in self._directions:
            if not direction.built:
                direction.build(sequences_shape, context_shape=context_shape)
        super().build(sequences_shape, initial_state_shape)

    def call(
        self,
        sequences: tf.Tensor,
        initial_state: Any = None,
        mask: tf.Tensor | None = None,
        training: bool | None = None,
        context: Any = None,
    ) -> Any:
        if initial_state is None and context is not None:
            batch_size = ops.shape(sequences)[0]
            initial_state = [
                state
                for direction in self._directions
                for state in direction.starts(batch_size, None, bool(training), context)
            ]
        return super().call(
            sequences, initial_state=initial_state, mask=mask, training=training
        )
