"""Loads recurrent models from files of Keras 2."""

from keras_init_lstm.keras2.load import load_model

__all__ = [
    "load_model",
]
