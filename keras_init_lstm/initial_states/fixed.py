"""The kind of initial state that training does not change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from keras_init_lstm._types import (
    Initializer,
    LayerArguments,
    Numbers,
    Shape,
)
from keras_init_lstm.initial_states.base import (
    OwnedValue,
    add_variable,
    check_numbers,
    numbers_or_initializer,
    serialized,
    set_per_position,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class Fixed(OwnedValue):
    """An initial state that training does not change.

    It owns a non-trainable `value` of shape `(units,)`, from which every row of every
    batch starts. The value is saved with the model's weights.

    Args:
        value: Number, array of shape `(units,)`, or Keras initializer (an
            instance or its name). For an `InitStateConvLSTM2D`, also an array of the
            shape of the state, `(rows, cols, filters)`. Defaults to `"zeros"`.
        per_position: Boolean, as in `Trainable`: whether `value` has the shape of the
            state of a ConvLSTM. An array of that shape sets it. Defaults to `False`.
        **kwargs: Base layer arguments: `name` and `dtype`.

    Raises:
        ValueError: If `value` is none of these, or is not finite. When it is passed to
            a layer, if its shape does not fit the state, or if `per_position` is
            `True` and the layer is not a ConvLSTM.

    Example:
    >>> fixed = keras_init_lstm.Fixed([0.5, 1.0])
    >>> layer = keras_init_lstm.InitStateLSTM(2, initial_state=[fixed, None])
    >>> h, c = layer.get_initial_state(batch_size=3)
    >>> keras.ops.convert_to_numpy(h).tolist()
    [[0.5, 1.0], [0.5, 1.0], [0.5, 1.0]]
    """

    def __init__(
        self,
        value: Numbers | Initializer = "zeros",
        per_position: bool = False,
        **kwargs: Unpack[LayerArguments],
    ) -> None:
        super().__init__(**kwargs)
        self._argument = numbers_or_initializer(value, "value")
        set_per_position(self, per_position, self._argument)

    def check(self, state_shape: Shape) -> None:
        check_numbers(self, state_shape, value=self._argument)

    def build(self, state_shape: tuple[int, ...]) -> None:
        super().build(state_shape)
        self.value = add_variable(self, "value", self._argument, trainable=False)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "value": serialized(self._argument),
            "per_position": self.per_position,
        }
