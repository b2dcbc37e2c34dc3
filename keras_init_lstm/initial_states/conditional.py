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

    Args:
        encoder: Keras layer or model that maps the context, `(batch, ...)` or a
            structure of such tensors, to `(batch, units)`. Each state gets its own
            copy, with the weights: `layer.initial_state[0].encoder`.
        over_time: Boolean, whether the context has a time axis. The encoder then gets
            the context of one timestep. Defaults to `False`.
        **kwargs: Base layer arguments: `name` and `trainable`.

    Raises:
        ValueError: If `encoder` is not a layer of Keras, or if `over_time` is not a
            boolean. When the layer is built or called, if `encoder` does not map the
            context to `(batch, units)`.

    Example:
    >>> conditional = keras_init_lstm.Conditional(keras.layers.Embedding(100, 4))
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state=conditional)
    >>> customers = np.array([17, 4, 17])
    >>> tuple(layer(np.zeros((3, 10, 8)), context=customers).shape)
    (3, 4)
    >>> h, c = layer.get_initial_state(3, context=customers)
    >>> bool(keras.ops.all(h[0] == h[2]))
    True
    """

    takes_context = True
    _set_once = frozenset({"encoder", "over_time"})

    def __init__(
        self,
        encoder: keras.layers.Layer,
        over_time: bool = False,
        **kwargs: Unpack[LayerArguments],
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(encoder, keras.layers.Layer):
            raise ValueError(
                "Argument `encoder` must be a layer or model of Keras 3. "
                f"Received: encoder={described(encoder)}"
            )
        one_of(over_time, "over_time", (False, True))
        self.encoder = encoder
        # On TensorFlow, assigning the value that the class attribute has does nothing,
        # and `__setattr__()` would not find `over_time` in `vars(self)` later.
        self.__dict__["over_time"] = over_time

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

    def build(self, state_shape: tuple[int], context_shape: Any = None) -> None:
        super().build(state_shape)
        if builds_itself(self.encoder) and not self.encoder.built:
            self.encoder.build(context_shape)
        try:
            output_shape = self.encoder.compute_output_shape(context_shape)
        except NotImplementedError:
            return  # `call()` checks the output of a layer that can't infer its shape.
        self._check_output(output_shape)

    def call(self, batch_size: Any, training: bool = False, context: Any = None) -> Any:
        kwargs = {}
        if "training" in inspect.signature(self.encoder.call).parameters:
            kwargs["training"] = training
        state = self.encoder(context, **kwargs)
        self._check_output(getattr(state, "shape", None), batch_size)
        return state

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
        states = self.call(folded_batch_size, training, folded)
        return ops.reshape(states, (batch_size, timesteps, self.units))

    def _missing(self, name: str) -> str:
        if name == "units":
            return super()._missing(name)
        return (
            f"{type(self).__name__} {self.name!r} owns no `{name}`: the state is "
            "computed from the context. See the weights of its `encoder`"
        )

    def _check_output(self, shape: Any, batch_size: Any = None) -> None:
        knows_batch_size = isinstance(batch_size, int) and not infers_shapes()
        expected = (batch_size if knows_batch_size else None, self.units)
        try:
            is_valid = fits(tuple(shape), expected)
        except TypeError:  # The encoder returned a structure.
            is_valid = False
        if not is_valid:
            raise ValueError(
                "The `encoder` of Conditional must map the `context` to a tensor of "
                f"shape {shape_text(expected)}, one row for each sequence. "
                f"Received: an output of shape {shape} of {self.encoder.name}"
            )

    def get_config(self) -> dict[str, Any]:
        encoder = keras.saving.serialize_keras_object(self.encoder)
        return {
            **super().get_config(),
            "encoder": encoder,
            "over_time": self.over_time,
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
