"""Stateful and stateless copies of models."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_init_lstm
from keras_init_lstm import (
    Conditional,
    InitStateBidirectional,
    InitStateGRU,
    InitStateLSTM,
)
from keras_init_lstm.streams import as_stateful, as_stateless, get_states, reset_states
from models import (
    BATCH,
    FEATURES,
    STREAM_KINDS,
    UNITS,
    X,
    chunks,
    layer_of,
    normal,
    with_weights,
)
from oracles import across_programs, assert_same, flat, to_numpy

TIMESTEPS = 12


class TestAsStateful:
    @pytest.mark.parametrize("kind", STREAM_KINDS)
    @pytest.mark.parametrize("nested", [False, True])
    def test_chunks_equal_the_whole_sequence(self, kind, nested):
        inner = [keras.Input((None, FEATURES)), layer_of(kind), layers.Dense(2)]
        if nested:
            inputs = keras.Input((None, FEATURES))
            outputs = layer_of("ours")(keras.Sequential(inner, name="inner")(inputs))
            model = with_weights(
                keras.Model(inputs, [outputs, layers.Dense(1)(outputs)])
            )
        else:
            model = with_weights(keras.Sequential(inner))
        stream = as_stateful(model, batch_size=2)
        assert type(stream) is type(model) and stream.name == model.name
        assert_same(stream.get_weights(), model.get_weights())
        frozen = [w.trainable for w in model.weights]
        assert [w.trainable for w in stream.weights] == frozen
        x = normal(2, TIMESTEPS, FEATURES)
        for _ in range(2):
            read = [flat(stream(chunk)) for chunk in chunks(x, 1, 4, 1, 6)]
            got = [np.concatenate(outputs, 1) for outputs in zip(*read, strict=True)]
            assert_same(got, flat(model(x)), 1e-5)
            reset_states(stream)

    def test_trained_in_batches_it_predicts_online(self):
        model = keras.Sequential(
            [keras.Input((None, FEATURES)), layer_of("ours"), layers.Dense(1)]
        )
        model.compile("adam", "mse", metrics=["mae"])
        x = normal(64, TIMESTEPS, FEATURES)
        model.fit(x, x[..., :1], batch_size=32, verbose=0)
        stream = as_stateful(model, 1)
        online = [
            stream.predict(x[:1, t : t + 1], verbose=0)[0, 0] for t in range(TIMESTEPS)
        ]
        assert_same(np.array(online), model.predict(x[:1], verbose=0)[0], 1e-5)
        # The copy is compiled too. Training it does not change the model.
        before = model.get_weights()
        stream.fit(x[:1], x[:1, :, :1], verbose=0)
        assert set(stream.get_metrics_result()) == {"loss", "mae"}
        assert_same(model.get_weights(), before)

    def test_with_a_context(self):
        inputs, context = keras.Input((None, FEATURES)), keras.Input((3,))
        start = Conditional(layers.Dense(UNITS))
        layer = InitStateLSTM(UNITS, initial_state=start, return_sequences=True)
        model = keras.Model([inputs, context], layer(inputs, context=context))
        stream = as_stateful(model, BATCH)
        x, features = normal(BATCH, TIMESTEPS, FEATURES), normal(BATCH, 3)
        read = [to_numpy(stream([chunk, features])) for chunk in chunks(x, 5, 7)]
        assert_same(np.concatenate(read, 1), model([x, features]), 1e-5)

    def test_a_layer_that_is_shared_stays_shared(self):
        first, second = keras.Input((None, 2)), keras.Input((None, 2))
        dense, lstm = layers.Dense(2), layer_of("ours")
        model = keras.Model([first, second], lstm(dense(first) + dense(second)))
        stream = as_stateful(model, 1)
        assert len(stream.weights) == len(model.weights)

    def test_timedistributed_carries_nothing(self):
        model = keras.Sequential(
            [
                keras.Input((None, 3, FEATURES)),
                layers.TimeDistributed(layers.LSTM(UNITS)),
                layer_of("ours"),
            ]
        )
        stream = as_stateful(with_weights(model), 2)
        x = normal(2, 4, 3, FEATURES)
        read = [to_numpy(stream(chunk)) for chunk in chunks(x, 1, 3)]
        assert_same(np.concatenate(read, 1), model(x), 1e-5)
        assert len(get_states(stream)) == 2

    @pytest.mark.parametrize(
        "layer",
        [
            lambda: layers.Bidirectional(layers.LSTM(2, name="x"), name="reads_back"),
            lambda: InitStateBidirectional(InitStateLSTM(2), name="reads_back"),
            lambda: layers.LSTM(2, go_backwards=True, name="reads_back"),
            lambda: InitStateGRU(2, go_backwards=True, name="reads_back"),
        ],
    )
    def test_layers_that_read_the_future(self, layer):
        inner = keras.Sequential([keras.Input((None, FEATURES)), layer()])
        model = keras.Sequential([keras.Input((None, FEATURES)), inner])
        with pytest.raises(ValueError, match="reads_back.*the future of a stream"):
            as_stateful(model, 1)

    def test_a_layer_that_a_custom_layer_creates(self):
        class Block(layers.Layer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.lstm = layers.LSTM(2, name="of_the_block")

            def call(self, x):
                return self.lstm(x)

        model = keras.Sequential([keras.Input((None, FEATURES)), Block()])
        with pytest.raises(ValueError, match="of_the_block is made by the code"):
            as_stateful(model, 1)

    @pytest.mark.parametrize("batch_size", [0, -1, 1.5, None, True, "one"])
    def test_a_wrong_batch_size(self, batch_size):
        model = keras.Sequential([keras.Input((None, FEATURES)), layer_of("ours")])
        with pytest.raises(ValueError, match="`batch_size` must be a positive integer"):
            as_stateful(model, batch_size)

    @pytest.mark.parametrize("function", [as_stateless, lambda m: as_stateful(m, 1)])
    def test_needs_a_model_that_can_be_rewritten(self, function):
        class Own(keras.Model):
            pass

        for model in (None, InitStateLSTM(2), Own()):
            with pytest.raises(ValueError, match="`model` must be a Sequential or"):
                function(model)
        with pytest.raises(ValueError, match="`model` must be built"):
            function(keras.Sequential([layer_of("ours")]))


class TestAsStateless:
    @pytest.mark.parametrize("kind", STREAM_KINDS)
    def test_undoes_as_stateful(self, kind):
        model = keras.Sequential([keras.Input((None, FEATURES)), layer_of(kind)])
        model = with_weights(model)
        stream = as_stateful(model, 3)
        stream(X[:3])
        back = as_stateless(stream)
        assert back.input_shape == model.input_shape
        assert_same(back(X), model(X), across_programs())
        assert_same(back(X), back(X))

    def test_both_directions_and_layers_that_go_backwards(self):
        both = InitStateBidirectional(layer_of("ours", stateful=True))
        model = keras.Sequential(
            [
                keras.Input((None, FEATURES), batch_size=BATCH),
                both,
                layers.LSTM(UNITS, go_backwards=True, stateful=True),
            ]
        )
        first = model(X)
        back = as_stateless(model)
        assert_same(back(X), first, across_programs())
        assert_same(back(X[:1]), first[:1], 1e-6)


def test_public_names():
    assert {"as_stateful", "as_stateless"} <= set(keras_init_lstm.streams.__all__)
