"""`Bidirectional` for layers that are called with a context or a reset mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import keras

from keras_init_lstm._checks import described
from keras_init_lstm._types import LayerArguments, Shape
from keras_init_lstm.layers._call import TakesContext, unwrapped
from keras_init_lstm.layers.rnn import InitStateRNN
from keras_init_lstm.loops.call import InPlaceOfMask

if TYPE_CHECKING:
    from typing_extensions import Unpack


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitStateBidirectional(TakesContext, keras.layers.Bidirectional):
    """`keras.layers.Bidirectional` with a `context` and a `reset_mask`.

    It passes both to its two layers. A model that needs neither can use
    `keras.layers.Bidirectional` around a layer of this package.

    Args:
        layer: A layer of this package, such as `InitStateLSTM`.
        merge_mode: This and the next as in `keras.layers.Bidirectional`.
        weights: As in `keras.layers.Bidirectional`.
        backward_layer: A layer of this package with `go_backwards=True`. Defaults to
            `None`, which makes it from the configuration of `layer`.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Call arguments:
        sequences: This and the next three as in `keras.layers.Bidirectional`.
        initial_state: As in `keras.layers.Bidirectional`.
        mask: As in `keras.layers.Bidirectional`.
        training: As in `keras.layers.Bidirectional`.
        context: The tensor `(batch, ...)`, or structure of tensors, from which the
            `Conditional` states are computed. Each direction has its own encoder.
            Defaults to `None`.
        reset_mask: Boolean tensor `(batch, timesteps)`, `True` where a new sequence
            begins; the backward layer reads each sequence from its own end. Or a
            boolean tensor `(batch,)`, for the timestep that each direction reads first.
            Defaults to `None`.

    Raises:
        ValueError: If a layer is not of this package, or if an argument of a call does
            not fit the layers.

    Example:
    >>> conditional = keras_init_lstm.Conditional(keras.layers.Dense(4))
    >>> layer = keras_init_lstm.InitStateBidirectional(
    ...     keras_init_lstm.InitStateLSTM(4, initial_state=conditional)
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
        # Keras creates the directions from a configuration, which does not hold the
        # weights of a trained encoder.
        created = [self.forward_layer]
        if backward_layer is None:
            created.append(self.backward_layer)
        for direction in created:
            pairs = zip(layer.initial_state, direction.initial_state, strict=True)
            for source, target in pairs:
                if source is not None:
                    source.hand_over_to(target)

    def _directions(self, states: Any) -> list[tuple[InitStateRNN, Any]]:
        """Returns the two layers, each with its half of the states given at a call."""
        if states is None:
            return [(self.forward_layer, None), (self.backward_layer, None)]
        half = len(self.forward_layer._layout.state_size)
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
        self,
        sequences: Any,
        initial_state: Any,
        context: Any,
        reset_mask: Any,
        reads_stream: bool = True,
    ) -> None:
        for direction, states in self._directions(initial_state):
            # Don't pass the context to a direction that raises because it uses none,
            # unless neither direction uses it.
            gets_context = direction.takes_context or not self.takes_context
            direction._check_call(
                sequences,
                states,
                context if gets_context else None,
                reset_mask,
                reads_stream,
            )

    def _build_owned(
        self, context: Any = None, at_once: bool = False, shape: Shape | None = None
    ) -> None:
        with keras.name_scope(self.name):
            for direction, _ in self._directions(None):
                direction._build_owned(context, at_once, shape)

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
