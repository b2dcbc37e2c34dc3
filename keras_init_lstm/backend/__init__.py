"""Operations that `keras.ops` does not have, in one object for each backend of Keras.

`backend` is the object of the current backend. To add a backend, write a file with
Keras's name of the backend, which has a subclass of `Backend`, and add the name to
`_NAMES`.
"""

import importlib

import keras

from keras_init_lstm.backend.base import Backend, NotFusedError

_NAMES = ("tensorflow", "jax", "torch")

_name = keras.backend.backend()
if _name not in _NAMES:
    raise ImportError(
        "keras_init_lstm works with the TensorFlow, JAX and PyTorch backends of "
        f"Keras 3. Received: the backend {_name!r}"
    )
backend: Backend = importlib.import_module(f"{__name__}.{_name}").backend

__all__ = ["Backend", "NotFusedError", "backend"]
