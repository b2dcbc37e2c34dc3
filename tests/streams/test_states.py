"""The carried states of a model: reset by rows, read and restored."""

import keras
import numpy as np
import pytest
from keras import layers

from backends import tf
from keras_init_lstm import Conditional, InitStateGRU, InitStateLSTM
from keras_init_lstm.streams import get_states, reset_states, set_states
from models import BATCH, FEATURES, SHAPE, TIMESTEPS, UNITS, X, normal
from oracles import assert_same, flat, to_numpy


def streaming(name="outer", batch_size=BATCH):
    """Layers of this package and of Keras, in a wrapper and in a nested model."""
    keras.utils.set_random_seed(1)
    options = {"return_sequences": True, "stateful": True}
    inner = keras.Sequential(
        [
            keras.Input((None, FEATURES), batch_size=batch_size),
            InitStateLSTM(UNITS, initial_state="trainable", name="ours", **options),
            layers.GRU(UNITS, name="of_keras", **options),
        ],
        name="inner",
    )
    inputs = keras.Input((None, FEATURES), batch_size=batch_size)
    both = InitStateGRU(UNITS, initial_state=0.5, name="each", **options)
    outputs = layers.Bidirectional(both, name="both")(inner(inputs))
    return keras.Model(inputs, outputs, name=name)


NAMES = {
    "inner/ours/h0": (BATCH, UNITS),
    "inner/ours/c0": (BATCH, UNITS),
    "inner/of_keras/h0": (BATCH, UNITS),
    "both/forward_each/h0": (BATCH, UNITS),
    "both/backward_each/h0": (BATCH, UNITS),
}


class TestResetStatesByRows:
    @pytest.mark.parametrize("rows", [[0, 2], np.array([True, False, True, False])])
    def test_other_rows_continue(self, rows):
        model, new = streaming(), normal(*SHAPE, seed=1)
        reset = to_numpy(model(new))
        reset_states(model)
        model(X)
        states = get_states(model)
        continued = to_numpy(model(new))
        set_states(model, states)
        reset_states(model, rows=rows)
        got = to_numpy(model(new))
        assert_same(got[[0, 2]], reset[[0, 2]], 1e-6)
        assert_same(got[[1, 3]], continued[[1, 3]], 1e-6)
        assert np.abs(reset - continued).max() > 1e-3

    def test_invalid_rows_change_nothing(self):
        small = InitStateLSTM(UNITS, stateful=True, name="small")
        small(X[:2])
        model = streaming()
        model(X)
        model.extra = small  # Its batch size is 2. The other layers have 4.
        before = get_states(model)
        for rows in ([3], [[0], [1, 2]]):
            with pytest.raises(ValueError, match="`rows` must be different integers"):
                reset_states(model, rows=rows)
        assert_same(list(get_states(model).values()), list(before.values()))

    @pytest.mark.tensorflow
    def test_symbolic_rows_raise(self):
        layer = InitStateLSTM(UNITS, stateful=True)
        layer(X)
        reset = tf.function(lambda rows: layer.reset_states(rows=rows))
        with pytest.raises(ValueError, match=r"(?s)`rows` must be.*symbolic"):
            reset(tf.constant([1]))

    def test_a_layer_without_rows_raises(self):
        class Counter(keras.layers.Layer):
            stateful = True

            def reset_state(self):
                raise AssertionError("refused")

        with pytest.raises(ValueError, match="can only be reset as a whole"):
            reset_states(keras.Sequential([Counter()]), rows=[0])

    def test_rows_of_a_layer_that_is_not_built_raise(self):
        for layer in (InitStateLSTM(2, stateful=True), layers.LSTM(2, stateful=True)):
            with pytest.raises(ValueError, match="has no states before it is built"):
                reset_states(layer, rows=[0])


class TestGetAndSetStates:
    def test_are_named_by_path_and_state(self):
        states = get_states(streaming())
        assert {name: array.shape for name, array in states.items()} == NAMES
        fresh = {name for name, array in states.items() if np.isnan(array).all()}
        assert fresh == set(NAMES) - {"inner/of_keras/h0"}

    def test_a_stream_continued_in_another_model_from_a_file(self, tmp_path):
        model, other = streaming(), streaming("of_another_name")
        model(X)
        reset_states(model, rows=[1])
        np.savez(tmp_path / "stream.npz", **get_states(model))
        with np.load(tmp_path / "stream.npz") as states:
            set_states(other, states)
        assert_same(get_states(other), get_states(model))
        new = normal(*SHAPE, seed=1)
        assert_same(other(new), model(new))

    def test_of_a_layer_have_the_same_names_in_a_model(self):
        layer = InitStateGRU(2, stateful=True, name="gru")
        keras.Sequential([keras.Input((None, 1), batch_size=1), layer], name="model")
        assert layer.path != layer.name
        assert list(get_states(layer)) == ["gru/h0"]

    def test_of_a_layer_and_of_a_model_with_a_repeated_name(self):
        layer = InitStateLSTM(UNITS, stateful=True, name="lstm")
        layer(X)
        assert list(get_states(layer)) == ["lstm/h0", "lstm/c0"]

        class Twice(keras.Model):
            def __init__(self):
                super().__init__()
                options = {"stateful": True, "name": "lstm", "return_sequences": True}
                self.first = layers.LSTM(UNITS, **options)
                self.second = layers.LSTM(UNITS, **options)

            def call(self, x):
                return self.second(self.first(x))

        model = Twice()
        model(X)
        states = get_states(model)
        assert len(states) == 4
        model(X)
        set_states(model, states)
        assert_same(get_states(model), states)

    @pytest.mark.parametrize(
        ("make", "shape", "names"),
        [
            (
                lambda **kwargs: layers.ConvLSTM1D(2, 2, **kwargs),
                (BATCH, 2, 3, 1),
                ["h0", "c0"],
            ),
            (
                lambda **kwargs: layers.RNN(
                    [layers.LSTMCell(2), layers.GRUCell(3)], **kwargs
                ),
                (BATCH, 2, 1),
                ["cell0_h0", "cell0_c0", "cell1_h0"],
            ),
        ],
    )
    def test_of_keras_layers_with_more_states_than_sizes(self, make, shape, names):
        layer = make(stateful=True, name="rnn")
        x = normal(*shape)
        first, states = to_numpy(layer(x)), get_states(layer)
        assert list(states) == [f"rnn/{name}" for name in names]
        second = to_numpy(layer(x))
        set_states(layer, states)
        reset_states(layer, rows=[1])
        got = to_numpy(layer(x))
        assert_same(got[1], first[1], 1e-6)
        assert_same(got[[0, 2, 3]], second[[0, 2, 3]], 1e-6)
        reset_states(layer)
        assert_same(layer(x), first, 1e-6)

    def test_of_bfloat16_are_float32(self):
        options = {"recurrent_initializer": "zeros", "dtype": "bfloat16"}
        layer = InitStateLSTM(UNITS, stateful=True, **options)
        layer(X)
        states = get_states(layer)
        assert {str(array.dtype) for array in states.values()} == {"float32"}
        set_states(layer, states)
        assert_same(get_states(layer), states)

    def test_a_conditional_state_is_reset_after_it_was_moved(self):
        start = Conditional(layers.Dense(UNITS))
        layer = InitStateLSTM(UNITS, initial_state=start, stateful=True)
        context = normal(BATCH, 2)
        first = layer(X, context=context)
        layer.reset_state()
        states = get_states(layer)
        layer(X, context=context)
        set_states(layer, states)
        assert_same(layer(X, context=context), first)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("inner/ours/h0"), "an array for each of"),
            (lambda s: s.update(more=np.zeros((BATCH, UNITS))), "an array for each of"),
            (lambda s: s.update({"inner/ours/c0": np.zeros((1, UNITS))}), "of shape"),
            (lambda s: s.update({"inner/ours/c0": "zeros"}), "array of numbers"),
            (lambda s: s["both/backward_each/h0"].fill(np.inf), "must be finite"),
            (lambda s: s["inner/ours/c0"].put(0, np.nan), "must be finite"),
        ],
    )
    def test_invalid_states_change_nothing(self, change, message):
        model = streaming()
        model(X)
        before, states = get_states(model), get_states(model)
        change(states)
        with pytest.raises(ValueError, match=message):
            set_states(model, states)
        assert_same(get_states(model), before)
        with pytest.raises(ValueError, match="`states` must be a dictionary"):
            set_states(model, list(states.values()))

    @pytest.mark.parametrize("function", [get_states, lambda m: set_states(m, {})])
    def test_need_built_layers(self, function):
        with pytest.raises(ValueError, match="`model` must be a model or layer"):
            function("model")
        with pytest.raises(ValueError, match="has no states before it is built"):
            function(InitStateLSTM(2, stateful=True))

    def test_within_fit_on_any_backend(self):
        seen = []

        class Look(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                seen.append(get_states(self.model)["stream/h0"])

        layer = InitStateLSTM(UNITS, stateful=True, name="stream")
        model = keras.Sequential([keras.Input((TIMESTEPS, FEATURES), BATCH), layer])
        model.compile("sgd", "mse")
        x, y = normal(3 * BATCH, TIMESTEPS, FEATURES), np.zeros((3 * BATCH, UNITS))
        model.fit(x, y, BATCH, shuffle=False, verbose=0, callbacks=[Look()])
        assert len(seen) == 3 and np.abs(seen[2] - seen[1]).max() > 1e-3
        assert_same(seen[2], flat(layer.states)[0])
