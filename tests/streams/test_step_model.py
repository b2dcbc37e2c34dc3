"""Models with states as inputs and outputs."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_init_lstm import Conditional, InitStateGRU, InitStateLSTM
from keras_init_lstm._keras import rnn_hands_mask_on
from keras_init_lstm.adaptation import estimate_initial_state
from keras_init_lstm.streams import as_stateful, set_states, with_states_as_inputs
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
from oracles import assert_same, flat, to_numpy

TIMESTEPS = 12
SERIES = normal(BATCH, TIMESTEPS, FEATURES)


def streamed(stream, states, *series):
    """The joined outputs of a model for the chunks of a series, and the last states."""
    chunk_outputs = []
    for chunk in zip(*(chunks(x, 1, 4, 1, 6) for x in series), strict=True):
        outputs = stream.predict_on_batch([*chunk, *states])
        split = len(outputs) - len(states)
        chunk_outputs.append(outputs[:split])
        states = outputs[split:]
    parts = zip(*chunk_outputs, strict=True)
    return [np.concatenate(part, 1) for part in parts], states


class TestWithStatesAsInputs:
    @pytest.mark.parametrize("kind", STREAM_KINDS)
    @pytest.mark.parametrize("stateful", [False, True])
    def test_chunks_equal_the_whole_sequence(self, kind, stateful):
        size = BATCH if stateful else None
        inner = keras.Sequential(
            [
                keras.Input((None, FEATURES), batch_size=size),
                layer_of(kind, stateful=stateful, name="first"),
                layers.Dense(2),
            ],
            name="inner",
        )
        inputs = keras.Input((None, FEATURES), batch_size=size)
        last = layer_of("ours", stateful=stateful, return_state=True, name="last")
        h, *states = last(inner(inputs))
        model = with_weights(keras.Model(inputs, [h, layers.Dense(1)(h), *states]))
        stream, states = with_states_as_inputs(model, BATCH)
        names = [tensor.name for tensor in stream.inputs[1:]]
        assert names[-2:] == ["last_h0", "last_c0"]
        assert all(name.startswith("inner_first_") for name in names[:-2])
        assert stream.output_names[-len(names) :] == [f"{name}_out" for name in names]
        want = flat(model(SERIES))
        found = stream.predict_on_batch([SERIES, *states])
        assert_same(found[: len(want)], want, 1e-5)
        (first, *_), new = streamed(stream, states, SERIES)
        assert_same(first, want[0], 1e-5)
        assert_same(new[-2:], want[2:], 1e-5)

    def test_a_convolution_of_keras(self):
        layer = layers.ConvLSTM1D(2, 2, return_sequences=True, name="conv")
        model = with_weights(keras.Sequential([keras.Input((None, 3, 1)), layer]))
        series = normal(BATCH, TIMESTEPS, 3, 1)
        stream, states = with_states_as_inputs(model, BATCH)
        assert [tensor.name for tensor in stream.inputs[1:]] == ["conv_h0", "conv_c0"]
        assert [state.shape for state in states] == [(BATCH, 2, 2)] * 2
        (got,), _ = streamed(stream, states, series)
        assert_same(got, model(series), 1e-5)

    def test_an_implicit_mask_reaches_the_layer(self):
        tokens = np.array([[1, 2, 0, 3, 0, 1, 2, 3, 0, 0, 1, 1]] * 2)
        model = keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                layers.Embedding(4, FEATURES, mask_zero=True),
                layers.Dropout(0.5),
                layer_of("ours"),
                layer_of("of Keras", name="second"),
            ]
        )
        stream, states = with_states_as_inputs(with_weights(model), 2)
        got, _ = streamed(stream, states, tokens)
        want = to_numpy(model(tokens))
        assert_same(got[0], want, 1e-5)
        # The second layer skips masked timesteps if the first passes its mask on.
        assert (want[:, 2] == want[:, 1]).all() == rnn_hands_mask_on()

    @pytest.mark.filterwarnings("ignore:.*does not support masking")
    def test_a_mask_reaches_a_nested_model(self):
        inner_inputs = keras.Input((None, FEATURES))
        inner = keras.Model(inner_inputs, layer_of("ours")(inner_inputs))
        inputs, mask = keras.Input((None, FEATURES)), keras.Input((None,), dtype="bool")
        model = keras.Model([inputs, mask], inner(inputs, mask=mask))
        marks = np.arange(TIMESTEPS) % 3 != 2
        given = [SERIES, np.tile(marks, (BATCH, 1))]
        stream, states = with_states_as_inputs(model, BATCH)
        got = stream.predict_on_batch([*given, *states])[0]
        assert_same(got, model(given), 1e-5)
        always = keras.Model(inputs, inner(inputs, training=True))
        with pytest.raises(ValueError, match="is called with training=True"):
            with_states_as_inputs(always)

    def test_repeated_names(self, tmp_path):
        def nested(name, features):
            inputs = keras.Input((None, features))
            lstm = InitStateLSTM(UNITS, return_sequences=True, name="lstm")
            dense = layers.Dense(2, name="dense")
            return keras.Model(inputs, dense(lstm(inputs)), name=name)

        inputs = keras.Input((None, FEATURES), name="lstm_h0")
        model = keras.Model(inputs, nested("b", 2)(nested("a", FEATURES)(inputs)))
        stream, states = with_states_as_inputs(with_weights(model), BATCH)
        assert len({tensor.name for tensor in stream.inputs}) == 5
        stream.save(tmp_path / "stream.keras")
        loaded = keras.saving.load_model(tmp_path / "stream.keras")
        got = loaded.predict_on_batch([SERIES, *states])[0]
        assert_same(got, model(SERIES), 1e-5)
        # `estimate_initial_state()` and `set_states()` use the same names.
        estimates = estimate_initial_state(model, SERIES, model(SERIES), steps=1)
        assert len(estimates) == 4
        set_states(as_stateful(model, BATCH), estimates)

    def test_the_initial_states_are_the_owned_states(self):
        layer = InitStateLSTM(UNITS, initial_state=[[0.5, -0.5], None])
        model = keras.Sequential([keras.Input((None, FEATURES)), layer])
        _, states = with_states_as_inputs(model, batch_size=2)
        h, c = np.float32([[0.5, -0.5]] * 2), np.zeros((2, 2), "float32")
        assert_same(states, [h, c])

    def test_with_a_context(self):
        x, context = keras.Input((None, FEATURES)), keras.Input((3,))
        start = Conditional(layers.Dense(UNITS))
        layer = InitStateGRU(UNITS, initial_state=start, return_sequences=True)
        model = keras.Model([x, context], layer(x, context=context))
        with pytest.raises(ValueError, match="`context` is missing"):
            with_states_as_inputs(model, BATCH)
        features = normal(BATCH, 3)
        stream, states = with_states_as_inputs(model, BATCH, context=features)
        got, _ = stream.predict_on_batch([SERIES, features, *states])
        assert_same(got, model([SERIES, features]), 1e-5)

    def test_the_model_is_unchanged_and_the_result_is_saved(self, tmp_path):
        model = keras.Sequential([keras.Input((None, FEATURES)), layer_of("ours")])
        before = to_numpy(model(X))
        stream, states = with_states_as_inputs(model, BATCH)
        stream.set_weights([weight + 1 for weight in stream.get_weights()])
        assert_same(model(X), before)
        stream.save(tmp_path / "stream.keras")
        loaded = keras.saving.load_model(tmp_path / "stream.keras")
        want = stream.predict_on_batch([X, *states])
        assert_same(loaded.predict_on_batch([X, *states]), want)

    def test_models_that_can_not_be_streams(self):
        inputs = keras.Input((None, 2))
        shared = layers.LSTM(2, return_sequences=True, name="shared")
        twice = keras.Model(inputs, shared(shared(inputs)))
        given = layers.LSTM(2, name="given")(inputs, initial_state=[inputs[:, 0]] * 2)
        both = layers.Bidirectional(layers.LSTM(2), name="both")(inputs)
        for model, message in (
            (twice, "shared is called twice"),
            (keras.Model(inputs, given), "given is given its initial state"),
            (keras.Model(inputs, both), "both .* the future of a stream"),
        ):
            with pytest.raises(ValueError, match=message):
                with_states_as_inputs(model)
