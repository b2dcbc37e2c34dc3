"""What comes from Keras 2: files that are loaded, and objects that are refused."""

import numpy as np
import pytest
import tf_keras

from keras_init_lstm import (
    Conditional,
    Fixed,
    InitStateLSTM,
    InitStateRNN,
    Sampled,
    Trainable,
    load_keras2_model,
    reset_states,
    with_initial_state,
)
from models import BATCH, FEATURES, SHAPE, TIMESTEPS, X, batch_for
from oracles import assert_same

pytestmark = pytest.mark.tensorflow


def sequential(rnn, **kwargs):
    return tf_keras.Sequential(
        [tf_keras.Input(SHAPE[1:], **kwargs), rnn, tf_keras.layers.Dense(1)]
    )


def functional():
    kl = tf_keras.layers
    x, start = tf_keras.Input(SHAPE[1:]), tf_keras.Input((2,))
    inner = tf_keras.Sequential(
        [tf_keras.Input(SHAPE[1:]), kl.GRU(FEATURES, return_sequences=True)]
    )
    h = inner(inner(x))
    h = kl.LSTM(2, return_sequences=True)(h, initial_state=[start, start])
    return tf_keras.Model([x, start], kl.Dense(1)(kl.LSTM(2)(h)))


KERAS2 = {
    "LSTM": lambda: sequential(tf_keras.layers.LSTM(2, implementation=1)),
    "GRU": lambda: sequential(tf_keras.layers.GRU(2, reset_after=False)),
    "cells": lambda: sequential(
        tf_keras.layers.RNN([tf_keras.layers.LSTMCell(3), tf_keras.layers.GRUCell(2)])
    ),
    "Bidirectional": lambda: sequential(
        tf_keras.layers.Bidirectional(tf_keras.layers.LSTM(2))
    ),
    "stateful": lambda: sequential(
        tf_keras.layers.LSTM(2, stateful=True), batch_size=BATCH
    ),
    "input_shape": lambda: tf_keras.Sequential(
        [
            tf_keras.layers.Embedding(5, 3, mask_zero=True, input_shape=(TIMESTEPS,)),
            tf_keras.layers.LSTM(2),
        ]
    ),
    "functional": functional,
}


class TestFiles:
    @pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
    @pytest.mark.parametrize("suffix", ["h5", "keras"])
    @pytest.mark.parametrize("make", KERAS2.values(), ids=list(KERAS2))
    def test_predict_what_they_did(self, make, suffix, tmp_path):
        old = make()
        rng = np.random.default_rng(2)
        old.set_weights([rng.normal(0, 0.5, w.shape) for w in old.get_weights()])
        old.compile("adam", "mse", metrics=["mae"])
        path = tmp_path / f"old.{suffix}"
        old.save(path)
        content = path.read_bytes()
        x = batch_for(old)
        model = load_keras2_model(path)
        assert path.read_bytes() == content
        adopted = with_initial_state(model, "trainable")
        layers = adopted._flatten_layers()
        assert any(isinstance(layer, InitStateRNN) for layer in layers)
        predicted = adopted(x)
        assert_same(predicted, model(x))
        assert_same(predicted, old(x), tolerance=1e-6)

    def test_what_keras_3_cannot_do(self, tmp_path):
        old = sequential(tf_keras.layers.LSTM(2, time_major=True, name="swapped"))
        old.save(tmp_path / "old.keras")
        with pytest.raises(ValueError, match=r"swapped \(LSTM\) has `time_major=True`"):
            load_keras2_model(tmp_path / "old.keras")
        with pytest.raises(ValueError, match=r"`path` .*\.h5 or \.keras"):
            load_keras2_model(tmp_path / "saved_model")


class TestLegacyObjects:
    """Each is refused by its name: it looks like one of Keras 3, and is none."""

    @pytest.mark.parametrize(
        "make",
        [
            lambda: tf_keras.initializers.Zeros(),
            lambda: tf_keras.layers.LSTM(3),
            lambda: tf_keras.Input((3,)),
        ],
        ids=["initializer", "layer", "tensor"],
    )
    def test_as_an_initial_state(self, make):
        legacy = make()
        for use in (
            lambda: InitStateLSTM(3, initial_state=legacy),
            lambda: Fixed(legacy),
            lambda: Trainable(legacy),
            lambda: Sampled(legacy),
        ):
            with pytest.raises(ValueError, match="legacy package tf_keras"):
                use()

    def test_as_inputs(self):
        states = [tf_keras.Input((2,)), tf_keras.Input((2,))]
        for call in (
            lambda: InitStateLSTM(2)(tf_keras.Input((3, 2))),
            lambda: InitStateLSTM(2)(X[:1], initial_state=states),
            lambda: reset_states(tf_keras.Sequential()),
        ):
            with pytest.raises(ValueError, match="legacy package tf_keras"):
                call()

    def test_as_an_encoder(self):
        with pytest.raises(ValueError, match="`encoder` must be a layer.*Received"):
            Conditional(tf_keras.layers.Dense(2))

    def test_as_a_model_to_adopt(self):
        legacy = tf_keras.Sequential([tf_keras.layers.LSTM(2)])
        with pytest.raises(ValueError, match=r"tf_keras.*load_keras2_model"):
            with_initial_state(legacy, "trainable")

    def test_as_a_layer_to_adopt(self):
        with pytest.raises(ValueError, match="must be .* `LSTM`.*tf_keras"):
            InitStateLSTM.from_lstm(tf_keras.layers.LSTM(2))
