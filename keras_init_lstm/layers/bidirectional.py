"""`Bidirectional` for layers that are called with a context, or with a reset mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import keras

from keras_init_lstm._checks import described
from keras_init_lstm._types import LayerArguments
from keras_init_lstm.layers._call import TakesContext, unwrapped
from keras_init_lstm.layers.rnn import InitStateRNN
from keras_init_lstm.loops.call import InPlaceOfMask

if TYPE_CHECKING:
    from typing_extensions import Unpack


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitStateBidirectional(TakesContext, keras.layers.Bidirectional):
    """`keras.layers.Bidirectional` with a `context` and a `reset_mask`.

    It hands both to its two layers. Without them, `keras.layers.Bidirectional` around a
    layer of this package does the same.

    Args:
        layer: A layer of this package, such as `InitStateLSTM`.
        merge_mode: This and the next as in `keras.layers.Bidirectional`.
        weights: As in `keras.layers.Bidirectional`.
        backward_layer: A layer of this package that goes backwards. Defaults to
            `None`, one like `layer`.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Call arguments:
        context: What the `Conditional` states are computed from: a tensor
            `(batch, ...)` or a structure of them. Each direction has its own encoder.
        reset_mask: Boolean tensor `(batch, timesteps)`, `True` where a new sequence
            begins; the backward layer reads each from its own end. Or `(batch,)`, for
            the timestep that each direction reads first. The other arguments are as in
            `keras.layers.Bidirectional`.

    Raises:
        ValueError: If a layer is not of this package; and as the layers raise it.

    Example:
    >>> start = keras_init_lstm.Conditional(keras.layers.Dense(4))
    >>> layer = keras_init_lstm.InitStateBidirectional(
    ...     keras_init_lstm.InitStateLSTM(4, initial_state=start)
    ... )
    >>> tuple(layer(np.zeros((32, 10, 8)), context=np.ones((32, 3))).shape)
    (32, 8)
    """

    def __init__(
        self,
        layer: InitStateRNN,
        merge_mode: Literal["concat", "sum", "mul", "ave"] | None = "concat",
        weights: Any = None,
        backward_layer: InitStateRNN | None = None,
        **kwargs: Unpack[LayerArguments],
    ) -> None:
        _check_ours(layer, "layer")
        if backward_layer is not None:
            _check_ours(backward_layer, "backward_layer")
        super().__init__(
            layer,
            merge_mode=merge_mode,
            weights=weights,
            backward_layer=backward_layer,
            **kwargs,
        )
        # Keras has made them from a configuration, which does not hold the weights of
        # an encoder that was trained before.
        made = [self.forward_layer]
        if backward_layer is None:
            made.append(self.backward_layer)
        for direction in made:
            pairs = zip(layer.initial_state, direction.initial_state, strict=True)
            for source, target in pairs:
                if source is not None:
                    source.hand_over_to(target)

    def _directions(self, states: Any) -> list[tuple[InitStateRNN, Any]]:
        """Each of the two layers, with its half of the states given at a call."""
        if states is None:
            return [(self.forward_layer, None), (self.backward_layer, None)]
        half = len(self.forward_layer.state_size)
        if not isinstance(states, (list, tuple)) or len(states) != 2 * half:
            names = ", ".join(self.forward_layer.state_names)
            raise ValueError(
                f"Argument `initial_state` must be a list of {2 * half}: forwards "
                f"{names}, then the same backwards. Received: {described(states)}"
            )
        return [
            (self.forward_layer, states[:half]),
            (self.backward_layer, states[half:]),
        ]

    @property
    def takes_context(self) -> bool:
        """Whether an initial state of either direction is `Conditional`."""
        return self.forward_layer.takes_context or self.backward_layer.takes_context

    def _check_call(
        self, sequences: Any, initial_state: Any, context: Any, reset_mask: Any
    ) -> None:
        for direction, states in self._directions(initial_state):
            # What only one of them uses is not superfluous.
            takes_it = direction.takes_context or not self.takes_context
            direction._check_call(
                sequences, states, context if takes_it else None, reset_mask
            )

    def _build_owned(self, context: Any = None, at_once: bool = False) -> None:
        with keras.name_scope(self.name):
            for direction, _ in self._directions(None):
                direction._build_owned(context, at_once)

    def build(
        self,
        sequences_shape: tuple[int | None, ...],
        initial_state_shape: Any = None,
        context_shape: Any = None,
    ) -> None:
        for direction, _ in self._directions(None):
            if not direction.built:
                direction.build(sequences_shape, context_shape=context_shape)
        super().build(sequences_shape, initial_state_shape)

    def call(
        self,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool | None = None,
        context: Any = None,
        reset_mask: Any = None,
    ) -> Any:
        context, reset_mask = unwrapped(context), unwrapped(reset_mask)
        if context is not None or reset_mask is not None:
            mask = InPlaceOfMask(mask, reset_mask, context=context)
        return super().call(
            sequences, initial_state=initial_state, mask=mask, training=training
        )


def _check_ours(layer: Any, argument: str) -> None:
    if not isinstance(layer, InitStateRNN):
        raise ValueError(
            f"Argument `{argument}` must be a layer of this package, such as "
            f"InitStateLSTM. Received: {described(layer)}"
        )
