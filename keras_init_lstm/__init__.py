"""Recurrent layers for Keras 3 that own their initial state."""

import keras

from keras_init_lstm.adoption import load_keras2_model, with_initial_state
from keras_init_lstm.conditional import Conditional, InitStateBidirectional
from keras_init_lstm.initial_states import Fixed, Sampled, Trainable
from keras_init_lstm.inspection import LogInitialState, plot_initial_state
from keras_init_lstm.layers import InitStateGRU, InitStateLSTM, InitStateSimpleRNN
from keras_init_lstm.recurrent import InitStateRNN
from keras_init_lstm.streams import ResetStates, reset_states

__version__ = "0.1.0"

__all__ = [
    "Conditional",
    "Fixed",
    "InitStateBidirectional",
    "InitStateGRU",
    "InitStateLSTM",
    "InitStateRNN",
    "InitStateSimpleRNN",
    "LogInitialState",
    "ResetStates",
    "Sampled",
    "Trainable",
    "load_keras2_model",
    "plot_initial_state",
    "reset_states",
    "with_initial_state",
]

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "keras_init_lstm works with the TensorFlow backend of Keras 3. "
        f"Received: the backend {keras.backend.backend()!r}"
    )
