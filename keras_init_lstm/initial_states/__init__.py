"""The kinds of initial state, and the initial states of one layer."""

from keras_init_lstm.initial_states.base import InitialState
from keras_init_lstm.initial_states.conditional import Conditional
from keras_init_lstm.initial_states.fixed import Fixed
from keras_init_lstm.initial_states.sampled import Sampled
from keras_init_lstm.initial_states.trainable import Trainable

__all__ = [
    "Conditional",
    "Fixed",
    "InitialState",
    "Sampled",
    "Trainable",
]
