"""The kind of initial state that is computed from a context of each sequence."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_init_lstm._checks import described, fits, one_of, shape_text
from keras_init_lstm._copies import (
    build_from_config,
    builds_itself,
    copy_layer,
    hand_over,
    specs_of_shapes,
)
from keras_init_lstm._keras import infers_shapes
from keras_init_lstm._types import LayerArguments
from keras_init_lstm.initial_states.base import InitialState

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class Conditional(InitialState):
    """An initial state that is computed from the `context` of the layer's call.

    The initial state of each row is `encoder(context)`. A `Dense` computes it from
    static features, as in
    [Mohajerin and Waslander, 2017](https://doi.org/10.1109/IJCNN.2017.7966138). An
    `Embedding` learns one initial state for each customer, sensor or subject from its
    ID. The IDs are a tensor `(batch,)`, in a model `keras.Input((), dtype="int32")`. If
    an ID may be unknown, reserve row 0 for it, as for words that are not in a
    vocabulary: `Embedding(1 + known, units)`. Some sequences in training must have the
    ID 0. (Don't use -1: Keras reads it as the last row.)

    With `over_time=True` the context has a time axis, `(batch, timesteps, ...)`. The
    encoder then reads the context of the first timestep of a sequence: the timestep
    that the layer reads first, and each timestep where `reset_mask` is True.

    Pass the context at every call of a stateful layer. It is used for the rows that
    have not been called since the last reset. It must be finite at every call: a NaN
    that is not used still makes the gradient of the encoder NaN.

    An encoder that reads the past of a sequence, such as `LSTM(units,
    return_state=True)`, computes all the states of the layer at once: its last states
    are the initial states. The implicit mask of a padded past (from `Masking`, or from
    `Embedding(mask_zero=True)`) reaches it. To pass a mask yourself, use a Functional
    model of two inputs as the encoder, and the context `[past, mask]`.

    Args:
        encoder: Keras layer or model that maps the context, `(batch, ...)` or a
            structure of such tensors, to `(batch, units)`. For an InitStateConvLSTM2D,
            to `(batch, filters)`, which is broadcast over all positions, or to the
            shape of the state, `(batch, rows, cols, filters)`. Each state gets its own
            copy, with the weights: `layer.initial_state[0].encoder`. Or an encoder that
            returns all the states; see `all_states`.
        over_time: Boolean, whether the context has a time axis. The encoder then gets
            the context of one timestep. Defaults to `False`.
        all_states: Boolean, whether the encoder returns one tensor for each state of
            the layer (of an LSTM, h and c), nested in any way. The states then share
            one copy of it: `layer.h0.encoder` and `layer.c0.encoder` are the same
            object. Only the states of a recurrent encoder are used, and not its output.
            In a list of entries for stacked cells, it returns the states of one cell.
            Defaults to `None`: `True` for a recurrent layer with `return_state=True`,
            for a `Sequential` model that ends with one, and for a Functional model with
            several outputs.
        **kwargs: Base layer arguments: `name` and `trainable`.

    Raises:
        ValueError: If `encoder` is not a layer of Keras, or if `over_time` or
            `all_states` is not one of the values above. When the layer is built or
            called, if `encoder` does not map the context to `(batch, units)`, or to one
            such tensor for each state.

    Example:
    >>> conditional = keras_init_lstm.Conditional(keras.layers.Embedding(100, 4))
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state=conditional)
    >>> customers = np.array([17, 4, 17])
    >>> tuple(layer(np.zeros((3, 10, 8)), context=customers).shape)
    (3, 4)
    >>> h, c = layer.get_initial_state(3, context=customers)
    >>> bool(keras.ops.all(h[0] == h[2]))
    True

    The initial state of a forecast is the last state of an encoder of the past:

    >>> encoder = keras.layers.LSTM(4, return_state=True)
    >>> past, future = np.ones((3, 20, 8)), np.zeros((3, 10, 8))
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state=Conditional(encoder))
    >>> tuple(layer(future, context=past).shape)
    (3, 4)
    """

    takes_context = True
    per_position = True
    _set_once = frozenset({"encoder", "over_time", "all_states"})

    def __init__(
        self,
        encoder: keras.layers.Layer,
        over_time: bool = False,
        all_states: bool | None = None,
        **kwargs: Unpack[LayerArguments],
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(encoder, keras.layers.Layer):
            raise ValueError(
                "Argument `encoder` must be a layer or model of Keras 3. "
                f"Received: encoder={described(encoder)}"
            )
        one_of(over_time, "over_time", (False, True))
        one_of(all_states, "all_states", (None, False, True))
        self.encoder = encoder
        if all_states is None:
            all_states = _returns_states(encoder)
        # On TensorFlow, assigning the value that the class attribute has does nothing,
        # and `__setattr__()` would not find the attribute in `vars(self)` later.
        self.__dict__.update(over_time=over_time, all_states=all_states)

    def copy(self, **kwargs: Any) -> Self:
        copied = super().copy(**kwargs)
        if not copied.trainable:
            # Keras passes `trainable` to inner layers only when it changes.
            copied.encoder.trainable = False
        return copied

    def _arguments_of_copy(self) -> tuple[Any, Any]:
        encoder = copy_layer(self.encoder)
        args, kwargs = self._made_with
        return (
            [encoder if value is self.encoder else value for value in args],
            {k: encoder if v is self.encoder else v for k, v in kwargs.items()},
        )

    def hand_over_to(self, other: Self) -> None:
        # A configuration does not hold the weights of the encoder.
        if self.encoder.built:
            hand_over(self.encoder, other.encoder)

    def build(self, state_shape: Any, context_shape: Any = None) -> None:
        super().build(state_shape)
        if builds_itself(self.encoder) and not self.encoder.built:
            self.encoder.build(context_shape)
        try:
            output_shape = self.encoder.compute_output_shape(context_shape)
        except NotImplementedError:
            return  # `call()` checks the output of a layer that can't infer its shape.
        self._states_of(specs_of_shapes(output_shape))

    def call(self, batch_size: Any, training: bool = False, context: Any = None) -> Any:
        kwargs = {}
        if "training" in inspect.signature(self.encoder.call).parameters:
            kwargs["training"] = training
        return self._states_of(self.encoder(context, **kwargs), batch_size)

    def by_timestep(
        self,
        batch_size: Any,
        timesteps: Any,
        training: bool = False,
        context: Any = None,
    ) -> Any:
        if not self.over_time:
            return None
        folded_batch_size = batch_size * timesteps
        folded = keras.tree.map_structure(
            lambda leaf: ops.reshape(leaf, (folded_batch_size, *leaf.shape[2:])),
            context,
        )
        return keras.tree.map_structure(
            lambda state: ops.reshape(state, (batch_size, timesteps, *state.shape[1:])),
            self.call(folded_batch_size, training, folded),
        )

    def _states_of(self, outputs: Any, batch_size: Any = None) -> Any:
        """Returns the states among the outputs of the encoder, a list or one tensor.

        Raises:
            ValueError: If they are not of shape `(batch_size, units)`, or of the whole
                shape of a state.
        """
        knows_batch_size = isinstance(batch_size, int) and not infers_shapes()
        rows = batch_size if knows_batch_size else None
        states, text = [outputs], "a tensor"
        of_states = [(self.units, self.state_shape)]
        if self.all_states:
            states = keras.tree.flatten(outputs)[_outputs_before_states(self.encoder) :]
            text = f"{len(self.state_shape)} tensors, one for each state of the layer"
            of_states = list(zip(self.units, self.state_shape, strict=True))
        # Without a space, both shapes of a state are `(batch, units)`.
        expected = [
            dict.fromkeys([(rows, units), (rows, *shape)]) for units, shape in of_states
        ]
        if len(states) != len(expected) or not all(
            any(_has_shape(state, shape) for shape in shapes)
            for state, shapes in zip(states, expected, strict=True)
        ):
            texts = [" or ".join(map(shape_text, shapes)) for shapes in expected]
            hint = ""
            if keras.tree.is_nested(outputs) and not self.all_states:
                hint = " For an encoder of all the states, pass `all_states=True`."
            raise ValueError(
                f"The `encoder` of Conditional must map the `context` to {text}, of "
                f"shape {', '.join(texts)}: one row for each "
                f"sequence.{hint} Received: {_shapes_text(outputs)} from "
                f"{self.encoder.name}"
            )
        return states if self.all_states else outputs

    def _missing(self, name: str) -> str:
        if name == "units":
            return super()._missing(name)
        return (
            f"{type(self).__name__} {self.name!r} owns no `{name}`: the state is "
            "computed from the context. See the weights of its `encoder`"
        )

    def get_config(self) -> dict[str, Any]:
        encoder = keras.saving.serialize_keras_object(self.encoder)
        return {
            **super().get_config(),
            "encoder": encoder,
            "over_time": self.over_time,
            "all_states": self.all_states,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        encoder = config["encoder"]
        if isinstance(encoder, dict):
            shapes = encoder.get("build_config")
            encoder = keras.saving.deserialize_keras_object(
                {**encoder, "build_config": None}
            )
            build_from_config(encoder, shapes)
        return super().from_config({**config, "encoder": encoder})


def _last_layer(encoder: Any) -> Any:
    """Returns the layer that makes the outputs of an encoder."""
    while isinstance(encoder, keras.Sequential) and encoder.layers:
        encoder = encoder.layers[-1]
    return encoder


def _is_recurrent(layer: Any) -> bool:
    return isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional))


def _returns_states(encoder: keras.layers.Layer) -> bool:
    """Whether an encoder returns several states, as far as its class tells."""
    last = _last_layer(encoder)
    if _is_recurrent(last):
        return bool(last.return_state)
    return isinstance(last, keras.Function) and len(last.outputs) > 1


def _outputs_before_states(encoder: keras.layers.Layer) -> int:
    """Returns how many outputs of an encoder come before its states."""
    last = _last_layer(encoder)
    if not (_is_recurrent(last) and last.return_state):
        return 0
    # Without a merge mode, a Bidirectional returns one output for each direction.
    return 1 if getattr(last, "merge_mode", "concat") else 2


def _has_shape(tensor: Any, expected: tuple[int | None, ...]) -> bool:
    try:
        return fits(tuple(tensor.shape), expected)
    except (AttributeError, TypeError):  # A structure of tensors.
        return False


def _shapes_text(outputs: Any) -> str:
    shapes = [getattr(x, "shape", None) for x in keras.tree.flatten(outputs)]
    if not keras.tree.is_nested(outputs):
        return f"an output of shape {shapes[0]}"
    return f"outputs of shapes {shapes}"
