"""A user's script in which a type checker must find no error."""

import keras
import numpy as np

import keras_init_lstm
from keras_init_lstm import (
    Conditional,
    Fixed,
    InitialState,
    InitStateBidirectional,
    InitStateConvLSTM1D,
    InitStateConvLSTM2D,
    InitStateGRU,
    InitStateLSTM,
    InitStateRNN,
    InitStateSimpleRNN,
    Sampled,
    Trainable,
    keras2,
    with_initial_state,
)
from keras_init_lstm.callbacks import LogInitialState
from keras_init_lstm.plots import plot_initial_state
from keras_init_lstm.streams import ResetStates, reset_states


class Ones(InitialState):
    """Every row starts from ones."""

    def call(self, batch_size: int, training: bool = False) -> object:
        return keras.ops.ones((batch_size, self.units), dtype=self.variable_dtype)


kinds = [
    Fixed(0.5),
    Fixed([0.5, 1.0]),
    Fixed(np.ones(2)),
    Fixed(keras.ops.ones(2)),
    Fixed("ones"),
    Sampled(0.5, 0.1),
    Sampled(mean=[0.5, 1.0], stddev=0.1, distribution="uniform", seed=1, name="h"),
    Sampled(learned="mean"),
    Sampled(learned=True, at_inference="sample", trainable=False),
    Trainable(),
    Trainable("ones"),
    Trainable(np.ones((5, 4, 3)), per_position=True),
    Trainable(keras.initializers.RandomNormal(), regularizer="l2", dtype="float32"),
    Conditional(keras.layers.Embedding(500, 64)),
    Ones(),
]
layer = InitStateLSTM(64)
layer = InitStateLSTM(64, "tanh", dropout=0.1, return_sequences=True, name="lstm")
layer = InitStateLSTM(64, initial_state="trainable", use_fused=True, dtype="float64")
layer = InitStateLSTM(64, initial_state=0.5, implementation=1)
layer = InitStateLSTM(64, initial_state=np.ones(64), zero_output_for_mask=True)
layer = InitStateLSTM(64, initial_state=[Trainable(), Fixed(np.ones(64))])
layer = InitStateLSTM(64, initial_state=["zeros", None])
layer = InitStateLSTM(64, initial_state=Sampled(0.5, 0.1), stateful=True)
others = [
    InitStateGRU(64, initial_state="sampled", reset_after=False),
    InitStateSimpleRNN(64, initial_state=kinds[0]),
    InitStateRNN(keras.layers.GRUCell(64), initial_state="fixed"),
    InitStateConvLSTM2D(8, (3, 5), padding="same", initial_state=np.ones((5, 4, 3))),
    InitStateConvLSTM1D(
        8, 3, strides=2, initial_state=[Trainable(), None], unroll=True
    ),
    InitStateRNN(
        [keras.layers.LSTMCell(4), keras.layers.GRUCell(3)],
        return_sequences=True,
        initial_state=[["trainable", None], 0.5],
    ),
    InitStateBidirectional(layer, "sum", backward_layer=None),
]
x = np.zeros((8, 10, 3))
outputs = layer(x, initial_state=[np.ones((8, 64)), None], training=True)
outputs = layer(x, mask=np.ones((8, 10), bool), context=np.arange(8))
h0: keras.Variable = layer.h0.value
norm = float(np.linalg.norm(np.asarray(layer.c0.value)))
print([name.upper() for name in layer.state_names], sum(layer.state_units))
print([kind is not None and kind.trainable for kind in layer.initial_state])
layer.h0.trainable = False
h, c = layer.get_initial_state(batch_size=8, training=True)
layer.assign_initial_state([h, c], reduction="mean")
layer.assign_initial_state({"h0": np.zeros(64), "c0": None})
layer.reset_states([np.zeros((8, 64)), None])
layer.reset_state()

model = keras.Sequential([keras.Input((10, 3), batch_size=8), layer])
model.compile("adam", "mse")
callbacks = [ResetStates(), LogInitialState("logs")]
model.fit(x, np.zeros((8, 64)), callbacks=callbacks)
reset_states(model)
adopted = with_initial_state(model, "trainable", where="lstm")
adopted = with_initial_state(adopted, Sampled(), lambda layer: layer.units == 64)
adopted.predict(x)
old = keras2.load_model("old.h5")
taken: InitStateLSTM = InitStateLSTM.from_keras(keras.layers.LSTM(4), "trainable")
taken = InitStateLSTM.from_keras(keras.layers.LSTM(4), use_fused="auto")
figure = plot_initial_state(layer, x, sort=True)
figure.savefig("initial_state.png")
print(keras_init_lstm.__version__, taken.use_fused, layer.takes_context)
