"""Initial states that are computed from a context of each sequence."""

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
    """An initial state computed from the `context` that the layer is called with.

    The initial state of each row is `encoder(context)`. A `Dense` computes it from
    static features, as in
    [Mohajerin and Waslander, 2017](https://doi.org/10.1109/IJCNN.2017.7966138). An
    `Embedding` learns one for each customer, sensor or subject from an identity; the
    identities are a tensor `(batch,)`, in a model `keras.Input((), dtype="int32")`. For
    identities that may be unknown, reserve a row, as for words that are not in a
    vocabulary: `Embedding(1 + known, units)` with 0 for the unknown, which some of the
    sequences in training must have. (Not -1: Keras reads that as the last row.)

    With `over_time=True` the context has a time axis, `(batch, timesteps, ...)`. The
    encoder then reads it at the first timestep of a sequence: the one that the layer
    reads first, and within a batch the ones where `reset_mask` is True.

    In a stateful layer, the context is used where a stream starts or is reset, and is
    passed at every call. It must be finite at each call, since a NaN that is not used
    still makes the gradient of the encoder NaN.

    Args:
        encoder: Keras layer or model that maps the context, `(batch, ...)` or a
            structure of such tensors, to `(batch, units)`. Each state gets its own
            copy, with the weights: `layer.initial_state[0].encoder`.
        over_time: Boolean, whether the context has a time axis. The encoder is then
            given one timestep. Defaults to `False`.
        **kwargs: Base layer arguments: `name` and `trainable`.

    Raises:
        ValueError: If `encoder` is not a layer of Keras, or does not map the context
            to `(batch, units)`.

    Example:
    >>> start = keras_init_lstm.Conditional(keras.layers.Embedding(100, 4))
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state=start)
    >>> customers = np.array([17, 4, 17])
    >>> tuple(layer(np.zeros((3, 10, 8)), context=customers).shape)
    (3, 4)
    >>> h, c = layer.get_initial_state(3, context=customers)
    >>> bool(keras.ops.all(h[0] == h[2]))
    True
    """

    takes_context = True
    _read_once = frozenset({"encoder", "over_time"})

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
        # TensorFlow ignores the assignment of a value that the class has already.
        self.__dict__["over_time"] = over_time

    def copy(self, **kwargs: Any) -> Self:
        copied = super().copy(**kwargs)
        if not copied.trainable:
            # Keras passes on to the layers inside only a `trainable` that changes.
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
        # A configuration does not hold the weights that an encoder was made with.
        if self.encoder.built:
            hand_over(self.encoder, other.encoder)

    def build(self, state_shape: tuple[int], context_shape: Any = None) -> None:
        super().build(state_shape)
        if builds_itself(self.encoder) and not self.encoder.built:
            self.encoder.build(context_shape)
        try:
            output_shape = self.encoder.compute_output_shape(context_shape)
        except NotImplementedError:
            return  # Not every layer can tell: then `call()` checks the output itself.
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
        rows = batch_size * timesteps
        folded = keras.tree.map_structure(
            lambda leaf: ops.reshape(leaf, (rows, *leaf.shape[2:])), context
        )
        states = self.call(rows, training, folded)
        return ops.reshape(states, (batch_size, timesteps, self.units))

    def _missing(self, name: str) -> str:
        if name == "units":
            return super()._missing(name)
        return (
            f"{type(self).__name__} {self.name!r} owns no `{name}`: the state is "
            "computed from the context. See the weights of its `encoder`"
        )

    def _check_output(self, shape: Any, batch_size: Any = None) -> None:
        known = isinstance(batch_size, int) and not infers_shapes()
        expected = (batch_size if known else None, self.units)
        try:
            right = fits(tuple(shape), expected)
        except TypeError:  # The encoder returned a structure.
            right = False
        if not right:
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
