"""What a type checker must refuse, line by line."""

import keras

from keras_init_lstm import (
    Conditional,
    Fixed,
    InitStateConvLSTM3D,
    InitStateGRU,
    InitStateLSTM,
    InitStateRNN,
    InitStateSimpleRNN,
    Sampled,
    Trainable,
    with_initial_state,
)

Sampled(distribution="nrmal")  # error
Sampled(at_inference="draw")  # error
Sampled(learned="men")  # error
Sampled(0.5, 0.1, sead=1)  # error
Sampled(mean="zero")  # error
Sampled(seed=1.5)  # error
Trainable(initialiser="ones")  # error
Fixed(value=None)  # error
Conditional()  # error
InitStateLSTM()  # error
InitStateLSTM("64")  # error
InitStateLSTM(64, initial_states="trainable")  # error
InitStateLSTM(64, initial_state="trainble")  # error
InitStateLSTM(64, use_fused="yes")  # error
InitStateLSTM(64, return_sequence=True)  # error
InitStateGRU(64, use_fused="yes")  # error
InitStateSimpleRNN(64, recurrent_activation="tanh")  # error
InitStateRNN(keras.layers.GRUCell(4), inital_state="trainable")  # error
InitStateConvLSTM3D(4, 3, padding="full", initial_state="trainable")  # error
layer = InitStateLSTM(64, initial_state="trainable")
layer.assign_initial_state()  # error
layer.assign_initial_state([None, None], reduction="sum")  # error
layer.reset_states(state=None)  # error
InitStateLSTM.from_keras(keras.layers.LSTM(4), initial_state="trainble")  # error
with_initial_state(keras.Sequential(), "trainble")  # error
