"""When a layer asks for a loop of `keras_init_lstm.loops`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from keras_init_lstm import loops
from keras_init_lstm._checks import one_of
from keras_init_lstm.backend import NotFusedError
from keras_init_lstm.layers.rnn import InitStateRNN


def check_use_fused(use_fused: Any) -> None:
    """Raises a `ValueError` if a layer can't be made with it."""
    one_of(use_fused, "use_fused", ("auto", True, False))


class MayUseFused(InitStateRNN):
    """What the layers share whose cell the fused loop knows."""

    # A layer that takes the place of one of Keras gives the same to the last bit.
    _exact_arguments: ClassVar[dict[str, Any]] = {"use_fused": False}

    @property
    def use_fused(self) -> bool | Literal["auto"]:
        return self._use_fused

    @use_fused.setter
    def use_fused(self, value: bool | Literal["auto"]) -> None:
        check_use_fused(value)
        self._use_fused = value

    def call(
        self,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool = False,
        context: Any = None,
        reset_mask: Any = None,
    ) -> Any:
        if self.use_fused is True:
            # Not only in the loop: by then Keras has drawn for dropout.
            try:
                self._check_inner_loop()
                loops.check_runs(self, sequences, mask, training)
            except NotFusedError as reason:
                raise self._not_fused(reason) from reason
        return super().call(
            sequences,
            initial_state=initial_state,
            mask=mask,
            training=training,
            context=context,
            reset_mask=reset_mask,
        )

    def inner_loop(
        self,
        sequences: Any,
        initial_state: Any,
        mask: Any,
        training: bool = False,
    ) -> Any:
        plain = super().inner_loop
        if self.use_fused:
            try:
                self._check_inner_loop()
                return loops.inner_loop(
                    self, sequences, initial_state, mask, training, plain
                )
            except NotFusedError as reason:
                if self.use_fused is True:
                    raise self._not_fused(reason) from reason
        return plain(sequences, initial_state, mask, training=training)

    def _check_inner_loop(self) -> None:
        """Raises a `NotFusedError` if a loop other than Keras's own were to run."""
        # In a subclass with a second base class that may be another one.
        if super(InitStateRNN, self).inner_loop.__func__ is not (
            self.keras_layer.inner_loop
        ):
            raise NotFusedError("an `inner_loop()` that is not Keras's")

    def _not_fused(self, reason: NotFusedError) -> ValueError:
        return ValueError(
            f"The fused loop does not support {reason}. Pass `use_fused='auto'` to run "
            "Keras's own loop. Received: use_fused=True"
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "use_fused": self.use_fused}
