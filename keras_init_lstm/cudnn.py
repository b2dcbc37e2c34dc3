"""When Keras may run a layer by cuDNN."""

import contextvars
from typing import Any

from keras_init_lstm._types import UseCudnn
from keras_init_lstm.backend import backend
from keras_init_lstm.recurrent import InitStateRNN

_in_own_loop = contextvars.ContextVar("_in_own_loop", default=False)


class _AloneOnly:
    """A `use_cudnn` that holds for one layer, but not for two in one call."""

    def __init__(self, value: UseCudnn) -> None:
        self.value = value

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"{self.value!r}, for one layer alone"


class MayUseCudnn(InitStateRNN):
    """What `InitStateLSTM` and `InitStateGRU` share: cuDNN may run their loop.

    On JAX and PyTorch, `keras.layers.Bidirectional` runs two layers whose `use_cudnn`
    is True or "auto" in one call of cuDNN that starts from zeros. So that no owned
    state is lost, a layer that has one shows, outside of its own loop, a stand-in that
    equals neither. The wrapper sets it on the layers that it makes, where it is taken
    for what it stands for.
    """

    _use_cudnn: UseCudnn

    @property
    def use_cudnn(self) -> Any:
        both_in_one_call = backend.fuses_directions and not _in_own_loop.get()
        if self._use_cudnn and both_in_one_call and any(self.initial_state):
            return _AloneOnly(self._use_cudnn)
        return self._use_cudnn

    @use_cudnn.setter
    def use_cudnn(self, value: Any) -> None:
        self._use_cudnn = value.value if isinstance(value, _AloneOnly) else value

    def inner_loop(self, *args: Any, **kwargs: Any) -> Any:
        token = _in_own_loop.set(True)
        try:
            return super().inner_loop(*args, **kwargs)
        finally:
            _in_own_loop.reset(token)

    def get_config(self) -> dict[str, Any]:
        # Keras leaves these two out.
        return {
            **super().get_config(),
            "implementation": self.cell.implementation,
            "use_cudnn": self._use_cudnn,
        }
