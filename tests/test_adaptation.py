"""A trained model adapts by its initial states alone."""

import keras
import numpy as np
import pytest
from keras import layers

from backends import WITHOUT_XLA
from keras_init_lstm import (
    Conditional,
    Fixed,
    InitStateBidirectional,
    InitStateGRU,
    InitStateLSTM,
    InitStateSimpleRNN,
    Sampled,
)
from keras_init_lstm.adaptation import estimate_initial_state, train_only_initial_state
from keras_init_lstm.streams import StreamStore, as_stateful, get_states, set_states
from models import BATCH, FEATURES, TIMESTEPS, UNITS, X, normal, with_weights
from oracles import assert_same, flat, to_numpy


def trained():
    """A model with layers and variables of every kind, some of them frozen."""
    inputs, context = keras.Input((None, FEATURES)), keras.Input((3,))
    encoder = keras.Sequential([layers.Dense(4, trainable=False), layers.Dense(UNITS)])
    first = InitStateLSTM(
        UNITS, initial_state=["trainable", Fixed(0.5)], return_sequences=True
    )
    second = InitStateGRU(UNITS, initial_state=Conditional(encoder), name="second")
    h = layers.BatchNormalization()(first(layers.Dropout(0.5)(inputs)))
    h = layers.Bidirectional(layers.GRU(UNITS, return_sequences=True))(h)
    both = InitStateBidirectional(
        InitStateSimpleRNN(
            UNITS, initial_state="trainable", trainable=False, name="last"
        )
    )
    outputs = [second(h, context=context), layers.Dense(1)(both(h))]
    return keras.Model([inputs, context], outputs)


class TestTrainOnlyInitialState:
    def test_learns_only_the_states_and_can_be_undone(self):
        model = trained()
        before = [weight.trainable for weight in model.weights]
        undo = train_only_initial_state(model)
        learned = [w.path.split("/", 1)[1] for w in model.trainable_weights]
        assert sorted(learned) == sorted(
            ["h0/value", "forward_last/h0/value", "backward_last/h0/value"]
            + [w.path.split("/", 1)[1] for w in second_dense(model).weights]
        )
        values = model.get_weights()
        model.compile(keras.optimizers.SGD(0.1), "mse", **WITHOUT_XLA)
        data = [X, normal(BATCH, 3)], [np.ones((BATCH, UNITS)), np.ones((BATCH, 1))]
        model.fit(*data, verbose=0)
        moved = [
            weight.path
            for weight, old, new in zip(
                model.weights, values, model.get_weights(), strict=True
            )
            if (old != new).any() and "seed" not in weight.path
        ]
        assert set(moved) == {w.path for w in model.trainable_weights}
        undo()
        assert [weight.trainable for weight in model.weights] == before
        model.compile(keras.optimizers.SGD(0.1), "mse", **WITHOUT_XLA)
        model.fit(*data, verbose=0)

    def test_a_with_block_restores_the_model_also_after_an_error(self):
        model = trained()
        before = [weight.trainable for weight in model.weights]
        with train_only_initial_state(model):
            inside = [weight.trainable for weight in model.weights]
            assert sum(inside) == len(model.trainable_weights) == 5
        assert [weight.trainable for weight in model.weights] == before
        with pytest.raises(RuntimeError, match="oops"), train_only_initial_state(model):
            raise RuntimeError("oops")
        assert [weight.trainable for weight in model.weights] == before

    @pytest.mark.parametrize("initial_state", [None, 0.5, Sampled(learned=False)])
    def test_without_a_state_to_learn_nothing_changes(self, initial_state):
        layer = InitStateLSTM(UNITS, initial_state=initial_state)
        model = keras.Sequential([keras.Input((None, FEATURES)), layer])
        with pytest.raises(ValueError, match="must have an initial state to learn"):
            train_only_initial_state(model)
        assert len(model.trainable_weights) == 3

    def test_of_a_frozen_model(self):
        layer = InitStateLSTM(UNITS, initial_state="trainable")
        model = keras.Sequential([keras.Input((None, FEATURES)), layer])
        model.trainable = False
        undo = train_only_initial_state(model)
        assert model.trainable_weights == [layer.h0.value, layer.c0.value]
        undo()
        assert model.trainable_weights == []

    @pytest.mark.parametrize("model", [None, "model", []])
    def test_needs_a_model(self, model):
        with pytest.raises(ValueError, match="`model` must be a model or layer"):
            train_only_initial_state(model)


def second_dense(model):
    """The layer of the encoder that is not created frozen."""
    return model.get_layer("second").h0.encoder.layers[-1]


def dense():
    return keras.Sequential([keras.Input((None, FEATURES)), layers.Dense(UNITS)])


class TestEstimateInitialState:
    @pytest.mark.parametrize("cls", [InitStateLSTM, InitStateSimpleRNN, layers.LSTM])
    def test_finds_the_true_states(self, cls):
        layer = cls(UNITS, return_sequences=True, seed=1)
        x = normal(3, 20, FEATURES)
        layer.build(x.shape)
        with_weights(layer)
        true = [normal(3, UNITS, seed=k) / 2 for k in range(len(layer.state_size))]
        y = to_numpy(layer(x, initial_state=true))
        weights = layer.get_weights()
        estimate = estimate_initial_state(layer, x, y, steps=400, learning_rate=0.1)
        found = list(estimate.values())
        assert np.abs(to_numpy(layer(x, initial_state=found)) - y).max() < 1e-2
        for got, want in zip(found, true, strict=True):
            assert got.shape == want.shape
        # h affects the first output alone. The cell state affects all outputs.
        assert np.abs(found[-1] - true[-1]).max() < 0.1
        assert_same(layer.get_weights(), weights)

    def test_estimates_of_a_model_continue_a_stream(self):
        lstm = InitStateLSTM(UNITS, return_sequences=True, name="a")
        inner = keras.Sequential([keras.Input((None, FEATURES)), lstm], name="inner")
        inputs = keras.Input((None, FEATURES))
        h = layers.GRU(UNITS, return_sequences=True, name="b")(inner(inputs))
        model = with_weights(keras.Model(inputs, layers.Dense(1)(h)))
        model.compile("adam", "mse")
        stream = as_stateful(model, BATCH)
        true = {
            name: normal(BATCH, UNITS, seed=k) / 2
            for k, name in enumerate(["inner/a/h0", "inner/a/c0", "b/h0"])
        }
        set_states(stream, true)
        x = normal(BATCH, 10, FEATURES)
        y = to_numpy(stream(x))
        found = estimate_initial_state(model, x, y)
        assert list(found) == list(true)
        set_states(stream, found)
        owned = np.square(to_numpy(model(x)) - y).mean()
        want = to_numpy(stream(x))
        assert np.square(want - y).mean() < owned / 20
        store, ids = StreamStore(model), list(range(BATCH))
        store[ids] = found
        assert_same(store(ids, x), want, 1e-5)
        store["one"] = estimate_initial_state(model, x[:1], y[:1], steps=1)

    @pytest.mark.parametrize("in_a_model", [False, True])
    def test_an_estimate_of_a_layer_is_taken_wherever_states_are(self, in_a_model):
        layer = InitStateLSTM(UNITS, initial_state="trainable", name="lstm")
        if in_a_model:
            keras.Sequential([keras.Input(batch_shape=X.shape), layer], name="model")
        layer(X)
        found = estimate_initial_state(layer, X, np.ones((BATCH, UNITS)), steps=3)
        assert list(found) == ["lstm/h0", "lstm/c0"]
        states = list(found.values())
        want = layer(X, initial_state=states)
        assert_same(layer(X, initial_state=found), want)
        stream = InitStateLSTM.from_keras(layer, stateful=True)
        stream.reset_states(found)
        assert_same(stream(X), want, 1e-6)
        set_states(stream, found)
        assert_same(stream(X), want, 1e-6)
        assert list(get_states(stream)) == list(found)
        layer.assign_initial_state(found, reduction="mean")
        assert_same([layer.h0.value, layer.c0.value], [s.mean(0) for s in states], 1e-6)

    def test_a_model_with_a_context(self):
        x, context = keras.Input((None, FEATURES)), keras.Input((3,))
        start = Conditional(layers.Dense(UNITS))
        layer = InitStateGRU(UNITS, initial_state=start, name="gru")
        model = keras.Model([x, context], layer(x, context=context))
        given = [X, normal(BATCH, 3)]
        found = estimate_initial_state(model, given, model(given), steps=5)
        assert {name: v.shape for name, v in found.items()} == {
            "gru/h0": (BATCH, UNITS)
        }

    @pytest.mark.parametrize("over_time", [False, True])
    def test_a_layer_with_a_context(self, over_time):
        kind = Conditional(layers.Dense(UNITS), over_time=over_time)
        layer = InitStateLSTM(UNITS, initial_state=[kind, 0.5])
        context = normal(BATCH, TIMESTEPS, 3) if over_time else normal(BATCH, 3)
        y = to_numpy(layer(X, context=context))
        found = estimate_initial_state(layer, X, y, steps=50)
        assert [state.shape for state in found.values()] == [(BATCH, UNITS)] * 2
        reached = np.square(to_numpy(layer(X, initial_state=found)) - y).mean()
        before = [np.zeros((BATCH, UNITS)), np.full((BATCH, UNITS), 0.5)]
        assert reached < np.square(to_numpy(layer(X, initial_state=before)) - y).mean()

    def test_the_states_of_a_convolution(self):
        layer = layers.ConvLSTM1D(2, 2, return_sequences=True)
        x = normal(BATCH, 4, 3, 1)
        true = [normal(BATCH, 2, 2, seed=k) / 2 for k in range(2)]
        y = to_numpy(layer(x, initial_state=true))
        found = list(estimate_initial_state(layer, x, y, steps=50).values())
        assert [state.shape for state in found] == [(BATCH, 2, 2)] * 2
        reached = np.square(to_numpy(layer(x, initial_state=found)) - y).mean()
        assert reached < np.square(to_numpy(layer(x)) - y).mean() / 20

    def test_an_error_that_names_another_argument(self):
        class Raises(InitStateGRU):
            def call(self, *args, **kwargs):
                raise ValueError("Argument `dropout` is to blame. Received: 1")

        layer = Raises(UNITS)
        layer.build(X.shape)
        with pytest.raises(ValueError, match="Argument `dropout` is to") as caught:
            estimate_initial_state(layer, X, np.zeros((BATCH, UNITS)))
        assert "`x`" not in str(caught.value)

    def test_a_model_with_named_outputs(self):
        inputs = keras.Input((None, FEATURES))
        layer = InitStateSimpleRNN(UNITS, name="rnn")
        h = layer(inputs)
        model = keras.Model(inputs, {"h": h, "double": h * 2})
        found = estimate_initial_state(
            model, X, model(X), loss={"h": "mse", "double": "mae"}, steps=2
        )
        assert list(found) == ["rnn/h0"]

    def test_leaves_a_stream_unchanged(self):
        layer = InitStateLSTM(UNITS, stateful=True)
        layer(X)
        carried = flat(layer.states)
        estimate_initial_state(layer, X, np.zeros((BATCH, UNITS)), steps=2)
        assert_same(layer.states, carried)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"layer_or_model": InitStateLSTM(2)}, "`layer_or_model` must be built"),
            ({"layer_or_model": "model"}, "`layer_or_model` must be a recurrent layer"),
            ({"layer_or_model": dense()}, "`layer_or_model` must have a recurrent"),
            ({"x": "x"}, "`x` must be an array"),
            ({"x": []}, "`x` must be an array"),
            ({"x": X[:0]}, "`x` must be an array"),
            ({"x": X[..., 1:]}, "`x` must fit the inputs of the layer"),
            ({"y": None}, "`y` must be an array"),
            ({"y": np.zeros((1, UNITS))}, "`y` must be an array with one row for each"),
            ({"y": np.zeros((BATCH, 7))}, "`y` must fit the outputs"),
            ({"loss": "no"}, "`loss`"),
            ({"steps": 0}, "`steps` must be positive"),
            ({"steps": 1.5}, "`steps` must be positive"),
            ({"learning_rate": -1}, "`learning_rate` must be positive"),
            ({"learning_rate": True}, "`learning_rate` must be positive"),
            ({"learning_rate": np.inf}, "`learning_rate` must be positive"),
        ],
    )
    def test_invalid_arguments(self, changes, message):
        layer = InitStateLSTM(UNITS)
        layer.build(X.shape)
        arguments = {"layer_or_model": layer, "x": X, "y": np.zeros((BATCH, UNITS))}
        with pytest.raises(ValueError, match=message):
            estimate_initial_state(**{**arguments, **changes})
