"""When Keras may run a layer by cuDNN."""

import contextvars
from typing import Any

from keras_init_lstm._keras import DECIDES_TO_FUSE_DIRECTIONS
from keras_init_lstm._types import UseCudnn
from keras_init_lstm.backend import backend
from keras_init_lstm.layers.rnn import InitStateRNN
from keras_init_lstm.loops.exact_cell import why_not_exact

_calls_cell = contextvars.ContextVar("_calls_cell", default=False)


class MayUseCudnn(InitStateRNN):
    """What `InitStateLSTM` and `InitStateGRU` share: cuDNN may run their loop.

    On JAX and PyTorch, `keras.layers.Bidirectional` runs two layers whose `use_cudnn`
    is True or "auto" in one call of cuDNN that starts from zeros. So that no owned
    state is lost, a layer that has one answers False when Keras asks for this purpose.
    Each direction may still run cuDNN for itself.
    """

    _use_cudnn: UseCudnn

    @property
    def use_cudnn(self) -> Any:
        if _calls_cell.get():
            return False
        # The caller first: while Keras constructs the layer, it owns no states yet.
        if backend.is_called_by(DECIDES_TO_FUSE_DIRECTIONS) and any(self.initial_state):
            return False
        return self._use_cudnn

    @use_cudnn.setter
    def use_cudnn(self, value: Any) -> None:
        self._use_cudnn = value

    def inner_loop(self, *args: Any, **kwargs: Any) -> Any:
        # Keras hands the weights to cuDNN and does not ask what the cell computes.
        reason = why_not_exact(self) if self._use_cudnn else None
        if reason and self._use_cudnn is True:
            raise ValueError(
                f"cuDNN does not support {reason}. Pass `use_cudnn='auto'`. Received: "
                "use_cudnn=True"
            )
        token = _calls_cell.set(reason is not None)
        try:
            return super().inner_loop(*args, **kwargs)
        finally:
            _calls_cell.reset(token)

    def get_config(self) -> dict[str, Any]:
        # Keras leaves these two out.
        return {
            **super().get_config(),
            "implementation": self.cell.implementation,
            "use_cudnn": self._use_cudnn,
        }
