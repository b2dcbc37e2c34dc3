"""Layers in the models that `as_encoder_and_decoder()` and `StreamStore` make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_init_lstm.layers._call import specs_of
from keras_init_lstm.layers.rnn import InitStateRNN

if TYPE_CHECKING:
    from typing_extensions import Self


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class WithMask(keras.layers.Layer):
    """Attaches a mask to a tensor, for the layers that read implicit masks.

    Call arguments:
        inputs: A list of a tensor `(batch, timesteps, ...)` and its mask, a boolean
            tensor `(batch, timesteps)`.

    Example:
    >>> from keras_init_lstm.streams._layers import WithMask
    >>> x, mask = np.ones((1, 2, 3)), np.array([[True, False]])
    >>> keras.layers.LSTM(4)(WithMask()([x, mask])).shape == (1, 4)
    True
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        return inputs[0] + 0  # The mask belongs to another tensor than the input.

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        return inputs[1]


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitialStates(keras.layers.Layer):
    """Computes the initial states that a recurrent layer owns, for each row of a batch.

    Args:
        layer: The recurrent layer. Only its initial states are built.
        sequences_shape: The shape of its input sequences, if its cell must be built to
            know the shapes of the states. Defaults to `None`.
        **kwargs: Base layer arguments.

    Call arguments:
        rows: Any tensor `(batch, ...)`.
        context: The context of the layer. Defaults to `None`.

    Example:
    >>> from keras_init_lstm.streams._layers import InitialStates
    >>> states = InitialStates(keras_init_lstm.InitStateLSTM(4, initial_state=0.5))
    >>> [tuple(state.shape) for state in states(np.ones((2, 5, 3)))]
    [(2, 4), (2, 4)]
    """

    def __init__(
        self,
        layer: keras.layers.RNN,
        sequences_shape: Sequence[int | None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.layer = layer
        self.sequences_shape = sequences_shape and tuple(sequences_shape)
        if sequences_shape is not None:
            layer.build(self.sequences_shape)

    def __call__(self, rows: Any, context: Any = None, **kwargs: Any) -> Any:
        if context is not None:
            kwargs["context"] = context
        if isinstance(self.layer, InitStateRNN):
            # Keras would pass only the shapes of the context, and no dtypes.
            self.layer._build_owned(specs_of(context), at_once=True)
        return super().__call__(rows, **kwargs)

    def build(self, *shapes: Any) -> None:
        pass  # Unlike Keras, leave the cell of the layer unbuilt.

    def call(self, rows: Any, context: Any = None) -> Any:
        arguments = {} if context is None else {"context": context}
        return self.layer.get_initial_state(ops.shape(rows)[0], **arguments)

    def get_config(self) -> dict[str, Any]:
        layer = keras.saving.serialize_keras_object(self.layer)
        shape = self.sequences_shape and list(self.sequences_shape)
        return {**super().get_config(), "layer": layer, "sequences_shape": shape}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        layer = keras.saving.deserialize_keras_object(config["layer"])
        return cls(**{**config, "layer": layer})
