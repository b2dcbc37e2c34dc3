"""Recurrent layers for Keras 3 that own their initial state."""

from keras_init_lstm import adaptation, callbacks, keras2, plots, streams
from keras_init_lstm.adoption import with_initial_state
from keras_init_lstm.initial_states import (
    Conditional,
    Fixed,
    InitialState,
    Sampled,
    Trainable,
)
from keras_init_lstm.layers import (
    InitStateBidirectional,
    InitStateConvLSTM1D,
    InitStateConvLSTM2D,
    InitStateConvLSTM3D,
    InitStateGRU,
    InitStateLSTM,
    InitStateRNN,
    InitStateSimpleRNN,
)

__version__ = "0.2.0"

__all__ = [
    "Conditional",
    "Fixed",
    "InitStateBidirectional",
    "InitStateConvLSTM1D",
    "InitStateConvLSTM2D",
    "InitStateConvLSTM3D",
    "InitStateGRU",
    "InitStateLSTM",
    "InitStateRNN",
    "InitStateSimpleRNN",
    "InitialState",
    "Sampled",
    "Trainable",
    "adaptation",
    "callbacks",
    "keras2",
    "plots",
    "streams",
    "with_initial_state",
]
