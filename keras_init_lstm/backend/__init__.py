"""What `keras.ops` cannot say: one object of a few methods for each backend of Keras.

`backend` is the object for the backend in use. To add one, write a file named as Keras
names the backend, with a subclass of `Backend`, and add the name to `_NAMES`.
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
