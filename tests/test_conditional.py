"""Initial states computed from a context, where they differ from the other kinds."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

from keras_init_lstm import (
    Conditional,
    InitStateBidirectional,
    InitStateGRU,
    InitStateLSTM,
    Sampled,
    Trainable,
    reset_states,
)
from properties import assert_same, cases, flat

BATCH, TIMESTEPS, FEATURES, UNITS = 4, 5, 3, 2


def inputs_of(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype("float32")


X, CONTEXT = inputs_of(BATCH, TIMESTEPS, FEATURES), inputs_of(BATCH, 6)


def dense(units=UNITS, **kwargs):
    return layers.Dense(units, bias_initializer="random_normal", **kwargs)


def lstm_of(layer, **kwargs):
    lstm = layers.LSTM(UNITS, **kwargs)
    lstm.build(X.shape)
    lstm.set_weights(layer.cell.get_weights())
    return lstm


def states_of(layer, context):
    return [entry.encoder(context) for entry in layer.initial_state]


def functional(wrap=lambda layer: layer, **kwargs):
    x, context = keras.Input((None, FEATURES)), keras.Input((6,))
    start = [Conditional(dense()), Trainable("ones")]
    layer = wrap(InitStateLSTM(UNITS, initial_state=start, **kwargs))
    outputs = layers.Dense(1)(layer(x, context=context))
    return keras.Model([x, context], outputs)


class TestContext:
    def test_ids_of_an_embedding_are_left_as_they_are(self):
        # In bfloat16, 257 is 256; in float32, 2**24 + 1 is 2**24.
        table = np.arange(600.0).reshape(300, 2)
        embedding = layers.Embedding(300, UNITS, weights=[table], dtype="float32")
        layer = InitStateLSTM(
            UNITS, initial_state=Conditional(embedding), dtype="mixed_bfloat16"
        )
        seen = []

        class Look(layers.Layer):
            def call(self, context):
                seen.append(context)
                return keras.ops.zeros((len(X), UNITS))

        for ids in (np.array([257, 1, 2, 3]), tf.constant([257.0, 1, 2, 3])):
            layer(X, context=ids)
            got = layer.initial_state[0].call(4, context=ids)
            np.testing.assert_array_equal(got, table[[257, 1, 2, 3]])
            look = InitStateLSTM(
                UNITS, initial_state=[Conditional(Look(dtype="float64")), None]
            )
            look(X, context=ids)
        assert [keras.backend.standardize_dtype(c.dtype) for c in seen] == [
            "int64",
            "float64",
        ]

    def test_an_implicit_mask_is_not_lost(self):
        tokens = np.array([[1, 2, 0, 0], [0, 1, 0, 2], [0, 0, 0, 0], [1, 1, 1, 1]])
        embedding = layers.Embedding(3, 2, mask_zero=True)
        layer = InitStateLSTM(UNITS, initial_state=Conditional(dense()))
        want = layer(
            keras.ops.copy(embedding(tokens)), context=CONTEXT, mask=tokens != 0
        )
        assert_same(layer(embedding(tokens), context=CONTEXT), want)
        x, context = keras.Input((4,)), keras.Input((6,))
        model = keras.Model([x, context], layer(embedding(x), context=context))
        assert_same(model([tokens, CONTEXT]), want)
        bidirectional = InitStateBidirectional(layer)
        got = bidirectional(embedding(tokens), context=CONTEXT)
        want = bidirectional(
            keras.ops.copy(embedding(tokens)), context=CONTEXT, mask=tokens != 0
        )
        assert_same(got, want)

    @pytest.mark.parametrize("kind", ["list", "dict", "model of a list"])
    def test_a_structure_is_handed_over_as_it_is(self, kind):
        class Sum(layers.Layer):
            def call(self, context):
                first, second = keras.tree.flatten(context)
                return first[:, :UNITS] + 2 * second[:, :UNITS]

        first, second = CONTEXT, CONTEXT + 1
        context = {"a": first, "b": second} if kind == "dict" else [first, second]
        encoder = Sum()
        if kind == "model of a list":
            a, b = keras.Input((6,)), keras.Input((6,))
            encoder = keras.Model([a, b], keras.ops.add(a, 2 * b)[:, :UNITS])
        layer = InitStateLSTM(UNITS, initial_state=Conditional(encoder))
        want = (first + 2 * second)[:, :UNITS]
        got = layer.get_initial_state(BATCH, context=context)
        assert_same(got, [want, want], tolerance=1e-6)
        states = [want, want]
        got = layer(X, context=context)
        assert_same(got, lstm_of(layer)(X, initial_state=states), tolerance=1e-6)

    def test_a_list_of_numbers_is_an_array(self):
        start = Conditional(layers.Embedding(9, UNITS))
        layer = InitStateLSTM(UNITS, initial_state=start)
        ids = [3, 1, 4, 1]
        assert_same(layer(X, context=ids), layer(X, context=np.array(ids)))
        got = layer.get_initial_state(BATCH, context=ids)
        assert_same(got, layer.get_initial_state(BATCH, context=np.array(ids)))

    def test_in_both_directions_the_other_kinds_know_whether_it_trains(self):
        start = [Conditional(dense()), Sampled(0.0, 1.0)]
        layer = InitStateBidirectional(InitStateLSTM(UNITS, initial_state=start))
        first, second = (layer(X, context=CONTEXT, training=True) for _ in range(2))
        assert (first.numpy() != second.numpy()).all()
        assert_same(layer(X, context=CONTEXT), layer(X, context=CONTEXT))

    @pytest.mark.parametrize("training", [False, True])
    def test_the_encoder_knows_whether_it_trains(self, training):
        class Flag(layers.Layer):
            def call(self, context, training=False):
                return keras.ops.full((len(context), UNITS), 1.0 if training else -1.0)

        layer = InitStateLSTM(UNITS, initial_state=Conditional(Flag()))
        want = np.full((BATCH, UNITS), 1.0 if training else -1.0, "float32")
        got = layer.get_initial_state(BATCH, training=training, context=CONTEXT)
        assert_same(got, [want, want])
        got = layer(X, context=CONTEXT, training=training)
        want = lstm_of(layer)(X, initial_state=[want, want])
        assert_same(got, want, tolerance=1e-6)

    def test_an_explicit_state_wins_and_needs_no_context(self):
        layer = InitStateLSTM(UNITS, initial_state=[Conditional(dense()), 0.5])
        states = [inputs_of(BATCH, UNITS), np.full((BATCH, UNITS), 0.5, "float32")]
        got = layer(X, initial_state=[states[0], None])
        want = lstm_of(layer)(X, initial_state=states)
        assert_same(got, want)
        got = layer(X, initial_state=[states[0], None], context=CONTEXT)
        assert_same(got, want)

    @pytest.mark.parametrize("call", ["layer", "graph", "get_initial_state"])
    def test_missing_or_superfluous(self, call):
        def run(layer, **kwargs):
            if call == "get_initial_state":
                return layer.get_initial_state(BATCH, **kwargs)
            if call == "graph":
                return tf.function(layer)(X, **kwargs)
            return layer(X, **kwargs)

        with pytest.raises(ValueError, match="`context` is missing.*InitStateBidirec"):
            run(InitStateLSTM(UNITS, initial_state=[None, Conditional(dense())]))
        with pytest.raises(ValueError, match=r"`context` is for .* has none.*Received"):
            run(InitStateGRU(UNITS, initial_state="trainable"), context=CONTEXT)

    def test_missing_where_a_wrapper_passes_none(self):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(dense()))
        with pytest.raises(ValueError, match="`context` is missing"):
            layers.Bidirectional(layer)(X)
        with pytest.raises(ValueError, match="`context` is missing"):
            layers.TimeDistributed(layer)(X[None])

    @pytest.mark.parametrize("shape", [(1, 6), (3, 6), (5, 6)])
    def test_another_batch_size(self, shape):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(dense()))
        message = rf"shape \(4, 2\).*Received.*\({shape[0]},"
        with pytest.raises(ValueError, match=message):
            layer(X, context=np.ones(shape))

        @tf.function(input_signature=[tf.TensorSpec((None, 5, 3)), tf.TensorSpec(None)])
        def call(x, context):
            return layer(x, context=tf.ensure_shape(context, (None, 6)))

        with pytest.raises(tf.errors.InvalidArgumentError):
            call(X, np.ones(shape, "float32"))
        assert call(X, CONTEXT).shape == (BATCH, UNITS)


class TestEncoder:
    @pytest.mark.parametrize(
        "encoder",
        [None, "dense", 3, lambda context: context, tf_keras.layers.Dense(2)],
    )
    def test_must_be_a_layer(self, encoder):
        with pytest.raises(ValueError, match="`encoder` must be a layer.*Received"):
            Conditional(encoder)

    @pytest.mark.parametrize(
        "encoder",
        [
            lambda: dense(3),
            lambda: layers.RepeatVector(2),
            lambda: keras.Sequential([layers.Dense(4), layers.Reshape((2, 2))]),
            lambda: layers.LSTM(UNITS, return_state=True),
        ],
    )
    def test_must_make_one_row_for_each_sequence(self, encoder):
        context = np.ones((BATCH, 5, 6)) if "LSTM" in str(encoder()) else CONTEXT
        layer = InitStateLSTM(UNITS, initial_state=Conditional(encoder()))
        with pytest.raises(
            ValueError, match=r"(?s)`encoder`.*\((4|batch), 2\).*Receiv"
        ):
            layer(X, context=context)
        symbolic = keras.Input(context.shape[1:])
        layer = InitStateLSTM(UNITS, initial_state=Conditional(encoder()))
        with pytest.raises(ValueError, match=r"(?s)`encoder`.*\(batch, 2\).*Received"):
            layer(keras.Input((None, FEATURES)), context=symbolic)

    def test_is_copied_with_its_weights_for_each_state(self):
        given = keras.Sequential([keras.Input((6,)), layers.Dropout(0.5), dense()])
        given.layers[1].trainable = False
        layer = InitStateLSTM(UNITS, initial_state=Conditional(given))
        layer(X, context=CONTEXT)
        encoders = [entry.encoder for entry in layer.initial_state]
        assert len({id(v) for m in (given, *encoders) for v in m.weights}) == 6
        for encoder in encoders:
            assert_same(encoder.get_weights(), given.get_weights())
            assert not encoder.trainable_weights
        assert len(layer.trainable_weights) == 3

    def test_that_is_not_built_starts_each_state_on_its_own(self):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(layers.Dense(UNITS)))
        h, c = layer.get_initial_state(BATCH, context=CONTEXT)
        assert (np.asarray(h) != np.asarray(c)).all()

    def test_frozen_with_the_state_and_with_the_layer(self):
        start = Conditional(dense(), trainable=False)
        layer = InitStateLSTM(UNITS, initial_state=start)
        layer(X, context=CONTEXT)
        assert len(layer.trainable_weights) == 3
        layer.initial_state[0].trainable = True
        assert len(layer.trainable_weights) == 5
        layer.trainable = False
        assert not layer.trainable_weights
        frozen = InitStateLSTM(
            UNITS, initial_state=Conditional(dense()), trainable=False
        )
        frozen(X, context=CONTEXT)
        assert not frozen.trainable_weights

    def test_its_losses_are_the_layers(self):
        encoder = dense(kernel_regularizer="l2", activity_regularizer="l1")
        layer = InitStateLSTM(UNITS, initial_state=[Conditional(encoder), None])
        layer(X, context=CONTEXT)
        assert len(layer.losses) == 2

    def test_owns_no_value_to_assign(self):
        layer = InitStateLSTM(UNITS, initial_state=[Conditional(dense()), 0.5])
        with pytest.raises(ValueError, match=r"h0 to assign to: it is computed"):
            layer.assign_initial_state([np.ones(UNITS), None])
        layer.assign_initial_state([None, np.ones(UNITS)])


WRAPS = {
    "alone": lambda layer: layer,
    "both directions": InitStateBidirectional,
}


class TestRefusedCalls:
    @pytest.mark.parametrize("stateful", [False, True])
    @pytest.mark.parametrize("wrap", WRAPS)
    @pytest.mark.parametrize(
        ("x", "context"),
        [
            (np.ones((4, 5)), np.ones((4, 6))),
            (np.ones((4, 5, 3, 2)), np.ones((4, 6))),
            (np.ones((4, 5, 3)), np.ones((4, 5, 6))),
        ],
    )
    def test_the_first_call_leaves_the_layer_as_it_was(
        self, x, context, wrap, stateful
    ):
        start = [Conditional(dense()), None]
        layer = InitStateLSTM(UNITS, initial_state=start, stateful=stateful)
        layer = WRAPS[wrap](layer)
        with pytest.raises(ValueError, match="ndim=3|map the `context` to"):
            layer(x, context=context)
        assert not layer.built
        alone = getattr(layer, "forward_layer", layer)
        assert alone.states is None
        assert not alone.cell.built
        assert layer(np.ones((2, 7, 5)), context=np.ones((2, 6))).shape[0] == 2


class TestModels:
    @pytest.mark.parametrize("wrap", WRAPS)
    @pytest.mark.parametrize(
        "mode", [{}, {"run_eagerly": True}, {"jit_compile": True}], ids=str
    )
    def test_the_encoder_learns_in_fit(self, wrap, mode):
        model = functional(WRAPS[wrap])
        before = model.get_weights()
        model.compile(keras.optimizers.SGD(0.1), "mse", **mode)
        losses = model.fit(
            [X, CONTEXT], np.ones((BATCH, 1)), epochs=3, verbose=0
        ).history["loss"]
        assert losses[-1] < losses[0]
        for old, new in zip(before, model.get_weights(), strict=True):
            assert (old != new).any()
        want = model([X, CONTEXT])
        assert_same(model.predict([X, CONTEXT], verbose=0), want, tolerance=1e-6)
        got = model.predict([X[:3], CONTEXT[:3]], batch_size=2, verbose=0)
        assert_same(got, want[:3], tolerance=1e-6)

    @pytest.mark.parametrize("wrap", WRAPS)
    def test_saved_and_loaded(self, wrap, tmp_path):
        model = functional(WRAPS[wrap])
        for weight in model.weights:
            weight.assign(np.random.normal(size=weight.shape))
        model.save(tmp_path / "model.keras")
        model.save_weights(tmp_path / "model.weights.h5")
        clone = keras.models.clone_model(model)
        clone.load_weights(tmp_path / "model.weights.h5")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        for each in (clone, loaded):
            assert_same(each([X, CONTEXT]), model([X, CONTEXT]))
            assert len(each.trainable_weights) == len(model.trainable_weights)
        configs = [json.dumps(m.layers[2].get_config()) for m in (loaded, model)]
        assert configs[0] == configs[1]

    def test_loaded_in_a_fresh_process_and_exported(self, tmp_path):
        model = functional(InitStateBidirectional)
        want = model([X, CONTEXT]).numpy()
        model.save(tmp_path / "model.keras")
        np.savez(tmp_path / "data.npz", x=X, context=CONTEXT, want=want)
        script = """
import sys
import keras, keras_init_lstm, numpy as np
data = np.load(sys.argv[2])
model = keras.models.load_model(sys.argv[1])
np.testing.assert_array_equal(model([data["x"], data["context"]]), data["want"])
"""
        files = [str(tmp_path / name) for name in ("model.keras", "data.npz")]
        done = subprocess.run(
            [sys.executable, "-c", script, *files],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        model.export(tmp_path / "exported", verbose=False)
        exported = tf.saved_model.load(str(tmp_path / "exported"))
        assert_same(exported.serve([X, CONTEXT]), want, tolerance=1e-6)

    def test_a_layer_shared_between_two_calls(self):
        x, a, b = keras.Input((None, FEATURES)), keras.Input((6,)), keras.Input((6,))
        layer = InitStateLSTM(UNITS, initial_state=Conditional(dense()))
        outputs = [layer(x, context=a), layer(x, context=b)]
        model = keras.Model([x, a, b], outputs)
        got = model([X, CONTEXT, CONTEXT + 1])
        want = [layer(X, context=c) for c in (CONTEXT, CONTEXT + 1)]
        assert_same(got, want)
        assert (flat(got)[0] != flat(got)[1]).all()

    def test_built_before_there_is_a_context(self, tmp_path):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(dense()))
        layer.build((None, None, FEATURES))
        want = layer(X, context=CONTEXT)
        assert len(layer.weights) == 7
        restored = InitStateLSTM.from_config(layer.get_config())
        restored(X, context=CONTEXT)
        restored.set_weights(layer.get_weights())
        assert_same(restored(X, context=CONTEXT), want)


class TestBidirectional:
    @given(
        cases(
            ["conditional"],
            dtypes=["float32"],
            layers=("LSTM", "GRU", "SimpleRNN", "stacked"),
            go_backwards=False,
            dropout=False,
        ),
        st.sampled_from(["concat", "sum", "mul", "ave", None]),
    )
    def test_is_that_of_keras_with_the_states_of_both_directions(self, case, merge):
        layer = InitStateBidirectional(case.layer(), merge)
        outputs = case.call(layer, context=case.context)
        reference = layers.Bidirectional(case.reference(case.layer()), merge)
        reference.build(case.inputs.shape)
        states = []
        for name in ("forward_layer", "backward_layer"):
            ours = getattr(layer, name)
            getattr(reference, name).set_weights(ours.cell.get_weights())
            states += case.states(ours)
        want = case.call(reference, initial_state=states)
        assert_same(outputs, want, case.tolerance)

    def test_each_direction_keeps_the_weights_of_the_given_encoder(self):
        encoder = dense()
        encoder.build((None, 6))
        given = InitStateLSTM(UNITS, initial_state=Conditional(encoder))
        layer = InitStateBidirectional(given)
        layer(X, context=CONTEXT)
        for direction in (layer.forward_layer, layer.backward_layer):
            for entry in direction.initial_state:
                assert_same(entry.encoder.get_weights(), encoder.get_weights())

    def test_a_backward_layer_of_its_own(self):
        backward = InitStateLSTM(UNITS, initial_state=0.5, go_backwards=True)
        forward = InitStateLSTM(UNITS, initial_state=Conditional(dense()))
        layer = InitStateBidirectional(forward, backward_layer=backward)
        got = layer(X, context=CONTEXT)
        want = np.concatenate(
            [layer.forward_layer(X, context=CONTEXT), layer.backward_layer(X)], axis=1
        )
        assert_same(got, want)

    def test_without_a_conditional_state_it_is_bidirectional(self):
        layer = InitStateBidirectional(InitStateLSTM(UNITS, initial_state=0.5))
        want = np.concatenate([layer.forward_layer(X), layer.backward_layer(X)], axis=1)
        assert_same(layer(X), want)
        with pytest.raises(ValueError, match="`context` is for"):
            layer(X, context=CONTEXT)

    def test_missing_context(self):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(dense()))
        with pytest.raises(ValueError, match="`context` is missing"):
            InitStateBidirectional(layer)(X)
        states = [inputs_of(BATCH, UNITS)] * 4
        bidirectional = InitStateBidirectional(layer)
        got = bidirectional(X, initial_state=states)
        assert_same(got, bidirectional(X, initial_state=states, context=CONTEXT))
        assert (got.numpy() != bidirectional(X, context=CONTEXT).numpy()).any()

    def test_layers_of_keras_are_refused(self):
        with pytest.raises(ValueError, match="`layer` must be a layer of this package"):
            InitStateBidirectional(layers.LSTM(2))
        with pytest.raises(ValueError, match="`backward_layer` must be"):
            InitStateBidirectional(
                InitStateLSTM(2), backward_layer=layers.LSTM(2, go_backwards=True)
            )


class TestStreams:
    @pytest.mark.parametrize("wrap", WRAPS)
    @pytest.mark.parametrize("jit_compile", [None, False, True])
    def test_the_context_is_used_where_a_stream_starts(self, wrap, jit_compile):
        start = Conditional(dense())
        kwargs = {"return_sequences": True}
        stream = WRAPS[wrap](
            InitStateLSTM(UNITS, initial_state=start, stateful=True, **kwargs)
        )
        stream(X, context=CONTEXT)
        alone = stream if wrap == "alone" else stream.forward_layer
        reference = InitStateLSTM(UNITS, initial_state=start, **kwargs)
        reference(X, context=CONTEXT)
        reference.set_weights(alone.get_weights())
        call = stream
        if jit_compile is not None:
            call = tf.function(stream, jit_compile=jit_compile)
        longer = inputs_of(BATCH, 2 * TIMESTEPS, FEATURES)
        for context in (CONTEXT, -CONTEXT):
            reset_states(keras.Sequential([stream]))
            parts = [
                call(longer[:, :TIMESTEPS], context=context)[..., :UNITS],
                call(longer[:, TIMESTEPS:], context=CONTEXT + 7)[..., :UNITS],
            ]
            want = reference(longer, context=context)
            assert_same(np.concatenate(parts, axis=1), want, tolerance=1e-5)

    def test_what_a_fresh_stream_starts_from_is_not_known_yet(self):
        layer = InitStateLSTM(
            UNITS, initial_state=[Conditional(dense()), 0.5], stateful=True
        )
        layer.build((BATCH, None, FEATURES), context_shape=(BATCH, 6))
        h, c = (state.numpy() for state in layer.states)
        assert np.isnan(h).all() and (c == 0.5).all()

    def test_given_states_need_no_context_to_start_from(self):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(dense()), stateful=True)
        states = [inputs_of(BATCH, UNITS), inputs_of(BATCH, UNITS) + 1]
        layer.reset_states(states)
        got = layer(X, context=CONTEXT)
        assert_same(got, lstm_of(layer)(X, initial_state=states))
