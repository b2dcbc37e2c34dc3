"""Recurrent layers for Keras 3 that own their initial state."""

from keras_init_lstm.adaptation import (
    estimate_initial_state,
    train_only_initial_state,
)
from keras_init_lstm.adoption import with_initial_state
from keras_init_lstm.backups import ExactBackupAndRestore
from keras_init_lstm.bidirectional import InitStateBidirectional
from keras_init_lstm.conditional import Conditional
from keras_init_lstm.initial_states import Fixed, InitialState, Trainable
from keras_init_lstm.keras2 import load_keras2_model
from keras_init_lstm.layers import InitStateGRU, InitStateLSTM, InitStateSimpleRNN
from keras_init_lstm.model_states import (
    ResetStates,
    get_states,
    reset_states,
    set_states,
)
from keras_init_lstm.packing import pack
from keras_init_lstm.plots import plot_initial_state
from keras_init_lstm.recurrent import InitStateRNN
from keras_init_lstm.sampled import Sampled
from keras_init_lstm.states_as_inputs import with_states_as_inputs
from keras_init_lstm.stream_store import StreamStore
from keras_init_lstm.streaming import as_stateful, as_stateless
from keras_init_lstm.tensorboard import LogInitialState

__version__ = "0.1.0"

__all__ = [
    "Conditional",
    "ExactBackupAndRestore",
    "Fixed",
    "InitStateBidirectional",
    "InitStateGRU",
    "InitStateLSTM",
    "InitStateRNN",
    "InitStateSimpleRNN",
    "InitialState",
    "LogInitialState",
    "ResetStates",
    "Sampled",
    "StreamStore",
    "Trainable",
    "as_stateful",
    "as_stateless",
    "estimate_initial_state",
    "get_states",
    "load_keras2_model",
    "pack",
    "plot_initial_state",
    "reset_states",
    "set_states",
    "train_only_initial_state",
    "with_initial_state",
    "with_states_as_inputs",
]
