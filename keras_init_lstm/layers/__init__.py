"""Recurrent layers that own their initial state, one file for each, as in Keras."""

from keras_init_lstm.layers.bidirectional import InitStateBidirectional
from keras_init_lstm.layers.conv_lstm import (
    InitStateConvLSTM1D,
    InitStateConvLSTM2D,
    InitStateConvLSTM3D,
)
from keras_init_lstm.layers.gru import InitStateGRU
from keras_init_lstm.layers.lstm import InitStateLSTM
from keras_init_lstm.layers.rnn import InitStateRNN
from keras_init_lstm.layers.simple_rnn import InitStateSimpleRNN

__all__ = [
    "InitStateBidirectional",
    "InitStateConvLSTM1D",
    "InitStateConvLSTM2D",
    "InitStateConvLSTM3D",
    "InitStateGRU",
    "InitStateLSTM",
    "InitStateRNN",
    "InitStateSimpleRNN",
]
