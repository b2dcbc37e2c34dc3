"""Callbacks for `fit()`."""

from keras_init_lstm.callbacks.backup import ExactBackupAndRestore
from keras_init_lstm.callbacks.log import LogInitialState

__all__ = [
    "ExactBackupAndRestore",
    "LogInitialState",
]
