"""`Conditional` states that one encoder of the past computes together."""

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
    InitStateRNN,
)
from keras_init_lstm.streams import (
    StreamStore,
    as_stateful,
    get_states,
    reset_states,
    with_states_as_inputs,
)
from models import (
    BATCH,
    FEATURES,
    UNITS,
    TwoSpeedCell,
    X,
    encoder,
    encoder_of,
    normal,
    with_weights,
)
from oracles import assert_same, flat, nested, reference_of, to_numpy

LENGTH, PAST_FEATURES = 7, 3
PAST = normal(BATCH, LENGTH, PAST_FEATURES, seed=1)
CLOSE = 1e-6


def past_of(name, **kwargs):
    """A layer of Keras that returns its last states."""
    return getattr(layers, name)(UNITS, return_state=True, **kwargs)


def stack():
    return [layers.LSTMCell(UNITS), layers.GRUCell(UNITS + 1)]


def model_around(layer, batch_size=None):
    x = keras.Input((None, FEATURES), batch_size, name="x")
    past = keras.Input((None, PAST_FEATURES), batch_size, name="past")
    return keras.Model([x, past], layer(x, context=past))


def expected(layer, states, **kwargs):
    """The outputs of Keras's layer, whose states are passed by hand."""
    return reference_of(layer, **kwargs)(X, initial_state=list(states))


class TestOneRule:
    """The states are what the encoder returns when it is run by hand."""

    @pytest.mark.parametrize("name", ["LSTM", "GRU", "SimpleRNN"])
    def test_of_a_recurrent_encoder(self, name):
        given = past_of(name)
        given(PAST)
        cls = getattr(keras_init_lstm, f"InitState{name}")
        layer = cls(UNITS, initial_state=Conditional(given), return_sequences=True)
        got = layer(X, context=PAST)
        _, *states = given(PAST)
        assert_same(got, expected(layer, states, return_sequences=True), CLOSE)
        assert_same(flat(layer.get_initial_state(BATCH, context=PAST)), flat(states))
        # One copy, which is trained in place of the given encoder.
        assert len({id(kind) for kind in layer.initial_state}) == 1
        assert len(layer.trainable_weights) == 2 * 3
        assert layer.initial_state[0].encoder is not given

    def test_of_stacked_cells(self):
        encoder = layers.RNN(stack(), return_state=True)
        layer = InitStateRNN(stack(), initial_state=Conditional(encoder))
        got = layer(X, context=PAST)
        _, *states = layer.initial_state[0].encoder(PAST)
        reference = layers.RNN(stack())
        reference.build(X.shape)
        reference.set_weights(layer.cell.get_weights())
        want = reference(X, initial_state=nested(layer, flat(states)))
        assert_same(got, want, CLOSE)

    def test_of_the_states_of_one_of_the_stacked_cells(self):
        kinds = [Conditional(past_of("LSTM")), "trainable"]
        layer = InitStateRNN(stack(), initial_state=kinds)
        layer(X, context=PAST)
        [h, c], [other] = layer.get_initial_state(BATCH, context=PAST)
        assert_same([h, c], layer.initial_state[0].encoder(PAST)[1:])
        assert_same(other, np.zeros((BATCH, UNITS + 1), "float32"))
        again = InitStateRNN.from_config(layer.get_config())
        assert again.initial_state[0] is again.initial_state[1]
        again(X, context=PAST)
        again.set_weights(layer.get_weights())
        assert_same(again(X, context=PAST), layer(X, context=PAST))

    def test_of_a_custom_cell_with_states_of_two_sizes(self):
        sizes = [UNITS, UNITS + 1]
        context = normal(BATCH, 6)
        kind = Conditional(encoder_of(sizes))
        layer = InitStateRNN(TwoSpeedCell(UNITS), initial_state=kind)
        got = layer.get_initial_state(BATCH, context=context)
        assert_same(got, layer.initial_state[0].encoder(context))

    @pytest.mark.parametrize("merge_mode", ["concat", None])
    def test_of_both_directions_of_an_encoder(self, merge_mode):
        both = layers.Bidirectional(past_of("GRU"), merge_mode=merge_mode)
        cells = [layers.GRUCell(UNITS), layers.GRUCell(UNITS)]
        layer = InitStateRNN(cells, initial_state=Conditional(both))
        got = flat(layer.get_initial_state(BATCH, context=PAST))
        outputs = flat(layer.initial_state[0].encoder(PAST))
        assert_same(got, outputs[-2:])

    def test_each_direction_has_its_encoder(self):
        given = past_of("LSTM")
        given(PAST)
        layer = InitStateLSTM(UNITS, initial_state=Conditional(given))
        both = InitStateBidirectional(layer)
        got = both(X, context=PAST)
        directions = [both.forward_layer, both.backward_layer]
        encoders = [direction.h0.encoder for direction in directions]
        assert len({id(v) for each in encoders for v in each.weights}) == 2 * 3
        states = given(PAST)[1:]
        want = [expected(directions[0], states)]
        want += [expected(directions[1], states, go_backwards=True)]
        assert_same(got, np.concatenate(flat(want), axis=-1), CLOSE)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: keras.Sequential([layers.Dense(3), past_of("LSTM")]),
            lambda: keras.Sequential(
                [keras.Input((None, PAST_FEATURES)), layers.Dense(3), past_of("LSTM")]
            ),
        ],
    )
    def test_of_a_sequential_model(self, make):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(make()))
        got = layer(X, context=PAST)
        states = layer.h0.encoder(PAST)[1:]
        assert_same(got, expected(layer, states), CLOSE)

    @pytest.mark.parametrize("make", [dict, list])
    def test_of_a_custom_layer(self, make):
        @keras.saving.register_keras_serializable("test_encoders_of_states")
        class Pair(layers.Layer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.inner = layers.Dense(2 * UNITS)

            def call(self, context):
                h, c = keras.ops.split(self.inner(context), 2, axis=-1)
                return {"a": h, "b": c} if make is dict else [h, c]

        context = normal(BATCH, 6)
        layer = InitStateLSTM(UNITS, initial_state=Conditional(Pair(), all_states=True))
        got = layer(X, context=context)
        states = keras.tree.flatten(layer.h0.encoder(context))
        assert_same(got, expected(layer, states), CLOSE)

    def test_an_explicit_state_takes_the_place_of_its_own(self):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(past_of("LSTM")))
        c = normal(BATCH, UNITS, seed=5)
        got = layer(X, initial_state=[None, c], context=PAST)
        h = layer.h0.encoder(PAST)[1]
        assert_same(got, expected(layer, [h, c]), CLOSE)
        got = layer(X, initial_state=[h, c])  # Then no context is needed.
        assert_same(got, expected(layer, [h, c]), CLOSE)

    def test_trains_as_an_encoder_whose_states_are_passed_by_hand(self):
        x = keras.Input((None, FEATURES))
        past = keras.Input((None, PAST_FEATURES))
        layer = InitStateLSTM(UNITS, initial_state=Conditional(past_of("LSTM")))
        owned = with_weights(keras.Model([x, past], layer(x, context=past)))
        by_hand, lstm = past_of("LSTM"), layers.LSTM(UNITS)
        _, *states = by_hand(past)
        reference = keras.Model([x, past], lstm(x, initial_state=states))
        by_hand.set_weights(layer.h0.encoder.get_weights())
        lstm.set_weights(layer.cell.get_weights())
        losses = []
        for model in (owned, reference):
            model.compile(keras.optimizers.SGD(0.5), "mse")
            history = model.fit(
                [X, PAST], np.ones((BATCH, UNITS)), epochs=4, shuffle=False, verbose=0
            )
            losses.append(history.history["loss"])
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
        assert_same(
            layer.h0.encoder.get_weights(), by_hand.get_weights(), tolerance=1e-4
        )


class TestMasks:
    """The mask of a padded past reaches the encoder."""

    IDS = np.array([[1, 2, 0, 0], [3, 4, 5, 6], [7, 0, 0, 0], [1, 1, 1, 0]])

    def test_the_implicit_mask_of_an_embedding(self):
        embedding = layers.Embedding(8, PAST_FEATURES, mask_zero=True)
        layer = InitStateLSTM(UNITS, initial_state=Conditional(past_of("LSTM")))
        ids, x = keras.Input((None,), dtype="int32"), keras.Input((None, FEATURES))
        model = keras.Model([x, ids], layer(x, context=embedding(ids)))
        _, *states = layer.h0.encoder(embedding(self.IDS), mask=self.IDS != 0)
        want = expected(layer, states)
        assert_same(model([X, self.IDS]), want, CLOSE)
        assert_same(model.predict([X, self.IDS], verbose=0), want, CLOSE)
        assert_same(layer(X, context=embedding(self.IDS)), want, CLOSE)

    def test_an_explicit_mask_is_an_input_of_the_encoder(self):
        past = keras.Input((None, PAST_FEATURES))
        mask = keras.Input((None,), dtype="bool")
        encoder = keras.Model([past, mask], past_of("LSTM")(past, mask=mask)[1:])
        layer = InitStateLSTM(UNITS, initial_state=Conditional(encoder))
        given = np.arange(LENGTH) < np.array([[3], [7], [1], [5]])
        got = layer(X, context=[PAST, given])
        lstm = layer.h0.encoder.layers[-1]
        assert_same(got, expected(layer, lstm(PAST, mask=given)[1:]), CLOSE)


class TestResets:
    @pytest.mark.parametrize("over_time", [False, True])
    def test_a_reset_returns_to_the_states_of_the_encoder(self, over_time):
        kind = Conditional(past_of("GRU"), over_time=over_time)
        layer = InitStateGRU(UNITS, initial_state=kind, return_sequences=True)
        if over_time:  # A past for each timestep.
            past = normal(BATCH, X.shape[1], LENGTH, PAST_FEATURES, seed=3)
        else:
            past = PAST
        reset_mask = np.zeros(X.shape[:2], bool)
        reset_mask[:, 2] = True
        got = to_numpy(layer(X, context=past, reset_mask=reset_mask))
        encoder = layer.h0.encoder
        reference = reference_of(layer, return_sequences=True)
        for part, first in ((slice(0, 2), 0), (slice(2, None), 2)):
            at = past[:, first] if over_time else past
            want = reference(X[:, part], initial_state=encoder(at)[1:])
            assert_same(got[:, part], want, CLOSE)

    def test_over_time_of_two_states(self):
        kind = Conditional(past_of("LSTM"), over_time=True)
        layer = InitStateLSTM(UNITS, initial_state=kind, return_sequences=True)
        past = normal(BATCH, X.shape[1], LENGTH, PAST_FEATURES, seed=3)
        reset_mask = np.zeros(X.shape[:2], bool)
        reset_mask[1, 3] = True
        got = to_numpy(layer(X, context=past, reset_mask=reset_mask))[1, 3:]
        states = layer.h0.encoder(past[1:2, 3])[1:]
        want = reference_of(layer, return_sequences=True)(
            X[1:2, 3:], initial_state=states
        )
        assert_same(got, to_numpy(want)[0], CLOSE)


class TestStreams:
    def test_only_fresh_rows_read_the_past(self):
        kind = Conditional(past_of("LSTM"))
        layer = InitStateLSTM(UNITS, initial_state=kind, stateful=True)
        layer.build(X.shape, context_shape=PAST.shape)
        assert np.isnan(flat(layer.states)).all()
        layer(X, context=PAST)
        reference = reference_of(layer, return_state=True)
        _, *states = reference(X, initial_state=layer.h0.encoder(PAST)[1:])
        assert_same(flat(layer.states), flat(states))
        layer.reset_states(rows=[1])
        other = normal(BATCH, LENGTH, PAST_FEATURES, seed=9)
        got = layer(X, context=other)
        new = layer.h0.encoder(other)[1:]
        rows = np.arange(BATCH)[:, None] == 1
        states = [np.where(rows, *pair) for pair in zip(flat(new), flat(states))]  # noqa: B905
        assert_same(got, reference(X, initial_state=states)[0], CLOSE)

    def test_copies_and_stores(self):
        model = with_weights(
            model_around(
                InitStateLSTM(UNITS, initial_state=Conditional(past_of("LSTM")))
            )
        )
        want = model.predict([X, PAST], verbose=0)
        stream = as_stateful(model, BATCH)
        for part in (X[:, :2], X[:, 2:]):
            got = stream.predict([part, PAST], batch_size=BATCH, verbose=0)
        assert_same(got, want, CLOSE)
        reset_states(stream)
        assert np.isnan(flat(list(get_states(stream).values()))).all()
        step, states = with_states_as_inputs(model, BATCH, PAST)
        for part in (X[:, :2], X[:, 2:]):
            got, *states = step.predict([part, PAST, *states], verbose=0)
        assert_same(got, want, CLOSE)
        store = StreamStore(model)
        ids = ["a", "b", "c", "d"]
        store(ids, X[:, :2], context=PAST)
        assert_same(store(ids, X[:, 2:], context=np.zeros_like(PAST)), want, CLOSE)


def functional_encoder():
    past = keras.Input((None, PAST_FEATURES))
    return keras.Model(past, past_of("LSTM")(past)[1:])


class TestFiles:
    @pytest.mark.parametrize("make", [lambda: past_of("LSTM"), functional_encoder])
    def test_saved_and_loaded(self, make, tmp_path):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(make()))
        model = with_weights(model_around(layer))
        want = model.predict([X, PAST], verbose=0)
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert_same(loaded.predict([X, PAST], verbose=0), want)
        kinds = loaded.layers[-1].initial_state
        assert kinds[0] is kinds[1]
        model.save_weights(tmp_path / "model.weights.h5")
        other = model_around(InitStateLSTM(UNITS, initial_state=Conditional(make())))
        other.load_weights(tmp_path / "model.weights.h5")
        assert_same(other.predict([X, PAST], verbose=0), want)
        assert len({weight.path for weight in model.weights}) == 6

    def test_taken_over_with_the_weights_of_the_encoder(self):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(past_of("LSTM")))
        want = layer(X, context=PAST)
        taken = InitStateLSTM.from_keras(layer)
        assert_same(taken(X, context=PAST), want, CLOSE)
        lstm = layers.LSTM(UNITS)
        lstm.build(X.shape)
        taken = InitStateLSTM.from_keras(lstm, Conditional(layer.h0.encoder))
        states = layer.h0.encoder(PAST)[1:]
        want = lstm(X, initial_state=states)
        assert_same(taken(X, context=PAST), want)


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "received"),
        [
            (lambda: past_of("GRU"), r"\(4, 2\), \(4, 2\)"),
            (lambda: layers.LSTM(3, return_state=True), r"\(4, 3\)"),
            (lambda: layers.Bidirectional(past_of("LSTM")), r"\(4, 4\), \(4, 2\)"),
        ],
    )
    def test_the_wrong_number_or_size_of_states(self, make, received):
        kinds = [Conditional(make()), "sampled"]
        layer = InitStateRNN(
            [layers.LSTMCell(UNITS), layers.GRUCell(2)], initial_state=kinds
        )
        message = rf"(?s)2 tensors.*\(batch, 2\), \(batch, 2\).*Received.*{received}"
        with pytest.raises(ValueError, match=message):
            layer(X, context=PAST, training=True)
        assert not layer.built
        assert not layer.initial_state[2].built

    def test_an_encoder_that_returns_all_states_unasked(self):
        class Pair(layers.Layer):
            def call(self, context):
                return context, context

        layer = InitStateLSTM(6, initial_state=Conditional(Pair()))
        with pytest.raises(ValueError, match="pass `all_states=True`"):
            layer(X, context=normal(BATCH, 6))

    def test_an_entry_for_one_of_two_states(self):
        kinds = [Conditional(past_of("LSTM")), None]
        layer = InitStateLSTM(UNITS, initial_state=kinds)
        with pytest.raises(ValueError, match=r"1 tensor.*Received: outputs"):
            layer(X, context=PAST)

    @pytest.mark.parametrize("given", ["yes", 1.5])
    def test_all_states_is_a_boolean(self, given):
        with pytest.raises(ValueError, match="`all_states` must be one of"):
            Conditional(layers.Dense(2), all_states=given)

    def test_cannot_be_set_later(self):
        kind = Conditional(layers.Dense(2))
        with pytest.raises(ValueError, match="`all_states` of Conditional"):
            kind.all_states = True


def test_replaced_by_another_initial_state():
    layer = InitStateLSTM(UNITS, initial_state=Conditional(past_of("LSTM")))
    layer.initial_state = [0.5, Conditional(encoder())]
    context = normal(BATCH, 6)
    layer(X, context=context)
    assert len(layer.weights) == 3 + 1 + 2
    layer = InitStateLSTM(UNITS, initial_state=Conditional(past_of("LSTM")))
    layer.cell = layers.LSTMCell(UNITS, activation="relu")
    layer(X, context=PAST)
    assert layer.h0 is layer.c0
    assert len(layer.weights) == 3 + 3
