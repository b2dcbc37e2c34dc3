"""The kind of initial state that is learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from keras_init_lstm._types import (
    Constraint,
    Initializer,
    LayerArguments,
    Numbers,
    Regularizer,
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
class Trainable(OwnedValue):
    """An initial state that is learned with the other weights.

    It owns a trainable `value` of shape `(units,)`, from which every row of every
    batch starts. Its gradient is the sum of the gradients of the rows. [Forcada and
    Carrasco, 1995](https://doi.org/10.1162/neco.1995.7.5.923) learn the initial state
    of a recurrent network.

    Args:
        initializer: Keras initializer (an instance or its name), number, or array
            of shape `(units,)`, for the value before training. For a ConvLSTM, also an
            array of the shape of the state. Defaults to `"zeros"`.
        regularizer: Keras regularizer of the value. Defaults to `None`.
        constraint: Keras constraint of the value. Defaults to `None`.
        per_position: Boolean, for the layers InitStateConvLSTM1D, 2D and 3D. If
            `False`, one value for each filter is learned and broadcast over all
            positions; if `True`, one value for each filter at each position, so that
            `value` has the shape of the state, `(rows, cols, filters)`. An array of
            that shape sets it. Defaults to `False`.
        **kwargs: Base layer arguments: `name`, `dtype` and `trainable`.

    Raises:
        ValueError: If `initializer` is none of these, or is not finite; if Keras does
            not know `regularizer` or `constraint`. When it is passed to a layer, if the
            shape of `initializer` does not fit the state, or if `per_position` is
            `True` and the layer is not a ConvLSTM.

    Example:
    >>> trainable = keras_init_lstm.Trainable(regularizer="l2")
    >>> layer = keras_init_lstm.InitStateLSTM(2, initial_state=trainable)
    >>> outputs = layer(np.zeros((8, 5, 3)))
    >>> [v.path.split("/", 1)[1] for v in layer.trainable_variables[-2:]]
    ['h0/value', 'c0/value']
    """

    def __init__(
        self,
        initializer: Numbers | Initializer = "zeros",
        regularizer: Regularizer = None,
        constraint: Constraint = None,
        per_position: bool = False,
        **kwargs: Unpack[LayerArguments],
    ) -> None:
        super().__init__(**kwargs)
        self._argument = numbers_or_initializer(initializer, "initializer")
        self.regularizer = keras.regularizers.get(regularizer)
        self.constraint = keras.constraints.get(constraint)
        set_per_position(self, per_position, self._argument)

    def check(self, state_shape: Shape) -> None:
        check_numbers(self, state_shape, initializer=self._argument)

    def build(self, state_shape: tuple[int, ...]) -> None:
        super().build(state_shape)
        self.value = add_variable(
            self,
            "value",
            self._argument,
            regularizer=self.regularizer,
            constraint=self.constraint,
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "initializer": serialized(self._argument),
            "regularizer": keras.regularizers.serialize(self.regularizer),
            "constraint": keras.constraints.serialize(self.constraint),
            "per_position": self.per_position,
        }
